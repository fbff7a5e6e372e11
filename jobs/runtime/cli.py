"""The command line shared by all jobs: options, help, exit codes, errors in one sentence.

How a job file is written, so that `python -m jobs.X --help` starts in a second:

- At module level it imports the standard library, `caan.errors`, `caan.<package>.config`,
  `jobs.runtime.options` and this module. Ray, torch and everything that loads them are imported
  inside `main`.
- It holds a frozen dataclass `Job` and `main(job) -> int`, which reads as a recipe.
- Its docstring says in the first line what the job does, then gives an example command. Both are
  printed by `--help`.
- Choices are `Literal`, so that the command line checks them.
- A job of more than ten options names those that most people need, the required ones first:
  `cli.run_job(Job, main, first=("manifest", "output", "train.epochs"))`. `--help` shows these,
  `--help-all` shows all. A name with a dot is an option of a nested config.
"""

import copy
import dataclasses
import logging
import re
import sys
import traceback
import typing
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any, TypeVar

from caan.errors import InputError, StorageError, redact

logger = logging.getLogger(__name__)

J = TypeVar("J")


def run_job(
    kind: type[J],
    main: Callable[[J], int],
    arguments: list[str] | None = None,
    *,
    first: tuple[str, ...] = (),
) -> int:
    """Parse the command line into `kind`, run `main` and give its exit code.

    0 done, 1 failed or below `--min-ok`, 2 bad input (one sentence on stderr). `first` names the
    options that `--help` shows; empty: all of them.
    """
    job = _parse(kind, sys.argv[1:] if arguments is None else arguments, first)
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiobotocore.credentials").setLevel(logging.WARNING)  # a line per session
    sys.excepthook = _print_redacted
    try:
        return main(job)
    except Exception as error:  # Ray's wrappers of our errors have types of Ray, not imported here
        cause = _told_cause(error)
        if cause is None:
            raise
        print(f"error: {redact(str(cause))}", file=sys.stderr)
        return 2 if isinstance(cause, InputError) else 1


def _parse(kind: type[J], arguments: list[str], first: tuple[str, ...]) -> J:
    import tyro  # 0.1 s that a module which only names `run_job` need not pay

    module = sys.modules[kind.__module__]
    name = module.__spec__.name if module.__spec__ else kind.__module__
    prog = f"python -m {name}"
    # Tyro joins lines of a paragraph; each example command stays a line of its own.
    description = re.sub(r"(?<!\n)\n(?=python -m )", "\n\n", module.__doc__ or "")
    shown: type[Any] = kind
    if "--help-all" in arguments:
        arguments = ["--help"]
    elif first and {"-h", "--help"} & set(arguments):
        shown = _showing(kind, first)
    try:
        job: J = tyro.cli(shown, prog=prog, args=arguments, description=description)
    except SystemExit:
        if shown is not kind:
            print(f"These are the options that most people need; all: {prog} --help-all")
        raise
    return job


def _showing(kind: type[Any], first: tuple[str, ...]) -> type[Any]:
    """`kind` for the help page: the options `first` in this order, the others hidden."""
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: copy.copy(field) for field in dataclasses.fields(kind)}
    names = dict.fromkeys(option.partition(".")[0] for option in first)
    types: dict[str, Any] = {}
    for name in fields:
        inner = tuple(o.partition(".")[2] for o in first if o.startswith(f"{name}."))
        if inner:
            part: Any = _showing(hints[name], inner)
            types[name] = fields[name].default_factory = part
        elif name not in names:
            types[name] = Annotated[hints[name], tyro.conf.Suppress]
    members = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__annotations__": types,
        "__dataclass_fields__": {name: fields[name] for name in (*names, *fields)},
    }
    return type(kind.__name__, (kind,), members)


class _Redacting(logging.Formatter):
    """Log lines without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error that nobody handles as Python does, without credentials."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _told_cause(error: Exception) -> BaseException | None:
    """The error to tell in one sentence: ours, or ours inside one of Ray's; else None."""
    if isinstance(error, InputError | StorageError):
        return error
    if "ray" not in sys.modules:
        return None
    from ray.exceptions import RayError

    return cause_of_ours(error) if isinstance(error, RayError) else None


def cause_of_ours(error: BaseException) -> BaseException | None:
    """The error of ours that a worker raised, inside Ray's wrappers; None: there is none."""
    from caan.storage.failures import fault_of  # loads PyArrow, which --help does without

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, InputError | StorageError):
            return found
        if isinstance(found, OSError) and (fault := fault_of(found)):
            return fault
        inner = getattr(found, "cause", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__
    # Where Ray Data wraps and pickles what a stage raised, only its text remains.
    texts = re.findall(r"^caan\.errors\.(StorageError|InputError): (.+)$", str(error), re.MULTILINE)
    kinds = {"StorageError": StorageError, "InputError": InputError}
    return kinds[texts[-1][0]](texts[-1][1]) if texts else None
