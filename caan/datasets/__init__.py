"""Data sets: read their files and lists into manifest rows, and check their splits."""
