"""A model as files that other programs load: adapter, whole folder, GGUF; each is loaded again and compared."""
