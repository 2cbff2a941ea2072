"""Publish a run on the Hugging Face Hub: what `gen push` calls."""

import tempfile
from pathlib import Path

from pipeline.reporting import Reporter, Silent
from pipeline.runs.layout import CARD
from pipeline.runs.opening import open_run
from pipeline.runs.published.files import copy_run
from pipeline.runs.published.hub import check_repository, client, hub_errors
from pipeline.storage import MANIFEST, write_manifest

_METADATA = (
    "---\nlibrary_name: gen-images\ntags:\n- vq-vae\n- image-generation\n---\n\n"  # by which the Hub sorts models
)


def push(run: str | Path | None, repository: str, *, private: bool = False, reporter: Reporter | None = None) -> str:
    """Put a run (a folder, or by default the newest) into a repository USER/NAME of the Hub; return its address.

    What loading and sampling need is uploaded, in one commit, with a manifest.json of all files by which `pull` checks
    them; no checkpoints, codes or metrics. The repository is made unless there is one, for everybody or `private`.
    huggingface_hub knows who you are (`hf auth login`, or HF_TOKEN). Tried against a server of our own, never yet
    against the Hub itself. Raises UsageError, and CheckpointError also where the Hub refuses.
    """
    check_repository(repository)
    api, opened = client(), open_run(run, "finished")
    from huggingface_hub import CommitOperationAdd

    with tempfile.TemporaryDirectory(prefix="gen-push-") as name:
        folder = Path(name)
        copy_run(opened, folder, f"hf://{repository}")
        _add_metadata(folder / CARD)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        write_manifest(folder, files)
        added = [CommitOperationAdd(file, folder / file) for file in (*files, MANIFEST)]
        (reporter or Silent()).say(f"uploading {len(added)} files of {opened.called} to {repository}")
        with hub_errors(repository):
            address = str(api.create_repo(repository, private=private or None, exist_ok=True))
            api.create_commit(repository, added, commit_message="A run of gen (gen-images)")
    return address


def _add_metadata(card: Path) -> None:
    text = card.read_bytes() if card.exists() else b""
    if not text.startswith(b"---"):
        card.write_bytes(_METADATA.encode() + text)
