"""What the jobs share: Ray start-up, command line, pipeline, training on workers."""
