"""Features -> labels of people and videos, and the files that people open."""
