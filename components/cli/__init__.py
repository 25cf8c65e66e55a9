"""The command line: one file per command, and `up`, which supervises the processes."""
