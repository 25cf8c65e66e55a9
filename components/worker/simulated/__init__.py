"""The simulated engine: the engine model in real time, with words for tokens."""
