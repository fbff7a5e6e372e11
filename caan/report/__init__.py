"""The report about a run of labels."""
