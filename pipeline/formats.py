"""The version of the JSON files of a run folder, and what turns those of an older one into those of today."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.errors import CheckpointError
from pipeline.storage import JsonObject, read_json

FORMAT_VERSION: Final = 8  # every later version reads this one, and those from 4 on


def read_current(path: Path) -> JsonObject:
    """A JSON file that has a `format_version`, as today's version would have written it.

    Raises CheckpointError when it is missing, no JSON object, or of a version that cannot be read.
    """
    content = read_json(path)
    version = content.get("format_version")
    while isinstance(version, int) and version in _MIGRATIONS:
        content = _MIGRATIONS[version](content) | {"format_version": version + 1}
        version += 1
    if version != FORMAT_VERSION:
        older = "; train the run anew, or read it with the version of gen that wrote it" if version in (1, 2, 3) else ""
        raise CheckpointError(
            f"{path} has format_version {version}; this version reads {min(_MIGRATIONS)} to {FORMAT_VERSION}{older}"
        )
    return content


def _from_4(content: JsonObject) -> JsonObject:
    """Of stage 1, `adversarial` has become an objective, and large JPEGs were not decoded at a smaller size."""
    model, data = content.get("model"), content.get("data")
    if content.get("kind") != "vqvae" or not isinstance(model, dict) or not isinstance(data, dict):
        return content
    others = {name: value for name, value in model.items() if name != "adversarial"}
    sharp = model.get("adversarial") is True
    added = {"objective": "sharp", "adversarial_start": 0.3} if sharp else {"objective": "nmse"}
    return content | {"model": {**added, **others}, "data": {**data, "draft": False}}


def _from_5(content: JsonObject) -> JsonObject:
    """A discriminator had the learning rate of all else."""
    part = {"vqvae": "model", "decoder": "objective"}.get(str(content.get("kind")), "")
    options = content.get(part)
    if not isinstance(options, dict) or options.get("objective") == "nmse":
        return content
    return content | {part: {"discriminator_rate": 1.0, **options}}


def _from_6(content: JsonObject) -> JsonObject:
    """Transformers were normalised in another way, with weights of the same names."""
    model = content.get("model")
    if content.get("kind") != "prior" or not isinstance(model, dict):
        return content
    return content | {"model": {"normalisation": "rms", **model}}


def _from_7(content: JsonObject) -> JsonObject:
    """Codes were not counted while they were extracted."""
    return {"unigram_nats": {}, **content} if content.get("kind") == "codes" else content


_MIGRATIONS: Mapping[int, Callable[[JsonObject], JsonObject]] = MappingProxyType(
    {4: _from_4, 5: _from_5, 6: _from_6, 7: _from_7}
)
