"""Options are written once, as fields of frozen dataclasses; here they become flags, and dataclasses again."""

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import CheckpointError, UsageError, describe
from pipeline.storage import read_json

Command = TypeVar("Command", bound=Callable[..., Any])


def option_fields(config: type) -> dict[str, FieldInfo]:
    """The fields of a configuration that are options: all but those that follow from the data."""
    return {
        name: field
        for name, field in config.__pydantic_fields__.items()  # type: ignore[attr-defined]
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("from_data"))
    }


def build(configs: Iterable[type], options: Mapping[str, Any], derived: Mapping[str, Any]) -> list[Any]:
    """One instance of each configuration from flat options. Raises UsageError with all that is wrong in any of them."""
    built, problems = [], []
    classes = list(configs)
    known = {name for config in classes for name in option_fields(config)}
    problems += [f"unknown option {name!r}" for name in options if name not in known]
    for config in classes:
        fields = config.__pydantic_fields__  # type: ignore[attr-defined]
        given = {name: value for name, value in {**options, **derived}.items() if name in fields}
        try:
            built.append(config(**given))
        except ValidationError as error:
            problems.append(describe(error))
    if problems:
        raise UsageError("\n".join(problems))
    return built


def flatten(*configs: Any) -> dict[str, Any]:
    """Flat options from instances of configurations."""
    return {name: getattr(config, name) for config in configs for name in option_fields(type(config))}


def read_config_file(path: Path, kind: str, configs: Iterable[type]) -> dict[str, Any]:
    """The options in a config.json that a stage of this kind saved. Raises UsageError."""
    try:
        content = read_json(path)
        found = content.get("kind")
        saved = {
            name: value
            for key in ("data", "model", "training", "augmentation")
            for name, value in content.get(key, {}).items()
        }
    except (CheckpointError, OSError, AttributeError) as error:
        raise UsageError(f"--config {path} cannot be read as a saved config.json: {error}") from error
    if found != kind:
        raise UsageError(f"--config {path} is of kind {found!r}, and this stage's are {kind!r}; name one of those")
    known = {name for config in configs for name in option_fields(config)}
    return {name: value for name, value in saved.items() if name in known}


def contradictions(given: Mapping[str, Any], saved: Mapping[str, Any], free: Iterable[str]) -> list[str]:
    """Options that were given and differ from what a run saved, but for those that may."""
    return [
        f"--{name.replace('_', '-')} {value} contradicts the run, which has {saved[name]}"
        for name, value in given.items()
        if name in saved and value != saved[name] and name not in set(free)
    ]


def flags(
    *configs: type, preset: Mapping[str, Any] | None = None, without: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """A decorator that gives a command one flag for each option; a flag that is not given arrives as None.

    `preset`: defaults that the help shows in place of the fields' own; `without`: fields that get no flag.
    """
    fields = [
        (name, field, get_type_hints(config)[name])
        for config in configs
        for name, field in option_fields(config).items()
        if name not in set(without)
    ]
    made = [_flag(name, field, hint, (preset or {}).get(name, field.default)) for name, field, hint in fields]
    return lambda command: functools.reduce(lambda done, option: option(done), reversed(made), command)


def _flag(name: str, field: FieldInfo, hint: Any, default: Any) -> Callable[[Command], Command]:
    dashed = name.replace("_", "-")
    declaration = f"--{dashed}/--no-{dashed}" if hint is bool else f"--{dashed}"
    shown = "" if default is None else f"  [default: {_shown(default)}]"
    return click.option(declaration, name, default=None, type=_click_type(hint), help=f"{field.description}{shown}")


def _shown(default: Any) -> str:
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def _click_type(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    return hint
