"""The report about one run of jobs.label: figures, plots, strips of frames, and an HTML page."""
