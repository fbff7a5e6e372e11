"""The command line of a job: options, exit codes, errors in one sentence."""

import logging
import re
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import ray
import tyro

from caan.errors import InputError, StorageError, redact
from caan.storage.failures import fault_of

logger = logging.getLogger(__name__)

J = TypeVar("J")


def run_job(kind: type[J], main: Callable[[J], int], arguments: list[str] | None = None) -> int:
    """Parse the command line into `kind`, run `main` and give its exit code.

    0 done, 1 failed or below `--min-ok`, 2 bad input (one sentence on stderr).
    """
    job = tyro.cli(kind, args=arguments, description=sys.modules[kind.__module__].__doc__)
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiobotocore.credentials").setLevel(logging.WARNING)  # a line per session
    sys.excepthook = _print_redacted
    try:
        return main(job)
    except InputError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 1
    except ray.exceptions.RayError as error:
        cause = cause_of_ours(error)
        if cause is None:
            raise
        print(f"error: {redact(str(cause))}", file=sys.stderr)
        return 2 if isinstance(cause, InputError) else 1


class _Redacting(logging.Formatter):
    """Log lines without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python prints of an error that nobody handles, without credentials."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def cause_of_ours(error: BaseException) -> BaseException | None:
    """The error of ours that a worker raised, inside Ray's wrappers."""
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
