"""Context-aware attention networks for emotion in video, as a plain library."""
