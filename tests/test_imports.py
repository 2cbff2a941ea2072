"""The stages know neither each other nor the pipeline, and no code of ours reads or writes a pickle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("stage1_vqvae", "stage2_prior", "pipeline")


def imports(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).split(".")[0])
    return names


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("stage1_vqvae", {"stage2_prior", "pipeline"}),
        ("stage2_prior", {"stage1_vqvae", "pipeline"}),
    ],
)
def test_a_stage_imports_neither_the_other_nor_the_pipeline(package: str, forbidden: set[str]) -> None:
    for path in files(package):
        assert not imports(path) & forbidden, path


@pytest.mark.parametrize("package", ["stage1_vqvae", "stage2_prior"])
def test_a_stage_touches_no_file_no_argument_and_no_process(package: str) -> None:
    for path in files(package):
        assert not imports(path) & {
            "os",
            "sys",
            "pathlib",
            "io",
            "click",
            "accelerate",
            "safetensors",
            "json",
        }, path
        called = {
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert not called & {"open", "print", "input"}, path


def test_nothing_is_pickled() -> None:
    for path in (path for package in PACKAGES for path in files(package)):
        assert not imports(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        attributes = {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert not attributes & {
            "torch.load",
            "torch.save",
            "accelerator.save_state",
            "accelerator.load_state",
        }, path
