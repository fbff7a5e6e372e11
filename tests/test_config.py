"""Options by dotted names, to and from JSON."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from caan import config
from caan.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Part:
    scorer_depth: int = 3
    sizes: tuple[int, ...] = (256, 128)
    dropout: float | None = None
    fusion: Literal["sum", "gated"] | None = None
    parts: tuple[Literal["face", "context"], ...] = ("face",)


@dataclass(frozen=True, kw_only=True)
class Whole:
    model: Part = field(default_factory=Part)
    learning_rate: float = 1e-3
    name: str = "caan"
    policy: Literal["main", "all"] = "main"


def test_dotted_names_change_nested_options_and_leave_the_old_config_as_it_was():
    old = Whole()
    new = config.override(
        old, {"model.scorer-depth": 1, "model.sizes": [8, 4], "learning_rate": 1, "name": "faa"}
    )
    assert new == Whole(model=Part(scorer_depth=1, sizes=(8, 4)), learning_rate=1.0, name="faa")
    assert isinstance(new.learning_rate, float)
    assert old == Whole()
    assert config.override(old, {"model.dropout": 0.5}).model.dropout == 0.5
    assert config.override(new, {"model.dropout": None}).model.dropout is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.scorer_dept": 1}, "did you mean `model.scorer_depth`"),
        ({"name.first": "x"}, "`name` has no parts"),
        ({"model.scorer_depth": "1"}, "takes int, and '1' is str"),
        ({"model.scorer_depth": True}, "takes int"),
        ({"model.scorer_depth": None}, "takes int, and None"),
        ({"model.dropout": "much"}, "takes NoneType or float"),
        ({"model": 3}, "takes Part"),
        ({"policy": "mian"}, "`policy` is `mian`; choose one of main, all"),
        ({"policy": 3}, "`policy` is `3`; choose one of main, all"),
        ({"model.fusion": "sums"}, "`model.fusion` is `sums`; choose one of sum, gated"),
        ({"model.parts": ["face", "body"]}, "`model.parts` is `body`; choose one of face, context"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        config.override(Whole(), changes)


def test_a_config_survives_json_and_absent_options_take_their_defaults():
    changed = config.override(Whole(), {"model.sizes": [7], "name": "faa"})
    stored = json.loads(json.dumps(config.to_dict(changed)))
    assert config.from_dict(Whole, stored) == changed
    assert config.from_dict(Whole, {"model": {"scorer_depth": 2}}).model == Part(scorer_depth=2)
    with pytest.raises(InputError, match="unknown option `nam`; did you mean `name`"):
        config.from_dict(Whole, {"nam": "x"})
    with pytest.raises(InputError, match=r"unknown option `model.dropuot`; did you mean `dropout`"):
        config.from_dict(Whole, {"model": {"dropuot": 0.5}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "mian"}, "`policy` is `mian`; choose one of main, all"),
        ({"policy": None}, "`policy` is `None`; choose one of main, all"),
        ({"model": {"fusion": "sums"}}, "`model.fusion` is `sums`; choose one of sum, gated"),
        ({"model": {"parts": ["body"]}}, "`model.parts` is `body`; choose one of face, context"),
    ],
)
def test_stored_values_that_are_no_choice_are_named(values, message):
    with pytest.raises(InputError, match=message):
        config.from_dict(Whole, values)


def test_choices_and_the_absence_of_one_are_taken():
    values = {"model": {"fusion": None, "parts": ["face", "context"]}, "policy": "all"}
    found = config.from_dict(Whole, values)
    assert found == Whole(model=Part(fusion=None, parts=("face", "context")), policy="all")
    assert config.override(found, {"model.fusion": "gated"}).model.fusion == "gated"
    assert config.override(found, {"model.fusion": None}) == found


def test_the_fingerprint_follows_the_values_and_not_their_order():
    one = config.fingerprint({"a": 1, "b": (2, 3)})
    assert one == config.fingerprint({"b": [2, 3], "a": 1})
    assert one != config.fingerprint({"a": 1, "b": [2, 4]})
    assert len(one) == 16


def test_every_leaf_is_listed():
    assert config.option_names(Whole()) == [
        "model.scorer_depth",
        "model.sizes",
        "model.dropout",
        "model.fusion",
        "model.parts",
        "learning_rate",
        "name",
        "policy",
    ]
