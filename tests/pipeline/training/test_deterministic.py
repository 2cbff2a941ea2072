"""`--deterministic`: the same bits every time, also on a GPU. What is known of that without one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import UsageError, train_vqvae
from pipeline.arithmetic import CUBLAS_WORKSPACE, deterministic, reserve_workspace
from pipeline.reporting import Silent
from tests.pipeline.training.test_step import of_codes, of_images
from tests.pipeline.training.test_training import assert_same_files, last_checkpoint
from tests.tiny import TINY_VQVAE, shapes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
IMAGES, TARGETS = shapes()
aten = torch.ops.aten
# Operations that have no deterministic kernel on a GPU, by the documentation of torch.use_deterministic_algorithms.
WITHOUT = {
    aten.avg_pool3d_backward,
    aten._adaptive_avg_pool2d_backward,
    aten._adaptive_avg_pool3d_backward,
    aten.adaptive_max_pool2d_backward,
    aten.fractional_max_pool2d_backward,
    aten.max_unpool2d,
    aten.upsample_linear1d_backward,
    aten.upsample_bilinear2d_backward,
    aten.upsample_bicubic2d_backward,
    aten.reflection_pad1d_backward,
    aten.reflection_pad2d_backward,
    aten.nll_loss2d_forward,
    aten._ctc_loss_backward,
    aten.put_,
    aten.histc,
    aten.bincount,
    aten.median,
    aten.kthvalue,
    aten.grid_sampler_2d_backward,
}


def settings() -> tuple[bool, ...]:
    cudnn: Any = torch.backends.cudnn
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns, cudnn.deterministic, cudnn.benchmark


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """Collects what is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation, and do it."""
        self.found.add(func.overloadpacket)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "model",
    [
        {"codebook_rule": "ema"},
        {"codebook_rule": "simvq", "network": "residual", "hidden": 16, "levels": 2, "level_kind": "residual"},
        {"objective": "sharp", "adversarial_weight": 0.1, "features": "kmeans", "frequency_weight": 1.0},
        {"bottleneck": "gumbel"},
        {"bottleneck": "gaussian", "likelihood": "discretized-logistic"},
        None,
    ],
)
def test_all_that_a_training_computes_has_a_deterministic_kernel(tmp_path: Path, model: dict[str, Any] | None) -> None:
    trainer = of_codes(tmp_path, average_decay=0.9) if model is None else of_images(tmp_path, model)
    with Operations() as operations:
        trainer.start()
        trainer.train_step(50)
        trainer.evaluate()
    assert aten.convolution_backward in operations.found
    assert operations.found.isdisjoint(WITHOUT)


def test_an_operation_without_one_is_seen() -> None:
    image = torch.zeros(1, 1, 2, 2, requires_grad=True)
    with Operations() as operations:
        torch.autograd.backward(torch.nn.functional.interpolate(image, (4, 4), mode="bilinear").sum())
    assert operations.found & WITHOUT == {aten.upsample_bilinear2d_backward}


def test_settings_hold_within_and_return_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    monkeypatch.setattr("torch.backends.cudnn.benchmark", True)
    before = settings()
    assert before == (False, False, False, True)
    for device in (CPU, GPU):
        with deterministic(device):
            assert settings() == (True, False, True, False)
        assert settings() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(ZeroDivisionError), deterministic(CPU):
            raise ZeroDivisionError
        assert settings() == (True, True, False, True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("workspace", [None, ":4096:2:16:8"])
def test_cublas_without_a_fixed_workspace_is_refused_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, workspace: str | None
) -> None:
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    if workspace is not None:
        monkeypatch.setenv(CUBLAS_WORKSPACE, workspace)
    message = rf"needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .* it is {workspace or 'not set'};"
    with pytest.raises(UsageError, match=message), deterministic(GPU):
        pass
    assert settings() == (False, False, False, False)
    with deterministic(CPU):
        assert settings()[0]


@pytest.mark.parametrize(
    ("given", "used", "expected"), [(None, False, ":4096:8"), (":16:8", False, ":16:8"), (None, True, None)]
)
def test_the_workspace_is_fixed_before_the_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch, given: str | None, used: bool, expected: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: used)
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    if given is not None:
        monkeypatch.setenv(CUBLAS_WORKSPACE, given)
    reserve_workspace()
    assert os.environ.get(CUBLAS_WORKSPACE) == expected


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    message = "--deterministic: put_ does not have a deterministic implementation"
    with pytest.raises(UsageError, match=message), deterministic(CPU):
        torch.zeros(2).put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))
    with pytest.raises(RuntimeError, match="size") as caught, deterministic(CPU):
        torch.zeros(2) + torch.zeros(3)
    assert not isinstance(caught.value, UsageError)


def test_a_training_ends_with_the_same_weights_as_without(tmp_path: Path) -> None:
    """On a CPU, where all kernels are deterministic."""

    class Seen(Silent):
        def __init__(self) -> None:
            self.found: set[tuple[bool, ...]] = set()

        def steps(self, steps: range, description: str) -> Any:
            for step in steps:
                self.found.add(settings())
                yield step

    for asked in (False, True):
        seen, run = Seen(), tmp_path / str(asked)
        train_vqvae(out=run, images=IMAGES, targets=TARGETS, reporter=seen, deterministic=asked, **TINY_VQVAE)
        assert seen.found == ({(True, False, True, False)} if asked else {(False, False, False, False)})
        saved = json.loads((run / "vqvae" / "config.json").read_text())["training"]["deterministic"]
        assert saved is asked
    assert settings() == (False, False, False, False)
    assert_same_files(*(last_checkpoint(tmp_path / str(asked) / "vqvae") for asked in (False, True)))
