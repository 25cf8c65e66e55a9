"""An agent beside an OpenAI-compatible server: an ``Engine`` whose steps come over HTTP."""
