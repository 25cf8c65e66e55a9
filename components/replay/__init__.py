"""The past: what the journal holds, run again through the same cores."""
