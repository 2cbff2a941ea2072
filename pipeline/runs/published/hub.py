"""Runs of the Hugging Face Hub, or of a server that HF_ENDPOINT names, through huggingface_hub, checked by hashes."""

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tqdm import tqdm

from pipeline.data.kept.cache import HUB, alone_with, hub_folder
from pipeline.errors import CheckpointError, UsageError
from pipeline.reporting import Silent
from pipeline.resources import check_disk
from pipeline.runs.layout import CARD, CONFIG, SPLIT, VALIDATION, WEIGHTS
from pipeline.storage import MANIFEST, read_manifest, sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_STAGE = "|".join(map(re.escape, (CONFIG, WEIGHTS, VALIDATION, SPLIT, MANIFEST)))
_OF_A_RUN = re.compile(
    rf"{re.escape(CARD)}|evaluation(-judge-\d+)?\.json|(vqvae|vqvae/decoders/\w+|prior/\d+)/({_STAGE})"
)


_NO_BAR = functools.partial(tqdm, disable=True)  # the library draws a bar a file unless it is given another kind


def client() -> "HfApi":
    """The client of the Hub. Raises UsageError where huggingface_hub is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError("runs of the Hub need huggingface_hub: pip install 'gen-images[hub]'")
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # now: the library looks when it is imported


def check_repository(repository: str) -> None:
    """Raise UsageError unless this can be the name of a repository."""
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"a repository of the Hub is named USER/NAME; got {repository!r:.100}")


def downloaded(repository: str, revision: str | None) -> Path:
    """The folder of a run of the Hub, in the cache: what its manifest lists, each file checked by its hash.

    `revision`: a branch, a tag or a commit; by default the newest commit. Files that are in the cache are not
    downloaded again, and serve where there is no network. Files of no run are left where they are. Raises UsageError,
    CheckpointError where there is no such run, it cannot be reached or is damaged, and ResourceError.
    """
    check_repository(repository)
    with alone_with(HUB, Silent(), "downloading from the Hub"), hub_errors(repository, revision):
        is_reached = _is_reached(repository, revision)
        folder = _download(repository, MANIFEST, revision, is_reached=is_reached).parent
        files = {name: file for name, file in read_manifest(folder).items() if _OF_A_RUN.fullmatch(name)}
        if f"vqvae/{MANIFEST}" not in files:
            raise _holds_no_run(repository)
        check_disk(hub_folder(), sum(file.bytes for file in files.values()), f"downloading {repository}", "make room")
        for name, expected in files.items():
            path = _download(repository, name, folder.name, is_reached=is_reached)  # named by its commit
            actual = sha256(path)
            if actual != expected.sha256:
                path.resolve().unlink()  # what the name in the snapshot points to
                path.unlink(missing_ok=True)
                raise CheckpointError(
                    f"{name} of {repository} is not the file that was published: its sha256 is {actual[:12]}, and "
                    f"{MANIFEST} says {expected.sha256[:12]}; try again, or ask who published it"
                )
    return folder


def _is_reached(repository: str, revision: str | None) -> bool:
    """Whether the Hub answers, without the half minute that the library would go on trying.

    Raises CheckpointError where it says that there is no run.
    """
    api = client()
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    url = hf_hub_url(repository, MANIFEST, revision=revision, endpoint=api.endpoint)
    try:
        api.get_hf_file_metadata(url=url)
    except EntryNotFoundError as error:
        raise _holds_no_run(repository) from error
    except HfHubHTTPError:  # it was reached, and refused
        raise
    except _http_errors():
        return False
    return True


def _download(repository: str, name: str, revision: str | None, *, is_reached: bool) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = client().hf_hub_download(
            repository,
            name,
            revision=revision,
            cache_dir=hub_folder(),
            local_files_only=not is_reached,
            tqdm_class=cast("type[tqdm]", _NO_BAR),  # anything will do that makes one
        )
    except LocalEntryNotFoundError:  # an EntryNotFoundError too
        raise
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repository} lacks {name}, which its {MANIFEST} lists") from error
    return Path(path)


def _holds_no_run(repository: str) -> CheckpointError:
    return CheckpointError(f"{repository} holds no run: it has no {MANIFEST} that lists one, as `gen push` writes it")


def _http_errors() -> tuple[type[Exception], ...]:
    """The errors of the HTTP library that this version of huggingface_hub stands on, and the system's."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))


@contextmanager
def hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into CheckpointErrors that say what to do."""
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        yield
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository} at {where} has no revision {revision}; leave it out, or name another"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no repository {repository} at {where}, or it is not for everybody: then log in with "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repository} is not in the cache, and {where} cannot be reached; connect to the network, or name a run "
            "by its path"
        ) from error
    except HFValidationError as error:
        raise UsageError(f"{repository} can be no repository of the Hub: {error}") from error
    except _http_errors() as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"downloading or publishing {repository} at {where} failed: {reason}") from error
