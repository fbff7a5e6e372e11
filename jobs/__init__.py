"""Ray programs, one per file; run each with `python -m jobs.<name>`."""
