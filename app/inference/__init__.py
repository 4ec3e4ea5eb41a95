"""Asking models: which files a reference means, and the client of the model server."""
