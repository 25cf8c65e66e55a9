"""Proofs: each claim of the project as a command that prints a figure beside its bar.

``make show-main-job`` runs one page of them. A proof runs the product as a user would and looks at
it from outside; ``CONTROL=1`` plants a fault in the running system (``faults``) for which the very
same check must print FAIL.
"""
