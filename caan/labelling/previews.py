"""Write the preview of a video: a copy with boxes, people, labels and emotion scores drawn in."""

import bisect
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from caan.labelling.config import PreviewConfig
from caan.labelling.timelines import Span, person_name
from caan.media.sampling import probe, sample_frames
from caan.media.stills import open_source
from caan.report.colours import EMOTION_COLOURS, OTHER_COLOUR

Row = Mapping[str, Any]
Rectangle = tuple[float, float, float, float]


class _Person:
    """One person's faces in time order; gives the face's box and score at any time."""

    def __init__(self, rows: Sequence[Row], spans: Sequence[Span]) -> None:
        self.rows = sorted(rows, key=lambda row: row["pts_seconds"])
        self.times = [row["pts_seconds"] for row in self.rows]
        self.highest = max((row["emotion_score"] or 0.0 for row in rows), default=0.0) or 1.0
        gaps = np.diff(self.times)
        # Show a box until the next sampled frame, but not while the person is absent.
        self.hold_seconds = 1.5 * float(gaps.min()) if len(gaps) else 1.0
        self.spans = spans

    def at(self, seconds: float) -> tuple[Row, np.ndarray] | None:
        """Row of the last sampled frame, and the box interpolated to this time."""
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
    """Write an MP4 (H.264, silent, ready to stream); return its number of frames.

    `path` is local or s3://. `frame_scores` are the video's rows. `spans` are the labels of its
    people (`timelines.spans_of`). The score bar is scaled to the person's highest score.

    Raises:
        VideoError: the video cannot be decoded.
    """
    about = probe(open_source(path))
    fps = min(config.max_fps, about.fps or config.max_fps)
    by_person: dict[str, list[Row]] = {}
    for row in frame_scores:
        if row["box"] is None:  # a frame without a face, scored from its context
            continue
        by_person.setdefault(row["person_id"] or "", []).append(row)
    people = {
        person_id: _Person(rows, [span for span in spans if span.person_id == person_id])
        for person_id, rows in sorted(by_person.items())
    }
    longer = max(about.width, about.height)
    scale = min(config.max_side_pixels / longer, max(1.0, config.min_side_pixels / longer))
    size = max(2, round(about.width * scale)) // 2 * 2, max(2, round(about.height * scale)) // 2 * 2
    rate = Fraction(fps).limit_denominator(1000)
    num_frames = 0
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(config.quality)})
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in sample_frames(
            open_source(path), fps=float(rate), max_side_pixels=config.max_side_pixels, probe=about
        ):
            seconds = frame.frame_index / float(rate)
            image = draw_people(_sized(frame.image, scale, size), people, seconds, scale)
            if num_frames == 0:
                stream.width, stream.height = image.width, image.height
            encoded = av.VideoFrame.from_image(image)
            encoded.pts = num_frames
            encoded.time_base = 1 / rate
            container.mux(stream.encode(encoded))
            num_frames += 1
        container.mux(stream.encode())
    return num_frames


def _sized(image: np.ndarray, scale: float, size: tuple[int, int]) -> Image.Image:
    """The image, enlarged to `size` if `scale` is above 1; its sides are even, as H.264 needs."""
    if scale > 1.0:
        return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return Image.fromarray(np.ascontiguousarray(image[:height, :width]))


def draw_people(
    image: Image.Image, people: Mapping[str, _Person], seconds: float, scale: float
) -> Image.Image:
    """Draw boxes, labels and scores at this time into an RGB image, `scale` times the full size."""
    draw = ImageDraw.Draw(image, "RGBA")
    width, height = image.size
    font = ImageFont.load_default(max(12, min(width, height) // 24))
    words: list[tuple[Rectangle, str, str]] = []
    for person_id, person in people.items():
        now = person.at(seconds)
        if now is None:
            continue
        row, box = now
        label = person.label_at(seconds)
        colour = EMOTION_COLOURS.get(label[0], OTHER_COLOUR) if label else OTHER_COLOUR
        score = (row["emotion_score"] or 0.0) / person.highest
        rectangle = x0, y0, x1, y1 = tuple((scale * box).tolist())
        thick = max(2, min(width, height) // 160)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 150), width=thick + 2)
        draw.rectangle(rectangle, outline=colour, width=thick)
        bar = x0, y1 + 2, max(x1, x0 + 24), y1 + 3 + max(4, min(width, height) // 60)
        draw.rectangle((bar[0] - 1, bar[1] - 1, bar[2] + 1, bar[3] + 1), fill=(0, 0, 0, 170))
        draw.rectangle((bar[0], bar[1], bar[0] + score * (bar[2] - bar[0]), bar[3]), fill=colour)
        who = person_name(person_id) if len(people) == 1 else person_id
        text = " ".join(filter(None, [who, f"{label[0]} {label[1]:.2f}" if label else ""])) or "?"
        words.append(((x0, y0, bar[2], bar[3]), text, colour))
    taken: list[Rectangle] = [rectangle for rectangle, _, _ in words]
    for rectangle, text, colour in words:
        x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
        place = _free_place(rectangle, (x1 + 8, y1 - y0 + 7), image.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        ink = "black" if _brightness(colour) > 0.5 else "white"
        draw.text((place[0] + 4, place[1] + 3 - y0), text, fill=ink, font=font)
    return image


def _free_place(
    box: Rectangle, size: tuple[float, float], image: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Place for a label of this size: next to its box, without overlap with `taken` if possible."""
    width, height = size
    most = max(0.0, image[0] - width)
    lefts = [min(max(0.0, left), most) for left in (box[0] - 1, box[2] + 1 - width)]
    above, below = box[1] - height - 2, box[3] + 3
    tops = [above, below, *(above - (height + 2) * n for n in (1, 2))]
    tops += [below + (height + 2) * n for n in (1, 2)]
    places = [(left, top, left + width, top + height) for top in tops for left in lefts]
    inside = [p for p in places if p[1] >= 0 and p[3] <= image[1]]
    for place in inside:
        if not any(_overlap(place, other) for other in taken):
            return place
    top = min(max(0.0, above), max(0.0, image[1] - height))
    return inside[0] if inside else (lefts[0], top, lefts[0] + width, top + height)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _brightness(colour: str) -> float:
    """Approximate relative luminance, 0..1, of `#rrggbb`."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255
