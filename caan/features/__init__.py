"""Features of many videos, packed and batched for training."""
