"""The one renderer of chat templates, its loss mask and its tokens: training, chat, API and export share it."""
