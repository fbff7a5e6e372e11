"""Search spaces: which options of a training run to vary, read from YAML and checked.

A space names dotted options of jobs.train; each has a list of values or a sampler:

    model.scorer_depth: [1, 2, 3]
    train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}
"""

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from caan.errors import InputError

SAMPLERS = ("choice", "uniform", "loguniform", "randint")

UNCOPYABLE = ("train.seed", "train.epochs", "train.optimizer", "train.checkpoint_every_epochs")
"""Options of training that cannot change while a trial runs."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One option that a search varies."""

    option: str
    """Dotted name, as `model.scorer_depth`."""
    sampler: str
    """One of SAMPLERS; a list in the file is a choice."""
    values: tuple[Any, ...]
    """The choices; else the lowest value and the bound above (randint never reaches it)."""

    @property
    def is_choice(self) -> bool:
        """Whether its values are listed, so that a grid can try all."""
        return self.sampler == "choice"

    def extremes(self) -> tuple[Any, ...]:
        """The values to check: if they are allowed, all are."""
        if self.sampler == "randint":
            return (self.values[0], self.values[1] - 1)
        return self.values


def parse_space(text: str, name: str) -> tuple[Axis, ...]:
    """The axes of a space from its YAML text; `name` stands in the errors.

    Raises:
        InputError: no YAML mapping, an option without values, or an unknown or impossible sampler.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"space `{name}` is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"space `{name}` must name options, as `model.scorer_depth: [1, 2, 3]`")
    return tuple(_axis(str(option), values, name) for option, values in content.items())


def _axis(option: str, given: Any, name: str) -> Axis:
    where = f"space `{name}`, option `{option}`"
    option = option.replace("-", "_")
    if isinstance(given, list):
        given = {"choice": given}
    if not isinstance(given, dict) or len(given) != 1:
        raise InputError(
            f"{where} is {given!r}: give a list of values or one of {', '.join(SAMPLERS)}, as "
            "`{uniform: [0.1, 1.0]}`"
        )
    sampler, values = next(iter(given.items()))
    if sampler not in SAMPLERS:
        close = difflib.get_close_matches(str(sampler), SAMPLERS, n=1, cutoff=0.4)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(SAMPLERS)}"
        raise InputError(f"{where}: unknown sampler `{sampler}`; {hint}")
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: `{sampler}` takes a list of values, and {values!r} is none")
    values = [_number(value) for value in values]
    if sampler == "choice":
        return Axis(option=option, sampler=sampler, values=tuple(values))
    kinds = int if sampler == "randint" else (int, float)
    is_range = len(values) == 2 and all(
        isinstance(value, kinds) and not isinstance(value, bool) for value in values
    )
    if not is_range or not values[0] < values[1]:
        what = "two whole numbers" if sampler == "randint" else "two numbers"
        raise InputError(f"{where}: `{sampler}` takes {what}, the lower first, not {values}")
    if sampler == "loguniform" and values[0] <= 0:
        raise InputError(f"{where}: `loguniform` takes numbers above 0, not {values}")
    low_high = values if sampler == "randint" else [float(value) for value in values]
    return Axis(option=option, sampler=sampler, values=tuple(low_high))


def _number(value: Any) -> Any:
    """A number from text such as `1e-5`, which YAML reads as text; other values as they are."""
    if isinstance(value, str) and value[:1] in "0123456789.-+":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def check_space(
    axes: Sequence[Axis], configure: Callable[[Mapping[str, Any]], Any], name: str
) -> None:
    """Try every listed value and both ends of every range, each with the others' first values.

    `configure` makes a run's configuration of some options and raises InputError where it cannot.

    Raises:
        InputError: an unknown option (with the nearest name), or a value that it does not take.
    """
    first = {axis.option: axis.values[0] for axis in axes}
    for axis in axes:
        for value in axis.extremes():
            try:
                configure({**first, axis.option: value})
            except InputError as error:
                raise InputError(f"space `{name}`: {error}") from error


def grid_size(axes: Sequence[Axis]) -> int:
    """Number of trials of a full grid.

    Raises:
        InputError: an option is sampled and has no list of values.
    """
    for axis in axes:
        if not axis.is_choice:
            raise InputError(
                f"a grid needs lists of values, and `{axis.option}` has `{axis.sampler}`: list its "
                "values, or choose --searcher random"
            )
    return len(list(itertools.product(*(axis.values for axis in axes))))


def check_population(axes: Sequence[Axis]) -> None:
    """Refuse options that a population (pbt) cannot vary.

    Raises:
        InputError: an option of the head, or one that is fixed once training has begun.
    """
    for axis in axes:
        if not axis.option.startswith("train.") or axis.option in UNCOPYABLE:
            raise InputError(
                f"--scheduler pbt cannot vary `{axis.option}`: its trials copy each other's weights"
                " and go on with other options, so only those that may change in mid-training "
                "(learning rate, losses) can vary"
            )


def max_concurrent(
    *, num_cpus: float, num_gpus: float, cpus_per_trial: float, gpus_per_trial: float
) -> int:
    """Number of trials that run side by side on a cluster of this size, at least 1.

    Raises:
        InputError: not even one fits, or a trial asks for no CPU.
    """
    if cpus_per_trial <= 0 or gpus_per_trial < 0:
        raise InputError(
            f"a trial asks for {cpus_per_trial:g} CPUs and {gpus_per_trial:g} GPUs; give it more "
            "than 0 CPUs and at least 0 GPUs"
        )
    fitting = int(num_cpus / cpus_per_trial + 1e-9)
    if gpus_per_trial > 0:
        fitting = min(fitting, int(num_gpus / gpus_per_trial + 1e-9))
    if fitting < 1:
        raise InputError(
            f"a trial asks for {cpus_per_trial:g} CPUs and {gpus_per_trial:g} GPUs, and the "
            f"cluster has {num_cpus:g} and {num_gpus:g}: lower --cpus-per-trial, "
            "--gpus-per-trial or --workers-per-trial"
        )
    return fitting
