"""Virtual time: modelled engines and real traces, run as fast as the machine can."""
