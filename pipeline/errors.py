"""The kinds of fault that a person can cause, each with the exit code of the command."""

from pydantic import ValidationError


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


class DivergedError(GenError):
    """The loss is no longer a number."""

    exit_code = 5


class InterruptedRunError(GenError):
    """A signal asked a training to stop; its state is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def describe(error: ValidationError) -> str:
    """All that is wrong with a configuration, one line a field, in the words of the command line."""
    return "\n".join(_describe_one(str(part["loc"][-1]) if part["loc"] else "", part) for part in error.errors())


def _describe_one(field: str, part: object) -> str:
    details = dict(part)  # type: ignore[call-overload]
    message = str(details["msg"]).removeprefix("Value error, ")
    if not field or details["type"] == "value_error":
        return message
    return f"--{field.replace('_', '-')}: {message.lower()}; got {details['input']!r}"
