"""Images as a file of entropy-coded codes: what comes back is what went in, at the cost that the prior says."""

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from jaxtyping import Float
from torch import Tensor

from pipeline import CheckpointError, UsageError, compress, decompress, decompress_files, load
from pipeline.cli.main import main
from pipeline.codec.coder import BlockCoder, BlockCodes
from pipeline.codec.container import CODED, RAW, Block, Reader, size_of, write_index
from pipeline.data import pixels
from pipeline.errors import FolderInUseError
from stage2_prior import Stepper, code_nats
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes


@pytest.fixture(scope="module")
def leveled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two levels without classes."""
    from pipeline import train_prior, train_vqvae

    run = tmp_path_factory.mktemp("leveled") / "run"
    images, _ = shapes()
    train_vqvae(out=run, images=images, levels=2, downsampling=2, **TINY_VQVAE)
    train_prior(run, images=images, **TINY_PRIOR)
    return run


def bits_of(run: Path, images: np.ndarray, labels: np.ndarray | None) -> float:
    """What the priors say that codes cost, from their parallel pass in float64."""
    model = load(run)
    codes = [level.long() for level in model.encode(images)]
    given = None if labels is None else torch.from_numpy(labels)
    nats = [
        code_nats(prior.network.double(), level, given, codes[:index]).sum()
        for index, (prior, level) in enumerate(zip(model.priors, codes, strict=True))
    ]
    return float(sum(nats)) / log(2)


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_images_come_back_as_they_are_reconstructed(trained: Path, tmp_path: Path, block_size: int) -> None:
    images, labels = shapes(37)
    names = [f"kind {label}/{number}.jpg" for number, label in enumerate(labels)]
    done = compress(trained, images, tmp_path / "a.genz", labels=labels, names=names, block_size=block_size)
    assert (done.images, done.blocks, done.raw_blocks) == (37, -(-37 // block_size), 0)
    back = decompress(tmp_path / "a.genz", trained)
    assert torch.equal(back.samples.images, load(trained).reconstruct(images))
    assert all(torch.equal(a, b) for a, b in zip(back.samples.codes, load(trained).encode(images), strict=True))
    assert back.samples.labels is not None and back.samples.labels.tolist() == labels.tolist()
    assert back.names == tuple(names)


def test_codes_cost_what_the_prior_says(trained: Path, tmp_path: Path) -> None:
    images, labels = shapes(64)
    done = compress(trained, images, tmp_path / "a.genz", labels=labels)
    of_labels = len(labels) * -np.log2((1 - 2**-8) / 2)
    bits = bits_of(trained, images, labels) + of_labels
    assert bits <= 8 * done.payload_bytes < 1.01 * bits + 64  # the coder ends in whole words of 32 bits


def test_levels_are_coded_given_those_before_and_may_be_left_out(leveled: Path, tmp_path: Path) -> None:
    images, _ = shapes(20)
    done = compress(leveled, images, tmp_path / "all.genz")
    assert 8 * done.payload_bytes < 1.01 * bits_of(leveled, images, None) + 64
    coarse = compress(leveled, images, tmp_path / "coarse.genz", levels=1)
    assert coarse.payload_bytes < done.payload_bytes
    back = decompress(tmp_path / "coarse.genz", leveled)
    assert torch.equal(back.samples.images, load(leveled).reconstruct(images, levels=1))
    assert len(back.samples.codes) == 1


def test_some_images_are_read_without_the_other_blocks(trained: Path, tmp_path: Path) -> None:
    images, labels = shapes(30)
    path = tmp_path / "a.genz"
    compress(trained, images, path, labels=labels, block_size=8)
    whole = decompress(path, trained).samples
    content = bytearray(path.read_bytes())
    with path.open("rb") as file:
        reader = Reader(path, file)
        offsets = reader.index().offsets
    content[offsets[1] + 20] ^= 1
    path.write_bytes(content)
    some = decompress(path, trained, images=range(29, 15, -3)).samples
    assert torch.equal(some.images, whole.images[[29, 26, 23, 20, 17]])
    assert some.labels is not None and some.labels.tolist() == labels[[29, 26, 23, 20, 17]].tolist()
    with pytest.raises(CheckpointError, match="block 1 is damaged"):
        decompress(path, trained, images=range(9, 10))
    with pytest.raises(UsageError, match="holds images 0 to 29"):
        decompress(path, trained, images=range(29, 31))


def test_every_damage_is_named(trained: Path, tmp_path: Path) -> None:
    """A thousand files, cut off or with a bit turned: none gives an image."""
    images, labels = shapes(24)
    path = tmp_path / "a.genz"
    compress(trained, images, path, labels=labels, names=[str(number) for number in range(24)], block_size=8)
    content, model, generator = path.read_bytes(), load(trained), np.random.default_rng(0)
    for trial in range(1000):
        changed = bytearray(content)
        if trial % 2:
            changed = changed[: generator.integers(len(content))]
        else:
            changed[generator.integers(len(content))] ^= 1 << generator.integers(8)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"is damaged: |is no \.genz file|is of version"):
            decompress_files(path, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_run_is_refused(trained: Path, leveled: Path, tmp_path: Path) -> None:
    compress(trained, shapes(3)[0], tmp_path / "a.genz")
    with pytest.raises(CheckpointError, match=r"compressed with another run than .*codes_sha256 .*name that run"):
        decompress(tmp_path / "a.genz", leveled)


class Wavering:
    """A stepper whose probabilities differ from one time to the next, as on two machines."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper, self.size, self._times = stepper, stepper.size, 0
        self.begin, self.begin_row, self.accept, self.memory = (
            stepper.begin,
            stepper.begin_row,
            stepper.accept,
            stepper.memory,
        )

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        self._times += 1
        return self._stepper.logits(column) + torch.linspace(0, self._times / 100, 12)


