"""A copy of a video that shows what was found in it: boxes, people, labels, emotion scores."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caan.colours import EMOTION_COLOURS, OTHER_COLOUR
from caan.thumbnails import open_source
from caan.timelines import Span, person_name
from caan.video import probe, sample_frames

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """How previews are made."""

    max_fps: float = 12.0
    """Pictures per second; a slower video keeps its own rate."""
    max_side_pixels: int = 640
    """Longer side of the picture."""
    quality: int = 26
    """x264's constant rate factor: lower is better and larger."""


class _Person:
    """One person's faces in time order: where the face is at any time, and its score."""

    def __init__(self, rows: Sequence[Row], spans: Sequence[Span]) -> None:
        self.rows = sorted(rows, key=lambda row: row["pts_seconds"])
        self.times = [row["pts_seconds"] for row in self.rows]
        self.highest = max((row["emotion_score"] or 0.0 for row in rows), default=0.0) or 1.0
        gaps = np.diff(self.times)
        # a face stands for the time until the next sampled frame, not for a person's absence
        self.hold_seconds = 1.5 * float(gaps.min()) if len(gaps) else 1.0
        self.spans = spans

    def at(self, seconds: float) -> tuple[Row, np.ndarray] | None:
        """The row of the last sampled frame and the box now, moving evenly to the next one."""
        i = bisect.bisect_right(self.times, seconds + 1e-6) - 1
        if i < 0 or seconds - self.times[i] > self.hold_seconds:
            return None
        row, box = self.rows[i], np.asarray(self.rows[i]["box"], np.float64)
        if i + 1 < len(self.rows):
            later = self.rows[i + 1]
            gap = self.times[i + 1] - self.times[i]
            if later["track_id"] == row["track_id"] and 0 < gap <= self.hold_seconds:
                share = (seconds - self.times[i]) / gap
                box = (1 - share) * box + share * np.asarray(later["box"], np.float64)
        return row, box

    def label_at(self, seconds: float) -> tuple[str, float] | None:
        """Label and confidence of the span at this time."""
        for span in self.spans:
            if span.start_seconds <= seconds <= span.end_seconds:
                return span.label, span.confidence
        return None


def write_preview(
    path: str,
    target: Path,
    frame_scores: Sequence[Row],
    spans: Sequence[Span],
    config: PreviewConfig,
) -> int:
    """Write an MP4 (H.264, silent, ready to stream) and give its number of pictures.

    `path` is local or s3://, `frame_scores` are the video's rows, `spans` its people's labels
    (`timelines.spans_of`). The score bar is scaled to the person's highest score in the video.

    Raises:
        VideoError: the video cannot be decoded.
    """
    about = probe(open_source(path))
    fps = min(config.max_fps, about.fps or config.max_fps)
    by_person: dict[str, list[Row]] = {}
    for row in frame_scores:
        if row["box"] is None:  # labelled from the context alone
            continue
        by_person.setdefault(row["person_id"] or "", []).append(row)
    people = {
        person_id: _Person(rows, [span for span in spans if span.person_id == person_id])
        for person_id, rows in sorted(by_person.items())
    }
    scale = min(1.0, config.max_side_pixels / max(about.width, about.height))
    rate = Fraction(fps).limit_denominator(1000)
    num_pictures = 0
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(config.quality)})
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in sample_frames(
            open_source(path), fps=float(rate), max_side_pixels=config.max_side_pixels, probe=about
        ):
            seconds = frame.frame_index / float(rate)
            picture = draw_people(frame.picture, people, seconds, scale)
            if num_pictures == 0:
                stream.width, stream.height = picture.width, picture.height
            encoded = av.VideoFrame.from_image(picture)
            encoded.pts = num_pictures
            encoded.time_base = 1 / rate
            container.mux(stream.encode(encoded))
            num_pictures += 1
        container.mux(stream.encode())
    return num_pictures


def draw_people(
    picture: np.ndarray, people: Mapping[str, _Person], seconds: float, scale: float
) -> Image.Image:
    """The picture (uint8 [H, W, 3] RGB, scaled by `scale`) with what is known at this time.

    Odd sides are cropped by a pixel, as H.264 wants even ones.
    """
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    image = Image.fromarray(np.ascontiguousarray(picture[:height, :width]))
    draw = ImageDraw.Draw(image)
    size = max(11, height // 26)
    font = ImageFont.load_default(size)
    for person_id, person in people.items():
        now = person.at(seconds)
        if now is None:
            continue
        row, box = now
        x0, y0, x1, y1 = (scale * box).tolist()
        label = person.label_at(seconds)
        colour = EMOTION_COLOURS.get(label[0], OTHER_COLOUR) if label else OTHER_COLOUR
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=max(2, height // 180))
        text = " ".join(
            filter(None, [person_name(person_id), f"{label[0]} {label[1]:.2f}" if label else ""])
        )
        text_width = draw.textlength(text, font=font)
        left = min(max(0.0, x0), max(0.0, width - text_width - 6))
        top = y0 - size - 6 if y0 >= size + 6 else min(y1 + 8, height - size - 6)
        draw.rectangle((left, top, left + text_width + 6, top + size + 5), fill=colour)
        draw.text((left + 3, top + 1), text, fill="white", font=font)
        score = (row["emotion_score"] or 0.0) / person.highest
        bar = max(3, height // 90)
        draw.rectangle((x0, y1 + 1, x1, y1 + 1 + bar), fill="#e8eaed")
        draw.rectangle((x0, y1 + 1, x0 + score * (x1 - x0), y1 + 1 + bar), fill=colour)
    return image
