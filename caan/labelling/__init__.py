"""Features -> labels of people and videos, and sidecar files: timelines, previews, tables."""