def test_codes_that_do_not_come_back_are_kept_as_they_are(trained: Path) -> None:
    model = load(trained)
    coder = BlockCoder(model.priors, 16)
    images, labels = shapes(11)
    codes = BlockCodes(tuple(level.long() for level in model.encode(images)), torch.from_numpy(labels))
    coded = coder.encode(codes)
    assert coded.kind == CODED
    elsewhere = BlockCoder(model.priors, 16)
    elsewhere._steppers = [Wavering(stepper) for stepper in elsewhere._steppers]
    with pytest.raises(CheckpointError, match="a block decodes to other codes than were encoded"):
        elsewhere.decode(coded, "a block")
    raw = elsewhere.encode(codes)
    assert raw.kind == RAW and len(raw.payload) > len(coded.payload)
    for decoder in (coder, elsewhere):
        back = decoder.decode(raw, "a block")
        assert all(torch.equal(a, b) for a, b in zip(back.levels, codes.levels, strict=True))
        assert back.labels is not None and torch.equal(back.labels, torch.from_numpy(labels))


def test_threads_and_the_order_of_blocks_change_nothing(trained: Path, tmp_path: Path) -> None:
    images, labels = shapes(20)
    threads = torch.get_num_threads()
    contents = []
    for number in (1, 3):
        torch.set_num_threads(number)
        compress(trained, images, tmp_path / f"{number}.genz", labels=labels, block_size=8)
        contents.append((tmp_path / f"{number}.genz").read_bytes())
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    assert contents[0] == contents[1]
    model = load(trained)
    expected = model.encode(images)[0]
    for numbers in (range(16, 20), range(8, 16), range(8)):
        assert torch.equal(decompress(tmp_path / "1.genz", model, images=numbers).samples.codes[0], expected[numbers])


