"""HTTP in (OpenAI), token streams out. It owns the client connection and the delivered index."""
