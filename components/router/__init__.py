"""Where: which engines run an attempt. Reserves in memory, dispatches, observes."""
