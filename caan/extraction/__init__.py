"""Videos -> features: the stages of a run, without Ray."""
