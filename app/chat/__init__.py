"""Conversations with models: asked in the browser, answered in the background, saved and rated."""
