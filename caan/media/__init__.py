"""Video files: opened safely, decoded in a sandbox, sampled by presentation time."""
