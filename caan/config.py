"""Convert config dataclasses to and from JSON, change options by dotted name, fingerprint them."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from caan.errors import InputError, redact

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a config dataclass, as JSON can hold them, without credentials."""
    return json.loads(redact(json.dumps(dataclasses.asdict(config), default=str)))


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """A config of `kind` from nested plain values; absent fields take their defaults.

    Raises:
        InputError: a key that `kind` does not have, with the nearest name, or a value that is none
            of its choices.
    """
    return _from_dict(kind, values, "")


def _from_dict(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """As `from_dict`, for the options that begin with `prefix`, such as `model.`."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise InputError(f"unknown option `{prefix}{key}`{_nearest(key, names)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = _from_dict(typing.cast(type, hint), value, f"{prefix}{key}.")
        elif isinstance(value, list):
            value = tuple(value)
        check_choice(prefix + key, value, hint)
        arguments[key] = value
    return kind(**arguments)


def part(kind: type[T], config: Any, /, **changes: Any) -> T:
    """A config of `kind` from the fields of the same names in `config`, and these changes."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return kind(**(shared | changes))


def override(config: T, changes: Mapping[str, Any]) -> T:
    """`config` with dotted options replaced: `override(c, {"model.scorer_depth": 3})`.

    Raises:
        InputError: an option that does not exist (with the nearest name), or of another type.
    """
    for dotted, value in changes.items():
        config = _override_one(config, dotted.replace("-", "_"), dotted.replace("-", "_"), value)
    return config


def _override_one(config: Any, path: str, whole: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        prefix = whole.removesuffix(path)
        raise InputError(f"unknown option `{whole}`{_nearest(whole, option_names(config, prefix))}")
    old = getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise InputError(f"unknown option `{whole}`: `{name}` has no parts")
        return dataclasses.replace(config, **{name: _override_one(old, rest, whole, value)})
    hint = typing.get_type_hints(type(config))[name]
    if isinstance(value, list):
        value = tuple(value)
    kinds = _kinds(hint)
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    check_choice(whole, value, hint)
    if type(value) not in kinds:
        takes = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"option `{whole}` takes {takes}, and {value!r} is {type(value).__name__}")
    return dataclasses.replace(config, **{name: value})


def check_choice(option: str, value: Any, hint: Any) -> None:
    """Check a value of an option whose type `hint` is or holds a `Literal`.

    Raises:
        InputError: it is none of the choices; names the option, the value and the choices.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, tuple):
        for item in value:
            check_choice(option, item, arguments[0])
        return
    parts = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    literals = [part for part in parts if typing.get_origin(part) is typing.Literal]
    choices = [choice for part in literals for choice in typing.get_args(part)]
    others = {kind for part in parts if part not in literals for kind in _kinds(part)}
    if choices and value not in choices and type(value) not in others:
        names = ", ".join(map(str, choices))
        raise InputError(f"option `{option}` is `{value}`; choose one of {names}")


def _kinds(hint: Any) -> set[type]:
    """The classes that a field of this type hint holds."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return {kind for part in typing.get_args(hint) for kind in _kinds(part)}
    if typing.get_origin(hint) is typing.Literal:
        return {type(choice) for choice in typing.get_args(hint)}
    return {typing.get_origin(hint) or hint}


def option_names(config: Any, prefix: str = "") -> list[str]:
    """All dotted option names of a config, leaves only."""
    names: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += option_names(value, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; did you mean `{close[0]}`?" if close else f"; there are {', '.join(names)}"


def fingerprint(values: Mapping[str, Any]) -> str:
    """16 hex digits that change when any of these plain values does."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
