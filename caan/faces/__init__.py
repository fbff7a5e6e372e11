"""Face detectors and crops."""
