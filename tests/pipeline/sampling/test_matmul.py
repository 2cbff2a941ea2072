"""Products while codes are drawn: exact whichever way is taken, and nothing of it stays."""

from typing import Any

import pytest
import torch

from pipeline.sampling import matmul
from pipeline.sampling.matmul import fast_products, is_exact, route_for

CPU = torch.device("cpu")


def settings() -> tuple[int, str]:
    backends: Any = torch.backends
    return torch.get_num_threads(), backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize(("n", "threads"), [(1, 1), (3, 1), (4, 2), (256, 3)])
def test_few_positions_take_few_threads_and_the_callers_settings_return(
    n: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "is_exact", lambda route: True)
    monkeypatch.setattr(matmul, "is_faster", lambda route: True)
    torch.set_num_threads(3)
    before = settings()
    assert before[1] != "bf16"
    with fast_products(CPU, n, width=2):
        assert settings() == (threads, "bf16" if n >= 64 else before[1])
    assert settings() == before
    with pytest.raises(KeyError), fast_products(CPU, n, width=8):
        raise KeyError
    assert settings() == before


@pytest.mark.parametrize("n", [1, 33, 256])
def test_products_are_those_of_float32(n: int) -> None:
    rows, weights = torch.randn(n, 300), torch.randn(300, 70)
    with fast_products(CPU, n, width=2):
        error = (rows @ weights - rows.double() @ weights.double()).abs().max()
    assert float(error) < 300 * 2**-24 * 10  # bfloat16 factors would be off by about 0.1


def test_a_way_that_rounds_its_factors_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    is_exact.cache_clear()
    exact = torch.Tensor.__matmul__

    def rounding(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exact(a, b) if a.dtype == torch.float64 else exact(a.bfloat16().float(), b.bfloat16().float())

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", rounding)
        assert not is_exact("bf16")
        assert route_for(256, "ieee") == "ieee"
    is_exact.cache_clear()
    assert is_exact("ieee")
