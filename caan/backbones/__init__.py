"""Networks that turn pictures into vectors, and their weights."""
