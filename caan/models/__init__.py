"""Heads: models over the face and context vectors of a video."""
