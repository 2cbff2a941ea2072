"""Runs of the Hub: what is pushed comes back as it was, checked by its hashes, and nothing else is taken or run."""

import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import CheckpointError, UsageError, generate, generate_files, load, pull, push, train_prior, train_vqvae
from pipeline.data.kept import cache
from tests.pipeline.cli.test_cli import fails, succeeds
from tests.pipeline.runs.published.server import HubServer, commit_name, files_below, hub_server
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

STAGES = {
    f"{stage}/{file}"
    for stage in ("vqvae", "prior/0")
    for file in ("config.json", "model.safetensors", "validation.json", "manifest.json")
}
FILES = STAGES | {"vqvae/split.safetensors", "README.md"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of our own, which HF_ENDPOINT names."""
    with hub_server() as started:
        monkeypatch.setenv("HF_ENDPOINT", started.address)
        yield started


@pytest.fixture
def pushed(trained: Path, server: HubServer) -> HubServer:
    """The same, with the trained run as ann/shapes."""
    push(trained, "ann/shapes")
    return server


def test_what_is_pushed_is_pulled_as_it_was(trained: Path, pushed: HubServer) -> None:
    assert pull("ann/shapes") == Path("runs/shapes")
    there, here = files_below(Path("runs/shapes")), files_below(trained)
    assert there.keys() == FILES
    assert all(there[name] == here[name] for name in FILES - {"README.md"})
    assert 'model = load("runs/shapes")' in there["README.md"].decode()
    assert torch.equal(generate("runs/shapes", 3, seed=1).images, generate(trained, 3, seed=1).images)
    with pytest.raises(UsageError, match="runs/shapes exists already; choose another --out"):
        pull("hf://ann/shapes")
    [commit] = pushed.repositories["ann/shapes"]
    assert commit.keys() == FILES | {"manifest.json"} and json.loads(commit["manifest.json"]).keys() == FILES
    assert 'model = load("hf://ann/shapes")' in commit["README.md"].decode()


def test_the_commands_do_the_same(trained: Path, server: HubServer) -> None:
    assert f"at {server.address}/ann/own; next: gen pull ann/own" in succeeds(
        "push", "ann/own", "--run", trained, "--private"
    )
    assert server.created[-1].get("visibility", server.created[-1].get("private")) in ("private", True)
    assert "wrote mine; next: gen info mine" in succeeds("pull", "ann/own", "--out", "mine")
    assert "verified" in succeeds("info", "mine") and "verified" in succeeds("info", "hf://ann/own")
    output = succeeds("sample", "--run", "hf://ann/own", "--n", 2)
    assert "hf://ann/own" in output and len(list(Path("runs/hf-ann-own/samples/seed-0").glob("0*.png"))) == 2


def test_a_run_is_loaded_by_its_name_and_not_downloaded_twice(trained: Path, pushed: HubServer) -> None:
    model = load("hf://ann/shapes")
    assert repr(model).startswith("Model('hf://ann/shapes': images 1 x 8 x 12")
    assert torch.equal(model.sample(3, seed=1).images, load(trained).sample(3, seed=1).images)
    assert sum(request.startswith("GET") for request in pushed.requests) == len(FILES) + 1
    load(Path("hf://ann/shapes"))
    assert sum(request.startswith("GET") for request in pushed.requests) == len(FILES) + 1
    assert cache.size_of(cache.hub_folder()) > 10_000
    succeeds("cache", "--clear")
    assert not cache.hub_folder().exists()


def test_a_run_that_was_downloaded_serves_without_a_network(pushed: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generate("hf://ann/shapes", 2).images
    pushed.shutdown()
    pushed.server_close()
    assert torch.equal(generate("hf://ann/shapes", 2).images, first)
    with pytest.raises(CheckpointError, match=r"ann/other is not in the cache, and http://127.0.0.1:[0-9]+ cannot be"):
        load("hf://ann/other")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_was_tampered_with_is_refused_by_name(pushed: HubServer, name: str) -> None:
    [commit] = pushed.repositories["ann/shapes"]
    whole = commit[name]
    commit[name] = whole[:-1] + bytes([whole[-1] ^ 1])
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=f"{name} of ann/shapes is not the file that was published: its sha256"
        ):
            load("hf://ann/shapes")
    assert re.search(f"gen: error: {name} of ann/shapes", fails(4, "pull", "ann/shapes"))
    assert not Path("runs").exists()
    commit[name] = whole
    assert len(load("hf://ann/shapes").priors) == 1


def test_a_file_that_is_missing_is_named(pushed: HubServer) -> None:
    del pushed.repositories["ann/shapes"][0]["prior/0/model.safetensors"]
    with pytest.raises(CheckpointError, match=r"ann/shapes lacks prior/0/model.safetensors, which its manifest.json"):
        load("hf://ann/shapes")


def test_files_of_no_run_are_left_where_they_are(pushed: HubServer) -> None:
    [commit] = pushed.repositories["ann/shapes"]
    listed = json.loads(commit["manifest.json"])
    names = ("setup.py", "../../out.json", "vqvae/../../../out.json", "vqvae/x.bin")
    others = {name: {"bytes": 1, "sha256": "0"} for name in names}
    commit["manifest.json"] = json.dumps(listed | others).encode()
    commit |= dict.fromkeys(others, b"import os")
    pull("ann/shapes")
    assert files_below(Path("runs/shapes")).keys() == FILES
    assert not {
        request for request in pushed.requests if "setup" in request or "out.json" in request or "x.bin" in request
    }


def test_a_revision_is_a_commit_that_stays(trained: Path, pushed: HubServer) -> None:
    first, original = commit_name("ann/shapes", 1), dict(pushed.repositories["ann/shapes"][0])
    pushed.commit("ann/shapes", {"vqvae/config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"vqvae/config.json of ann/shapes is not the file"):
        pull("ann/shapes")
    assert files_below(pull("ann/shapes", "then", revision=first))["vqvae/config.json"] == original["vqvae/config.json"]
    assert load(f"hf://ann/shapes@{first}").run.called == f"hf://ann/shapes@{first}"
    with pytest.raises(CheckpointError, match=r"ann/shapes at .* has no revision older"):
        pull("ann/shapes", "other", revision="older")
    for name in ("pretrained:digits", f"ann/shapes@{first}"):
        with pytest.raises(UsageError, match="--revision main is of a repository of the Hub, named by USER/NAME"):
            pull(name, "other", revision="main")


@pytest.mark.parametrize(
    "files", [{}, {"model.bin": b"weights"}, {"manifest.json": b'{"README.md": {"bytes": 1, "sha256": ""}}'}]
)
def test_a_repository_without_a_run_is_said_to_hold_none(server: HubServer, files: dict[str, bytes]) -> None:
    server.commit("ann/empty", files)
    with pytest.raises(CheckpointError, match=r"ann/empty holds no run: it has no manifest.json that lists one"):
        pull("ann/empty")


def test_a_manifest_that_is_none_is_named(server: HubServer) -> None:
    server.commit("ann/odd", {"manifest.json": b"[]"})
    with pytest.raises(CheckpointError, match=r"manifest.json holds a list, not an object"):
        pull("ann/odd")


def test_names_of_no_repository_are_refused(server: HubServer) -> None:
    assert "there is no repository ann/none at http" in fails(4, "pull", "ann/none")
    for name in ("shapes", "a/b/c", "ann/", "a b/c", "../c", "ann/x--y"):
        assert re.search(
            "is named USER/NAME; got|can be no repository of the Hub", fails(2, "pull", name, "--out", "new")
        )
    assert "is named USER/NAME; got" in fails(2, "push", "shapes", "--run", "run")
    assert [request for request in server.requests if "none" not in request] == []


def test_without_a_network_there_is_a_sentence(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # and nobody listens
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert f"ann/shapes is not in the cache, and {address} cannot be reached; connect" in fails(
            4, "pull", "ann/shapes"
        )
        assert f"downloading or publishing ann/shapes at {address} failed" in fails(
            4, "push", "ann/shapes", "--run", trained
        )


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else found(name))
    for command in (["pull", "ann/shapes"], ["push", "ann/shapes", "--run", trained], ["info", "hf://ann/shapes"]):
        assert "need huggingface_hub: pip install 'gen-images[hub]'" in fails(2, *command)


def test_a_published_run_is_not_written_into(pushed: HubServer) -> None:
    images, targets = shapes()
    generate_files("hf://ann/shapes", n=2)
    train_prior("hf://ann/shapes", out="mine", images=images, targets=targets, **TINY_PRIOR)
    begun = train_vqvae(out="begun", init="hf://ann/shapes", images=images, **{**TINY_VQVAE, "steps": 1})
    assert json.loads((begun.run / "vqvae/config.json").read_text())["init"]["run"] == "hf://ann/shapes"
    for command in (["train-prior"], ["sharpen"], ["evaluate"]):
        message = fails(2, *command, "hf://ann/shapes")
        assert (
            "is a published run, which is not written into; copy it" in message
            and "gen pull hf://ann/shapes" in message
        )
    assert "name a file with --out" in fails(2, "report", "hf://ann/shapes")
    [snapshot] = cache.hub_folder().glob("models--*/snapshots/*")
    assert files_below(snapshot).keys() == FILES | {"manifest.json"}
    assert not list(cache.hub_folder().rglob(".lock")) and len(generate("mine", 2)) == 2
