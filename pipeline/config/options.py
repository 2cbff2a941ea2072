"""Options are written once, as fields of frozen dataclasses; here they are gathered, checked and compared."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from pipeline.errors import CheckpointError, UsageError, describe
from pipeline.formats import read_current

Options: TypeAlias = Mapping[str, object]  # values by name, before the dataclasses have checked them
OptionDict: TypeAlias = dict[str, object]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


def all_fields(config: type) -> dict[str, FieldInfo]:
    """The fields of a configuration."""
    assert is_pydantic_dataclass(config)
    return config.__pydantic_fields__


def option_fields(config: type) -> dict[str, FieldInfo]:
    """The fields of a configuration that are options: all but those that follow from the data."""
    return {
        name: field
        for name, field in all_fields(config).items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("from_data"))
    }


def option_names(*configs: type) -> set[str]:
    """The names of all options of several configurations."""
    return {name for config in configs for name in option_fields(config)}


@overload
def build(options: Options, a: type[A], /, *, derived: Options = ...) -> tuple[A]: ...
@overload
def build(options: Options, a: type[A], b: type[B], /, *, derived: Options = ...) -> tuple[A, B]: ...
@overload
def build(options: Options, a: type[A], b: type[B], c: type[C], /, *, derived: Options = ...) -> tuple[A, B, C]: ...
def build(options: Options, /, *configs: type[A], derived: Options | None = None) -> tuple[A, ...]:
    """One instance of each configuration from flat options, and from what is `derived` from the data.

    Raises UsageError with all that is wrong in any of them, unknown options included.
    """
    built: list[A] = []
    known = option_names(*configs)
    problems = [f"unknown option {name!r}{_suggestion(name, known)}" for name in options if name not in known]
    values = {**options, **(derived or {})}
    for config in configs:
        own = {name: value for name, value in values.items() if name in all_fields(config)}
        try:
            built.append(TypeAdapter(config).validate_python(own))
        except ValidationError as error:
            problems.append(describe(error))
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(built)


def _suggestion(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def flatten(*configs: object) -> OptionDict:
    """Flat options from instances of configurations."""
    return {name: getattr(config, name) for config in configs for name in option_fields(type(config))}


def given(options: Options) -> OptionDict:
    """The options that have a value: None stands for one that was not given."""
    return {name: value for name, value in options.items() if value is not None}


def read_config_file(path: Path, kind: str, *configs: type) -> OptionDict:
    """The options in a config.json that a stage of this kind saved. Raises UsageError."""
    try:
        content = read_current(path)
    except (CheckpointError, OSError) as error:
        raise UsageError(f"--config {path} cannot be read as a saved config.json: {error}") from error
    found = content.get("kind")
    if found != kind:
        raise UsageError(f"--config {path} is of kind {found!r}, and this stage's are {kind!r}; name one of those")
    sections = (content.get(key) for key in ("data", "model", "training", "augmentation"))
    saved = {name: value for section in sections if isinstance(section, dict) for name, value in section.items()}
    return {name: value for name, value in saved.items() if name in option_names(*configs)}


def contradictions(given: Options, saved: Options, free: Iterable[str]) -> list[str]:
    """Options that were given and differ from what a run saved, but for those that may."""
    return [
        f"--{name.replace('_', '-')} {value} contradicts the run, which has {saved[name]}"
        for name, value in given.items()
        if name in saved and value != saved[name] and name not in set(free)
    ]
