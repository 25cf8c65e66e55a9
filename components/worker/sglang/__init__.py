"""An agent in front of SGLang servers that prefill and decode apart."""
