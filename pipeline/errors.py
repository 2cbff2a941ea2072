"""The faults that a person can cause, one family of ValueErrors, each with the exit code of the command."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stage1_vqvae import VQVAEError
from stage2_prior import PriorError


class GenError(ValueError):
    """What was wrong, where, and what to do, in one or two lines."""

    exit_code = 2


class UsageError(GenError):
    """Arguments that do not fit together, or a run folder that must not be overwritten."""


class DataError(GenError):
    """Images that are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(GenError):
    """A model folder that is missing, incomplete, damaged, or does not belong to the other stage."""

    exit_code = 4


class WeightsUnavailableError(CheckpointError):
    """A published network, which some figures and one loss need, that cannot be downloaded or is damaged."""


class DivergedError(GenError):
    """The loss is no longer a number."""

    exit_code = 5


class InterruptedRunError(GenError):
    """A signal stopped a command; what it had done is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class ResourceError(GenError):
    """More memory or disk than there is, or a folder that cannot be written to."""

    exit_code = 6


class FolderInUseError(UsageError):
    """A folder that another command is writing into."""

    exit_code = 7


def exit_code(error: BaseException) -> int:
    """What a command exits with that ends with this error."""
    if isinstance(error, GenError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # whoever reads the output has seen enough
        return 128 + signal.SIGPIPE
    return 6 if isinstance(error, OSError) or is_out_of_memory(error) else 1


def was_stopped(error: BaseException) -> bool:
    """Whether a signal, and no fault, ended a command."""
    return isinstance(error, InterruptedRunError | KeyboardInterrupt | SystemExit)


def is_out_of_memory(error: BaseException) -> bool:
    """Also by torch's own errors: of a GPU, and of the CPU's allocator, which has no kind of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def stage_errors_as_usage() -> Iterator[None]:
    """Turn a stage's own errors into UsageError, so that `except GenError` catches all that a caller can cause."""
    try:
        yield
    except (VQVAEError, PriorError) as error:
        raise UsageError(str(error)) from error


def describe(error: ValidationError) -> str:
    """All that is wrong with a configuration, one line a field, in the words of the command line."""
    return "\n".join(_describe_field(details) for details in error.errors())


def _describe_field(details: ErrorDetails) -> str:
    field = str(details["loc"][-1]) if details["loc"] else ""
    message = details["msg"].removeprefix("Value error, ")
    if not field or details["type"] == "value_error":
        return message
    return f"--{field.replace('_', '-')}: {message.lower()}; got {details['input']!r:.200}"
