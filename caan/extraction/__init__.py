"""Videos -> features: the stages, without Ray."""
