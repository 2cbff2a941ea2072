"""Who may know whom: the stages neither each other nor the pipeline; and no code of ours reads or writes a pickle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parent.parent
PACKAGES = ("stage1_vqvae", "stage2_prior", "pipeline")

# What each room of the pipeline may import of the others; files outside the rooms are open to all.
ROOMS = {
    "config": set(),
    "data": {"config"},
    "runs": {"config", "data"},
    "training": {"config", "data", "runs"},
    "sampling": {"config", "data", "runs"},
    "codec": {"config", "data", "runs", "sampling"},
    "evaluation": {"config", "data", "runs", "training", "sampling"},
    "serving": {"config", "data", "runs", "training", "sampling", "evaluation"},
    "cli": {"config", "data", "runs", "training", "sampling", "codec", "evaluation", "serving"},
}


def modules(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def imports(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports."""
    return {name.split(".")[0] for name in modules(path)}


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


def test_the_loop_knows_neither_stage() -> None:
    for path in files("pipeline/training/loop"):
        assert not imports(path) & {"stage1_vqvae", "stage2_prior"}, path
        of_training = {name for name in modules(path) if name.startswith("pipeline.training.")}
        assert all(name.startswith("pipeline.training.loop") for name in of_training), path


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


def test_every_room_of_the_pipeline_has_its_rule() -> None:
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/*.py")}
    assert folders == set(ROOMS)


def test_the_pipeline_does_not_import_its_own_exports() -> None:
    """They would lead from any room to any other, past the rules."""
    exports = {f"pipeline.{name}" for names in pipeline._EXPORTS.values() for name in names}
    for path in (path for path in files("pipeline") if path != ROOT / "pipeline" / "__init__.py"):
        assert not modules(path) & exports, path


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    for path in files(f"pipeline/{room}"):
        known = {name.split(".")[1] for name in modules(path) if name.startswith("pipeline.")}
        assert known & set(ROOMS) <= ROOMS[room] | {room}, path


def test_what_lies_outside_the_rooms_imports_none_but_options() -> None:
    for path in (ROOT / "pipeline").glob("[!_]*.py"):
        known = {name.split(".")[1] for name in modules(path) if name.startswith("pipeline.")}
        assert known & set(ROOMS) <= {"config"}, path


def loaded_after(statement: str) -> set[str]:
    """The modules of ours that a statement brings into a new interpreter."""
    show = "import sys; print(*(name for name in sys.modules if name.partition('.')[0] in sys.argv[1:]))"
    command = [sys.executable, "-c", f"{statement}\n{show}", *PACKAGES]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_drawing_images_loads_nothing_of_training() -> None:
    loaded = loaded_after("from pipeline import load, generate")
    assert "pipeline.sampling.generate" in loaded
    assert not [
        name for name in loaded if name.startswith(("pipeline.training", "pipeline.evaluation", "pipeline.cli"))
    ]
    assert "pipeline.training.loop.trainer" in loaded_after("from pipeline import train_vqvae")
    assert loaded_after("import pipeline") == {"pipeline"}


def test_exports_are_those_that_a_type_checker_sees() -> None:
    tree = ast.parse((ROOT / "pipeline" / "__init__.py").read_text())
    [typed] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        (node.module, alias.name) for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(module, name) for module, names in pipeline._EXPORTS.items() for name in names}
    assert sorted(name for _, name in seen) == dir(pipeline)
    starred: dict[str, object] = {}
    exec("from pipeline import *", starred)  # noqa: S102 - the code is ours
    assert starred.keys() - {"__builtins__"} == set(dir(pipeline))
    for name in dir(pipeline):
        assert getattr(pipeline, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = pipeline.train  # type: ignore[attr-defined]


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
