"""Readers of data sets: what lies somewhere -> manifest rows."""
