"""Options of batches, without torch."""

from typing import Literal

Sampling = Literal["balanced", "shuffled"]
