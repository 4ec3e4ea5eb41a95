"""Models elsewhere that speak OpenAI's wire: asked in chats and evaluations beside those of the project."""
