"""The counter-based generator: its law, its independence of who draws, and of everything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from chainrule.verbs.initialize import generator
from chainrule.verbs.initialize.generator import BLOCK, _quantiles, drawn_at, fill, key_of


def stream(law: str, key: int, count: int, start: int = 0) -> torch.Tensor:
    out = torch.empty(count)
    fill(out, law, key, start)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_normal_draws_have_the_normal_law(seed: int) -> None:
    x = stream("normal", key_of(seed, "w"), 1 << 20).double().numpy()
    # Four standard errors of each moment.
    assert abs(x.mean()) < 4 / 1024
    assert abs(x.var() - 1) < 4 * np.sqrt(2) / 1024
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96) / 1024
    assert stats.kstest(x[: 1 << 17], "norm").pvalue > 1e-3
    assert 4.4 < np.abs(x).max() < 6.4  # the largest of a million, and the end of 32 bits


def test_uniform_draws_have_the_uniform_law() -> None:
    x = stream("uniform", key_of(0, "w"), 1 << 17).double().numpy()
    assert stats.kstest(x, lambda v: (v + 1) / 2).pvalue > 1e-3
    assert x.min() > -1 and x.max() < 1


@pytest.mark.parametrize("lag", [1, 2, 7, 64, 1024, BLOCK, 3 * BLOCK])
def test_elements_of_a_stream_are_uncorrelated(lag: int) -> None:
    x = stream("normal", key_of(5, "w"), 1 << 20).double()
    count = x.numel() - lag
    for f in (x, x.abs() - x.abs().mean()):
        product = (f[lag:] * f[:-lag]).mean() / (f * f).mean()
        assert abs(float(product)) < 4.5 / count**0.5


def test_streams_of_other_keys_and_neighbouring_seeds_are_uncorrelated() -> None:
    first = stream("normal", key_of(0, "w"), 1 << 14).double()
    products = [
        float((first * stream("normal", key_of(seed, name), 1 << 14).double()).mean()) * 128
        for seed in range(40)
        for name in ("w", "v")
        if (seed, name) != (0, "w")
    ]
    assert stats.kstest(products, "norm").pvalue > 1e-3


def test_a_draw_does_not_depend_on_who_draws() -> None:
    key = key_of(1, "layer.weight")
    whole = stream("normal", key, 3 * BLOCK + 77)
    index = torch.tensor([0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 3, 3 * BLOCK + 76])
    assert torch.equal(drawn_at(index, "normal", key), whole[index])
    for start, count in ((1, 10), (BLOCK - 3, 9), (12345, 2 * BLOCK)):
        assert torch.equal(stream("normal", key, count, start), whole[start : start + count])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(stream("normal", key, whole.numel()), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("law", ["normal", "uniform"])
@pytest.mark.parametrize("start", [0, 12345, BLOCK - 1])
def test_machine_code_and_torch_give_the_same_bits(law: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count, key = 5 * BLOCK + 13, key_of(9, "w")
    native, eager = torch.empty(count), torch.empty(count)
    fill(native, law, key, start, 0.0123)
    monkeypatch.setattr(generator, "WORTHWHILE", count + 1)
    fill(eager, law, key, start, 0.0123)
    assert torch.equal(native.view(torch.int32), eager.view(torch.int32))


@pytest.mark.gpu
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_a_gpu_gives_the_same_bits(law: str) -> None:
    count, key = 3 * BLOCK + 13, key_of(9, "w")
    here, there = torch.empty(count), torch.empty(count, device="cuda")
    fill(here, law, key, 5, 0.0123)
    fill(there, law, key, 5, 0.0123)
    assert torch.equal(here, there.cpu())
    index = torch.arange(0, count, 7)
    assert torch.equal(drawn_at(index.cuda(), law, key, 0.0123).cpu(), drawn_at(index, law, key, 0.0123))


def test_indices_beyond_32_bits() -> None:
    key, start = key_of(1, "w"), (1 << 33) + 5
    assert torch.equal(stream("normal", key, 9, start), drawn_at(torch.arange(start, start + 9), "normal", key))
    assert not torch.equal(stream("normal", key, 9, start), stream("normal", key, 9, 5))


def test_known_bits() -> None:
    # What was once initialized must come out again in every later version, on every machine.
    x = stream("normal", key_of(0, "weight"), 4)
    assert x.view(torch.int32).tolist() == KNOWN


KNOWN = [-1075299645, 1066060372, -1080087908, 1064428203]


def test_the_quantile_table_is_accurate() -> None:
    # Lines through the table against the exact function, at the borders and middles of all segments.
    table, bits = _quantiles(), np.arange(0, 32 << 8)
    octave, part = np.divmod(bits, 1 << 8)
    for within in (0.0, 0.5, 0.999):
        m = 2.0 ** (octave - 1.0) * (1 + (part + within) / 256)
        kept = m <= 2.0**31
        exact = -stats.norm.ppf(m[kept] / 2**32)
        shown = table[0, bits[kept]].astype(float) + table[1, bits[kept]].astype(float) * within * 2**15
        assert np.abs(shown - exact).max() < 3e-6
