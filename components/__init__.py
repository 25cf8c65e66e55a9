"""The processes of the control plane, one folder each, and the logic they share."""
