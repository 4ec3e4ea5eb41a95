"""One command starts every process of the product and keeps it running: `gpt-builder up`."""
