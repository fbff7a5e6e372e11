"""Video files: open them safely, decode in a sandbox, sample by presentation time."""
