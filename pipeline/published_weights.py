"""Weights of published networks: downloaded when first used into torch's cache, and checked each time."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from http.client import HTTPException
from pathlib import Path

import torch

from pipeline.errors import WeightsUnavailableError
from pipeline.reporting import Reporter

_SILENCE = 20.0  # seconds without an answer after which a server counts as out of reach


def published_weights(url: str, reporter: Reporter) -> Path:
    """Where the weights of a URL lie in torch's cache, to which they are downloaded unless they are there.

    The end of a file's name is the beginning of its SHA-256, as torch.hub has it, which is checked: neither half a file
    nor another network's is used. Raises WeightsUnavailableError.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    expected = path.stem.rpartition("-")[2]
    if not path.exists():
        reporter.say(f"downloading {url} to {path.parent}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _patience(_SILENCE):
                torch.hub.download_url_to_file(url, str(path), expected, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:  # the last: of a file that is not what its name says
            raise WeightsUnavailableError(
                f"the weights {path.name} cannot be downloaded from {url} ({error}); "
                f"put the file into {path.parent}, or into hub/checkpoints of a folder that TORCH_HOME names"
            ) from error
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise WeightsUnavailableError(
            f"{path} is damaged: its SHA-256 begins with {digest[: len(expected)]}, not with {expected}; "
            f"delete it, and it will be downloaded again from {url}"
        )
    return path


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """How long a connection may be silent; torch.hub, which opens it, would wait for ever."""
    usual = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(seconds)
        yield
    finally:
        socket.setdefaulttimeout(usual)
