"""The samples of every epoch, and every later draw, are those of the DataLoader itself."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from chainrule.errors import ModelError
from chainrule.verbs.fit.data import Arrays, Batches, source_of

X = torch.arange(23.0)[:, None]
DATA = TensorDataset(X, -X)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS = {
    "in sequence": lambda: DataLoader(DATA, batch_size=5),
    "in sequence, last dropped": lambda: DataLoader(DATA, batch_size=5, drop_last=True),
    "shuffled": lambda: DataLoader(DATA, batch_size=5, shuffle=True),
    "shuffled by a generator": lambda: DataLoader(DATA, batch_size=5, shuffle=True, generator=seeded()),
    "last dropped": lambda: DataLoader(DATA, batch_size=4, shuffle=True, drop_last=True, generator=seeded()),
    "sampler with a generator of its own": lambda: DataLoader(
        DATA, batch_size=5, sampler=RandomSampler(DATA, generator=seeded(1)), generator=seeded(2)
    ),
    "with replacement": lambda: DataLoader(DATA, batch_size=6, sampler=RandomSampler(DATA, True, 40)),
    "more samples than data": lambda: DataLoader(DATA, batch_size=6, sampler=RandomSampler(DATA, False, 30)),
    "weighted": lambda: DataLoader(DATA, batch_size=6, sampler=WeightedRandomSampler([1.0] * 20 + [9.0] * 3, 17)),
    "subset sampler": lambda: DataLoader(DATA, batch_size=3, sampler=SubsetRandomSampler(range(4, 15), seeded())),
    "subset of the data": lambda: DataLoader(Subset(DATA, [20, 3, 5, 7, 11]), batch_size=2, shuffle=True),
    "subset in sequence": lambda: DataLoader(Subset(DATA, [20, 3, 5, 7, 11]), batch_size=2),
    "workers": lambda: DataLoader(DATA, batch_size=7, shuffle=True, num_workers=1),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)),
    "no batches": lambda: DataLoader(DATA, batch_size=None),
    "own collate": lambda: DataLoader(DATA, batch_size=4, shuffle=True, collate_fn=lambda rows: tuple(rows[0])),
}


@pytest.mark.parametrize("name", LOADERS)
def test_same_batches_and_same_draws_afterwards(name: str) -> None:
    def epochs(ours: bool):
        torch.manual_seed(11)
        loader = LOADERS[name]()
        source = source_of(loader)
        batches = [b for _ in range(3) for b in (source.batches() if ours else loader)]
        own = [g.get_state() for g in source.generators()]
        return [[t.tolist() for t in b] for b in batches], own, torch.get_rng_state()

    ours, theirs = epochs(True), epochs(False)
    assert ours[0] == theirs[0]
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    assert torch.equal(ours[2], theirs[2])


def test_which_loaders_are_arrays() -> None:
    arrays = {name for name, make in LOADERS.items() if isinstance(source_of(make()), Arrays)}
    assert set(LOADERS) - arrays == {"batch sampler", "no batches", "own collate"}
    for name in arrays:
        source = source_of(LOADERS[name]())
        assert source.steps == sum(1 for _ in source.batches()), name


def test_pair() -> None:
    whole = source_of((X, -X))
    assert isinstance(whole, Arrays) and whole.steps == 1 and whole.order() is None
    cut = source_of((X, -X), batch_size=5, generator=seeded())
    rows = torch.cat([b[0] for b in cut.batches()])
    assert sorted(rows[:, 0].tolist()) == X[:, 0].tolist() and not torch.equal(rows, X)
    assert torch.equal(torch.cat([b[0] for b in source_of((X, -X), 5, shuffle=False).batches()]), X)
    nested = source_of((({"a": X}, (X, X))), batch_size=4)
    assert isinstance(nested.example()[0], dict) and isinstance(nested.example()[1], tuple)
    assert isinstance(source_of((X, torch.tensor(0.0))), Batches)  # nothing to cut


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (X, {}, "neither a batch"),
        ("text", {}, "neither a batch"),
        (iter([(X, X)]), {}, "only once"),
        ((X, X[:3]), {"batch_size": 2}, "cannot be cut"),
        ((X[:0], X[:0]), {}, "empty"),
        ((X, X), {"batch_size": 0}, "batch_size=0"),
        ([(X, X)], {"batch_size": 2}, "one pair"),
        ((None, None), {}, "no tensor"),
    ],
)
def test_refusals(data, options, said) -> None:
    with pytest.raises(ModelError, match=said):
        source_of(data, **options)
