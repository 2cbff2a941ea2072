"""One meaning a word, and the words of the field: none of those that the code once had of its own comes back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("stage1_vqvae", "stage2_prior", "pipeline", "tests", "benchmarks")

# Where one of these is a part of a name, between underscores or capitals, the name is refused.
WORDS = {"adversaries", "ask", "carried", "claim", "critic", "drawer", "halving", "halvings", "heard", "merge", "place"}
WORDS |= {
    "places",
    "promise",
    "quantise",
    "quantised",
    "stranger",
    "strangers",
    "tell",
    "told",
    "undecayed",
    "warp",
    "wish",
}
WORDS |= {"look", "looked", "share", "shares"}
# A name that has one of these in it, on whole words, is refused.
NAMES = {"bits_an_image", "carry_out", "code_use", "held_out", "kept_by", "kl_a_unit", "nats_by_frequency", "some_of"}
CLASSES = {"Drawn", "Progress"}
# What Gradio calls a public link, in the files that hand it on, and its option.
OF_GRADIO = {"share", "share_url"}
HANDED_ON = {"pipeline/serving/app.py", "pipeline/config/app.py", "pipeline/config/arguments.py"}


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def identifiers(path: Path) -> Iterator[str]:
    """Every name that a file defines or uses, keywords, and texts that stand for names: metrics, options, keys."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.Constant(value=str(text)) if re.fullmatch(r"[a-z_/-]+", text):
                yield from (part.strip("-_").replace("-", "_") for part in text.split("/"))


def is_old(name: str) -> bool:
    """Whether a name is, or has in it, one of the old words."""
    return name in CLASSES or bool(words(name) & WORDS) or any(f"_{old}_" in f"_{name}_" for old in NAMES)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_identifier_is_one_of_the_old_words(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        if path != Path(__file__):
            allowed = OF_GRADIO if path.relative_to(ROOT).as_posix() in HANDED_ON else set()
            old = {name for name in set(identifiers(path)) - allowed if is_old(name)}
            assert not old, f"{path}: {sorted(old)}"


def test_the_words_of_a_name_are_found() -> None:
    assert words("CodeDrawer") == {"code", "drawer"} and words("_looked_at") == {"looked", "at"}
    assert words("VQVAETask") == {"vqvae", "task"} and words("halvings2") == {"halvings"}


@pytest.mark.parametrize(
    "name", ["Progress", "_share", "own_share", "_look", "CodeDrawer", "held_out_nmse", "bits_an_image", "halvings"]
)
def test_an_old_word_is_found_wherever_it_stands(name: str) -> None:
    assert is_old(name)


def test_words_of_the_field_are_not() -> None:
    assert not any(map(is_old, ["progress", "shared", "lookup", "bits_per_image", "placed", "quantized", "sampler"]))
