"""The colour of each emotion in plots, pages and previews."""

EMOTION_COLOURS = {
    "anger": "#c8453b",
    "anticipation": "#e08a2c",
    "disgust": "#6f8f3a",
    "fear": "#6d57a5",
    "joy": "#e3b81f",
    "neutral": "#8a8f98",
    "sadness": "#3b74b4",
    "surprise": "#2fa39a",
    "trust": "#b0649c",
}
"""One colour per emotion, the same everywhere."""

OTHER_COLOUR = "#5a5f66"
"""The colour of everything else."""
