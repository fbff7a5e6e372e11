"""Networks that turn images into vectors, and their weights."""
