"""What speaks other protocols to us: engine state as UDP datagrams (ELRAR) becomes events."""
