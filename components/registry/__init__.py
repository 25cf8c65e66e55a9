"""Which processes and engines exist, and how fresh what is known of them is."""
