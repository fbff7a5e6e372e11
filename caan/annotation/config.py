"""Options of merging votes."""

from dataclasses import dataclass
from typing import Literal

LabelSet = Literal["heiv7", "ekman6", "plutchik8"]
"""Names of `caan.schema.LABEL_SETS`."""

TieRule = Literal["drop", "first_vote", "label_order"]
"""What a tied video gets: no label, the tied one voted first, or the first of the label set."""


@dataclass(frozen=True, kw_only=True)
class VotesConfig:
    """How the votes of several annotators become one label and one split per video."""

    label_set: LabelSet = "heiv7"
    """Emotions to choose from."""
    tie_rule: TieRule = "drop"
    """Label of a tied video: none, the tied one voted first, or the first of the label set."""
    test_share: float = 0.4
    """Share of each emotion that goes to the test split; no source video is in both splits."""
    seed: int = 0
    """Seed of the split."""