def test_a_command_that_was_stopped_goes_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = shapes(30)
    model = load(trained)
    compress(model, images, tmp_path / "whole.genz", labels=labels, block_size=8)
    encode = BlockCoder.encode
    encoded: list[int] = []

    def stopping(self: BlockCoder, codes: BlockCodes) -> Block:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(codes))
        return encode(self, codes)

    monkeypatch.setattr(BlockCoder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        compress(model, images, tmp_path / "a.genz", labels=labels, block_size=8)
    encoded.clear()
    unfinished = tmp_path / "a.genz.part"
    unfinished.write_bytes(unfinished.read_bytes()[:-5])  # the last block was being written
    with pytest.raises(KeyboardInterrupt):
        compress(model, images, tmp_path / "a.genz", labels=labels, block_size=8)
    assert encoded == [8, 8]
    encoded.clear()
    compress(model, images, tmp_path / "a.genz", labels=labels, block_size=8)
    assert encoded == [6] and not unfinished.exists()
    assert (tmp_path / "a.genz").read_bytes() == (tmp_path / "whole.genz").read_bytes()


def test_what_was_begun_of_other_images_is_not_gone_on_with(trained: Path, tmp_path: Path) -> None:
    images, labels = shapes(16)
    compress(trained, images, tmp_path / "other.genz", labels=labels, block_size=8)
    (tmp_path / "other.genz").rename(tmp_path / "a.genz.part")
    compress(trained, images[::-1].copy(), tmp_path / "a.genz", labels=labels[::-1].copy(), block_size=8)
    back = decompress(tmp_path / "a.genz", trained)
    assert torch.equal(back.samples.images, load(trained).reconstruct(images[::-1].copy()))


def test_the_commands_keep_names_and_folders(trained: Path, tmp_path: Path) -> None:
    images, labels = shapes(6)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "photos" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels.to_pil(image).save(folder / f"{number}.png")
    runner = CliRunner()
    run, out = ["--run", str(trained)], str(tmp_path / "a.genz")
    result = runner.invoke(main, ["compress", str(tmp_path / "photos"), *run, "--out", out, "--quiet"])
    assert result.exit_code == 0, result.output
    assert "6 images of 8x12" in result.output and "bits a pixel" in result.output
    result = runner.invoke(main, ["decompress", out, *run, "--out", str(tmp_path / "back"), "--quiet"])
    assert result.exit_code == 0, result.output
    names = sorted(str(path.relative_to(tmp_path / "photos")) for path in (tmp_path / "photos").rglob("*.png"))
    assert names == sorted(str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*.png"))


def test_names_that_are_of_no_file_in_a_folder_are_refused_at_both_ends(trained: Path, tmp_path: Path) -> None:
    images, _ = shapes(2)
    for name in ("../outside.png", "/outside.png", "", "a/..", "inside.png"):
        with pytest.raises(UsageError, match="1 names are of no file within a folder, or come twice"):
            compress(trained, images, tmp_path / "a.genz", names=["inside.png", name])
    compress(trained, images, tmp_path / "a.genz", names=["inside.png", "back\\slash.png"])
    rewritten(tmp_path / "a.genz", names=("inside.png", "../outside.png"))
    with pytest.raises(CheckpointError, match="no name of its own for each of 2 images"):
        decompress_files(tmp_path / "a.genz", tmp_path / "out", trained)


def rewritten(path: Path, **changed: object) -> None:
    """The file with other things in its index, and every CRC right, as somebody may write it."""
    with path.open("r+b") as file:
        reader = Reader(path, file)
        index = reader.index()
        last = reader.block_of(index, len(index.offsets) - 1)
        file.seek(index.offsets[-1] + size_of(last))
        file.truncate()
        for name, value in changed.items():
            object.__setattr__(index, name, value)  # past the checks of the dataclass
        write_index(file, index)


@pytest.mark.parametrize(
    "changed",
    [{"images": 7}, {"images": 0}, {"offsets": ()}, {"offsets": (-5,)}, {"offsets": (10**9,)}, {"names": ("a", "a")}],
)
def test_an_index_that_does_not_fit_is_refused(trained: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    compress(trained, shapes(6)[0], tmp_path / "a.genz")
    rewritten(tmp_path / "a.genz", **changed)
    for read in (lambda: decompress(tmp_path / "a.genz", trained), lambda: written(tmp_path, trained)):
        with pytest.raises(CheckpointError, match="is damaged"):
            read()


def written(folder: Path, run: Path) -> None:
    decompress_files(folder / "a.genz", folder / "out", run)


def test_bytes_that_no_codes_lead_to_are_refused(trained: Path) -> None:
    coder = BlockCoder(load(trained).priors, 8)
    with pytest.raises(CheckpointError, match=r"a block holds bytes that no codes|decodes to other codes"):
        coder.decode(Block(8, CODED, b"\xff" * 400, 0), "a block")


def test_no_file_of_another_is_touched(trained: Path, tmp_path: Path) -> None:
    """A folder with other pictures in it, or with those of another file; and an unfinished file of another program."""
    images, _ = shapes(4)
    for name, given in (("a", images), ("b", images[::-1].copy())):
        compress(trained, given, tmp_path / f"{name}.genz")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "000000.png").write_text("mine")
    with pytest.raises(UsageError, match="photos holds other files already"):
        decompress_files(tmp_path / "a.genz", tmp_path / "photos", trained)
    assert (tmp_path / "photos" / "000000.png").read_text() == "mine"
    assert decompress_files(tmp_path / "a.genz", tmp_path / "out", trained).new == 4
    with pytest.raises(UsageError, match="out holds images of another file"):
        decompress_files(tmp_path / "b.genz", tmp_path / "out", trained)
    (tmp_path / "c.genz.part").write_text("a download")
    with pytest.raises(UsageError, match="is no file of gen compress"):
        compress(trained, images, tmp_path / "c.genz")
    assert (tmp_path / "c.genz.part").read_text() == "a download"


def test_a_folder_that_was_begun_is_filled(trained: Path, tmp_path: Path) -> None:
    images, _ = shapes(20)
    compress(trained, images, tmp_path / "a.genz", block_size=8)
    whole = decompress_files(tmp_path / "a.genz", tmp_path / "out", trained)
    assert (whole.n, whole.new) == (20, 20)
    before = (tmp_path / "out" / "000017.png").read_bytes()
    (tmp_path / "out" / "000017.png").unlink()
    assert decompress_files(tmp_path / "a.genz", tmp_path / "out", trained).new == 4, "those of its block"
    assert (tmp_path / "out" / "000017.png").read_bytes() == before


def test_one_command_at_a_time_writes_a_file(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = shapes(4)
    encode, refused = BlockCoder.encode, []

    def twice(self: BlockCoder, codes: BlockCodes) -> Block:
        with pytest.raises(FolderInUseError, match="another command is writing"):
            compress(trained, images, tmp_path / "a.genz")
        refused.append(True)
        return encode(self, codes)

    monkeypatch.setattr(BlockCoder, "encode", twice)
    compress(trained, images, tmp_path / "a.genz")
    assert refused == [True]


def test_names_that_would_meet_are_kept_apart(trained: Path, tmp_path: Path) -> None:
    compress(trained, shapes(2)[0], tmp_path / "a.genz", names=["a.jpg", "a.png"])
    decompress_files(tmp_path / "a.genz", tmp_path / "out", trained)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.jpg.png", "a.png.png"]


def test_what_does_not_fit_is_said_at_once(trained: Path, tmp_path: Path) -> None:
    images, labels = shapes(4)
    (tmp_path / "there.genz").touch()
    with pytest.raises(UsageError) as caught:
        compress(trained, images, tmp_path / "there.genz", labels=labels + 5, names=["one"])
    for part in ("exists already", "labels are one of -1 to 1 for each of 4", "1 names for 4 images"):
        assert part in str(caught.value)
    (tmp_path / "page.genz").write_text("<html>")
    with pytest.raises(CheckpointError, match=r"is no \.genz file"):
        decompress(tmp_path / "page.genz", trained)
    with pytest.raises(CheckpointError, match="is no file"):
        decompress(tmp_path / "missing.genz", trained)
