"""Pure logic that more than one component uses: no clock, no I/O, no random source of its own."""
