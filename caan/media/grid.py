"""The sampling grid: frame k is the image shown k / fps seconds after the video's first one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np

from caan.errors import DecodeFailed
from caan.media.config import Decoder

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """One sampled frame."""

    frame_index: int
    """k of the grid: the image shown at k / fps seconds."""
    pts_seconds: float
    """The image's own presentation time since the video's first image: at most k / fps."""
    image: np.ndarray
    """uint8 [H, W, 3], RGB, upright."""
    decoder: Decoder = "pyav"
    """Library that decoded it."""


@dataclass(frozen=True)
class Grid:
    """The grid in integers: k / fps <= pts - start  becomes  k * den <= ticks * num."""

    num: int
    den: int
    start_pts: int
    first_index: int
    end_index: int | None
    seconds_per_tick: Fraction

    @classmethod
    def make(
        cls, fps: float, start_pts: int, time_base: Fraction, first_index: int, count: int | None
    ) -> "Grid":
        """The grid of `fps` frames per second from `first_index` on, `count` frames or all.

        Raises:
            ValueError: `fps` is not in (0, 1000], or `first_index` is negative.
        """
        if not 0 < fps <= 1000 or first_index < 0:
            raise ValueError(f"fps must be in (0, 1000] and first_index >= 0: {fps}, {first_index}")
        ratio = Fraction(fps).limit_denominator(1_000_000) * time_base
        end_index = None if count is None else first_index + count
        return cls(ratio.numerator, ratio.denominator, start_pts, first_index, end_index, time_base)

    def starting_at(self, index: int) -> "Grid":
        """The same grid from another first index on."""
        return replace(self, first_index=index)

    def seconds_of(self, pts: int) -> float:
        """Seconds from the video's first image to `pts`."""
        return float((pts - self.start_pts) * self.seconds_per_tick)

    def index_at(self, pts: int) -> int:
        """First index whose time is at or after `pts`."""
        return -(-(pts - self.start_pts) * self.num // self.den)

    def first_pts(self) -> int:
        """Last tick at or before the first index's time."""
        return self.start_pts + self.first_index * self.den // self.num

    def is_superseded(self, pts: int, later_pts: int) -> bool:
        """Whether every grid time from `pts` on shows the image of `later_pts` or a later one."""
        index = max(self.index_at(pts), self.first_index)
        return pts < later_pts and (later_pts - self.start_pts) * self.num <= index * self.den

    def select(self, timed: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, int, Item]]:
        """(index, pts, item) for every grid index, from (pts, item) in order of time.

        Raises:
            DecodeFailed: `timed` raised it; the indices shown before the damage come first.
        """
        index, shown, failure = self.first_index, None, None
        try:
            for pts, item in timed:
                if shown is not None:
                    while index < self.index_at(pts) and index != self.end_index:
                        yield index, *shown
                        index += 1
                if index == self.end_index:
                    return
                shown = pts, item
        except DecodeFailed as error:
            failure = error
        if shown is not None:
            last_index = (shown[0] - self.start_pts) * self.num // self.den
            while index <= last_index and index != self.end_index:
                yield index, *shown
                index += 1
        if failure is not None and index != self.end_index:
            raise failure
