"""Products while codes are drawn: exact whichever way is taken, and nothing of it stays."""

from typing import Any

import pytest
import torch

from pipeline.arithmetic import Measured, fast_products, is_better, route_for, threads_for

CPU = torch.device("cpu")


def settings() -> tuple[int, str]:
    backends: Any = torch.backends
    return torch.get_num_threads(), backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("n", [1, 33, 256])
def test_the_callers_settings_return(n: int) -> None:
    before = settings()
    with fast_products(CPU, n):
        assert torch.get_num_threads() == threads_for(n, before[0])
    assert settings() == before
    with pytest.raises(KeyError), fast_products(CPU, n):
        raise KeyError
    assert settings() == before


@pytest.mark.parametrize("n", [1, 33, 256])
def test_products_are_those_of_float32(n: int) -> None:
    rows, weights = torch.randn(n, 300), torch.randn(300, 70)
    with fast_products(CPU, n):
        error = (rows @ weights - rows.double() @ weights.double()).abs().max()
    assert float(error) < 300 * 2**-24 * 10  # bfloat16 factors would be off by about 0.1


def test_a_way_is_taken_only_where_it_is_exact_and_faster() -> None:
    usual = Measured(error=1e-5, seconds=2.0)
    assert is_better(Measured(2e-5, 1.0), usual)
    assert not is_better(Measured(1e-2, 0.1), usual), "fast, but in bfloat16"
    assert not is_better(Measured(1e-5, 1.95), usual), "no faster than the noise of measuring"


def test_few_rows_take_the_usual_way_on_one_thread() -> None:
    assert route_for(1, 2, "ieee") == "ieee"
    assert (threads_for(1, 8), threads_for(7, 8), threads_for(16, 8), threads_for(256, 8)) == (1, 1, 4, 8)
