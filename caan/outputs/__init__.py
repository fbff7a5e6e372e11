"""Output folders of extract and label: plan, rows, commits, checks."""
