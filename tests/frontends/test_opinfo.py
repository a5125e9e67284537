"""A part of torch's database of ops in every test run; ``python -m benchmarks.opinfo`` tries all of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from benchmarks.opinfo import Row, entries, row_of, verdict

# One of each kind of declaration: kernels, lowerings, compositions that torch takes apart, several outputs.
CHOSEN = """
    add addcmul cat clamp cumprod cumsum diag_embed diff index_add index_select kron lerp
    linalg.cholesky linalg.eigh linalg.slogdet linalg.solve linalg.vector_norm logcumsumexp masked_fill max.binary
    max.reduction_with_dim median nn.functional.adaptive_avg_pool2d nn.functional.avg_pool2d nn.functional.conv2d
    nn.functional.conv_transpose1d nn.functional.cosine_embedding_loss nn.functional.cosine_similarity
    nn.functional.cross_entropy nn.functional.embedding nn.functional.glu nn.functional.group_norm
    nn.functional.huber_loss nn.functional.interpolate.bilinear nn.functional.kl_div nn.functional.max_pool2d
    nn.functional.nll_loss nn.functional.pad.reflect nn.functional.triplet_margin_loss nn.functional.unfold
    prod repeat roll scatter sort special.log_ndtr std.unbiased take_along_dim topk tril unfold var where xlogy
""".split()


@pytest.fixture(scope="module")
def database() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(entries())


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.filterwarnings("ignore")
def test_first_and_second_derivatives_are_autograds(name: str, database: dict[str, Any]) -> None:
    row: Row = row_of(name, database[name], count=4, seconds=20.0)
    assert verdict(row.first) == "right", row.messages
    assert verdict(row.second) in ("right", "skipped"), row.messages
