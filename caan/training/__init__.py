"""Training of heads and backbones, without Ray."""
