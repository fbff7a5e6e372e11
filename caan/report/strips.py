"""Strips of frames: choose one person's frames and decode their images (the paper's Figure 5)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caan import storage
from caan.errors import StorageError, VideoError, redact
from caan.media.sandbox import Sandbox
from caan.media.stills import thumbnails
from caan.report.config import StripConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StripFrame:
    """One frame of a strip: its image and what the head gives for it."""

    image: np.ndarray | None
    """uint8 [H, W, 3] RGB, upright; None if the image could not be decoded."""
    pts_seconds: float
    """Presentation time since the video's start."""
    emotion_score: float
    """The head's attention weight of the frame (paper eq. 3), at least 0."""
    label: str
    """The frame's own most probable emotion; empty if unknown."""
    box: tuple[float, float, float, float] | None
    """The face, x0, y0, x1, y1 as shares 0..1 of the image's width and height."""


class StripMaker:
    """Make one strip after the other; videos are decoded in a sandboxed child."""

    def __init__(self, config: StripConfig) -> None:
        self._config = config
        self._sandbox = Sandbox(time_limit_seconds=config.time_limit_seconds)

    def __enter__(self) -> "StripMaker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._sandbox.close()

    def frames(
        self, row: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]
    ) -> list[StripFrame]:
        """Frames of a manifest row from one person's rows of frame_scores, in time order.

        They are evenly spaced; the one nearest to the highest emotion score is replaced by it.
        """
        if not scores:
            return []
        places = sorted(
            {round(i) for i in np.linspace(0, len(scores) - 1, self._config.num_frames)}
        )
        highest = max(range(len(scores)), key=lambda i: scores[i]["emotion_score"] or 0.0)
        places[int(np.argmin([abs(place - highest) for place in places]))] = highest
        shown = [scores[i] for i in places]
        images = self.images(row, [score["pts_seconds"] for score in shown])
        return [
            StripFrame(
                image=image,
                pts_seconds=score["pts_seconds"],
                emotion_score=score["emotion_score"] or 0.0,
                label=most_probable(score),
                box=_relative_box(score["box"], row),
            )
            for score, image in zip(shown, images, strict=True)
        ]

    def images(
        self, row: Mapping[str, Any], times_seconds: Sequence[float]
    ) -> list[np.ndarray | None]:
        """Images uint8 [H, W, 3] RGB of a manifest row at these times.

        All are None if the video cannot be read any more; the strip then shows the scores alone.
        """
        config = self._config
        try:
            with storage.spooled(row["uri"], row["size_bytes"] or 0, config.spool_bytes) as path:
                return list(
                    self._sandbox.run(thumbnails, path, list(times_seconds), config.picture_pixels)
                )
        except (VideoError, StorageError, FileNotFoundError) as error:
            logger.warning("the strip of %s shows no images: %s", redact(row["uri"]), error)
            return [None] * len(times_seconds)


def most_probable(score: Mapping[str, Any]) -> str:
    """The emotion with the highest probability in a row; empty if it has no probabilities."""
    probabilities = dict(score["probabilities"] or ())
    return max(probabilities, key=lambda name: probabilities[name]) if probabilities else ""


def _relative_box(
    box: Sequence[float] | None, row: Mapping[str, Any]
) -> tuple[float, float, float, float] | None:
    if box is None or not row["width"] or not row["height"]:
        return None
    x0, y0, x1, y1 = box
    return x0 / row["width"], y0 / row["height"], x1 / row["width"], y1 / row["height"]
