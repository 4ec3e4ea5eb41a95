"""Models as files to take away: folders and GGUF for other programs, checked before they are offered."""
