"""Choice of the video decoder: options without FFmpeg."""

import importlib.util
from typing import Literal

from caan.errors import InputError

Decoder = Literal["pyav", "decord"]
"""`pyav` decodes every file that this project reads. `decord` decodes local files of the
containers, codecs and pixel formats in `caan.media.decord_frames`; PyAV decodes all others. Both
give the same frames, so the choice is not part of a run's fingerprint.

PyAV is the default. Source frames per CPU second, relative to a bare PyAV loop, on 720p H.264 with
B-frames (docs/results.md):

    sampled           pyav   decord
    every frame       1.05   0.75
    one per second    1.58   1.06

PyAV also refuses fewer files, and decord is the one that hangs on some (dmlc/decord 373, 375)."""


def require_decoder(decoder: Decoder) -> None:
    """Check that the decoder's package is installed.

    Raises:
        InputError: it is not.
    """
    if decoder == "decord" and importlib.util.find_spec("decord") is None:
        raise InputError(
            "--decoder decord needs the package decord, which has wheels for Linux and Windows on "
            "x86-64 only and is not installed here: install it, or use --decoder pyav."
        )
