"""Models elsewhere that speak OpenAI's wire: asked in the chat beside those of the project, to compare."""
