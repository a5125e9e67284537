"""Fields through attention: logits by the kernels of queries and keys, values mixed by what softmax makes of them.

Tables over pairs are laid out as matrices of positions. ``s`` says how much of E[p_ij p_i'j'] lies on equal keys beyond
what equal probabilities would have; the rest is spread as if all visible keys were weighted alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.factors import merged, refined, with_factor
from chainrule.ir.field import Field, iid, unknown, with_scale, within_budget, worst
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import aligned
from chainrule.ops.fields.long_attention import continued, like_rows, shortened
from chainrule.ops.fields.movement import repeated
from chainrule.ops.fields.registry import rule, sizes
from chainrule.ops.fields.softmax import concentration, concentrations, responses, third_power


def _laid(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """A table with one factor's pairs as the last two dimensions, whatever its grading."""
    if table.shape[k] == 1:
        moved = np.moveaxis(table, k, -1)
        return np.broadcast_to(moved[..., None], (*moved.shape[:-1], axis.size, axis.size))
    return pair.lay_out(table, k, axis)


class _Attention:
    """Everything that forward and backward of one attention read.

    Tables are arranged as (classes of the leading factors ..., width classes, i, i'), positions laid out.
    """

    def __init__(self, node: Node, inputs: Sequence[Field]) -> None:
        q, k, v, *rest = inputs
        given = node.params.get("given", ())
        mask = rest[0] if "attn_mask" in given else None
        self.scale = float(node.params.get("scale") or 1.0 / np.sqrt(q.shape[-1]))
        if node.params.get("enable_gqa"):
            k, v = (shared_heads(x, q.shape[-3]) for x in (k, v))
        self.lead = len(q.dims) - 2
        fields = _common_lead([q, k, v], self.lead)
        self.q, self.k, self.v = (_one_position_factor(f) for f in fields)
        self.rows, self.keys = self.q.shape[-2], self.k.shape[-2]
        self.width = self.q.shape[-1]
        seen = np.ones((self.rows, self.keys))
        if node.params.get("is_causal"):
            seen = np.tril(seen)
        self.bias = 0.0
        if mask is not None and mask.array is not None:
            seen = seen * _visible(mask)
        elif mask is not None and mask.known:
            self.bias = float(np.mean(mask.variance))  # of scores by position, the same for all samples
            if mask.visible is not None:
                rows = (
                    mask.visible.reshape(-1, *mask.visible.shape[-2:]).mean(axis=0)
                    if mask.visible.ndim > 1
                    else mask.visible
                )
                seen = seen * (np.broadcast_to(rows, seen.shape) > 0.5)
        self.seen = seen
        self.counts = np.maximum(seen.sum(axis=1), 1.0)
        self.u = seen / self.counts[:, None]

    def flatness(self) -> np.ndarray:
        """E[sum p^2 (1 - 2 p + sum p^2)] over E[sum p^2], against that of equal probabilities, by row."""
        table = self.logit_covariance()
        variance = float(np.mean(np.diagonal(table[(0,) * (table.ndim - 2)])))
        squares = concentration(self.counts, variance) / self.counts
        cubes = third_power(self.counts, variance)
        one = 1.0 - 1.0 / self.counts
        found = np.clip(1.0 - 2.0 * cubes / squares + squares, 0.0, 1.0)
        return np.where(self.counts > 1, found / np.maximum(one, 1e-12), 0.0)

    def responses(self) -> tuple[np.ndarray, np.ndarray]:
        """How the cotangents of queries and of keys move with their sizes, by row: 1 where scores are small."""
        table = self.logit_covariance()
        variance = float(np.mean(np.diagonal(table[(0,) * (table.ndim - 2)])))
        return responses(self.counts, variance)

    def few_rows(self, by_row: np.ndarray) -> float:
        """Relative variance of a mean square over rows of which few, with few keys each, hold most.

        A row's square is a quadratic form of its cotangent in one dimension less than it has keys. Products of values
        and of keys vary as Wishart matrices of a head's width do, and those of the vectors that they are made of
        vary for all heads at once; rows with common keys share both.
        """
        share = by_row / max(float(by_row.sum()), 1e-300)
        freedom = np.clip(self.counts - 1.0, 1.0, self.width)
        size = np.sqrt(np.diagonal(self.norm))
        common = float(share @ (self.norm / np.outer(size, size)) @ share)
        samples, tables = float(self.q.shape[0]), max(float(np.prod(self.q.shape[:-2])), 1.0)
        own = float(np.sum(share**2 * 2.0 / freedom)) + 4.0 / self.width * common
        v, k = self.noise_of_differences(self.v), self.noise_of_differences(self.k)
        # made of the same vectors, whose products enter squared
        noise = v + k + (2.0 * (v * k) ** 0.5 if self.v.sources & self.k.sources else 0.0)
        return own / tables + noise * common / samples

    def noise_of_differences(self, f: Field) -> float:
        """The noise of products of what differs between keys: 1 - c varies by c / (1 - c) times what c does."""
        table = self.over_width(f)
        table = table[(0,) * (table.ndim - 2)]
        n, same = self.keys, float(np.trace(table))
        if n < 2 or not same > 0:
            return f.noise
        c = float(np.clip((float(table.sum()) - same) / (n - 1) / same, 0.0, 0.95))
        own = min(f.local, f.noise)
        return own + (f.noise - own) * max(1.0, c / (1.0 - c)) ** 2

    def kept_alignment(self, gg: np.ndarray) -> float:
        """The part of an output's alignment that each value that it is a mean of has."""
        own = np.diagonal(gg, axis1=-2, axis2=-1).reshape(-1, self.rows).mean(axis=0)
        squares, fourth = (self.u**2).sum(axis=1), (self.u**4).sum(axis=1)
        whole = float(np.sum(own * squares))
        return float(np.sum(own * fourth / squares)) / whole if whole > 0 else 0.0

    @property
    def norm(self) -> np.ndarray:
        """Sum over keys of the products of two rows' equal probabilities: (i, i')."""
        return np.maximum(self.u @ self.u.T, 1e-300)

    def at_keys(self, table: np.ndarray) -> np.ndarray:
        """Sum over pairs of rows of a table times both rows' equal probabilities at a key: (..., j)."""
        return ((table @ self.u) * self.u).sum(axis=-2)

    def tables(self, f: Field) -> np.ndarray:
        """(lead classes..., width classes, i, i')."""
        k = len(f.axes) - 1 - len(f.dims[-1])
        return _laid(f.pairs, k, f.axes[k])

    def over_width(self, f: Field) -> np.ndarray:
        """The pairs of equal positions of the width, averaged: (lead classes..., i, i')."""
        table = self.tables(f)
        for j in range(len(f.dims[-1])):
            a = f.dims[-1][j]
            d = table.ndim - 3
            table = np.take(table, a.same, axis=d).mean(axis=d) if table.shape[d] > 1 else np.take(table, 0, axis=d)
        return table

    def logit_covariance(self) -> np.ndarray:
        """Covariance of two rows' logits at one key less that at different keys: (lead classes..., i, i')."""
        qq, kk = self.over_width(self.q), self.over_width(self.k)
        n = self.keys
        same = np.trace(kk, axis1=-2, axis2=-1) / n
        every = kk.sum(axis=(-2, -1))
        far = (every - n * same) / max(n * (n - 1), 1)
        by_content = self.scale**2 * self.width * qq * (same - far)[..., None, None]
        return by_content + self.bias * np.eye(self.rows) if self.bias else by_content

    def both_uneven(self, vv: np.ndarray, kk: np.ndarray) -> np.ndarray:
        """What E[(v - mean).(v' - mean) k.k'], summed over pairs of keys, exceeds the product of the means by.

        Values and keys are made of the same vectors, whose products differ from their expectations as a Wishart
        matrix does: cov(K_ab, K_cd) = (k_ac k_bd + k_ad k_bc) / n. What earlier layers have added up is taken as
        independent from pair to pair.
        """
        shared = min(f.noise / 2 + f.rough for f in (self.v, self.k))
        width = max(f.units for f in (self.q, self.k, self.v))
        fresh = min(shared, 1.0 / width) if width else shared
        sizes = []
        for table in (vv, kk):
            own = np.diagonal(table, axis1=-2, axis2=-1)
            sizes.append(np.clip(own @ self.u.T - ((self.u @ table) * self.u).sum(axis=-1), 0.0, None))
        size = np.sqrt(sizes[0] * sizes[1])
        found = fresh * size[..., :, None] * size[..., None, :] * (1.0 + self.norm)
        if shared > fresh:
            own = np.sqrt(np.clip(np.diagonal(vv * kk, axis1=-2, axis2=-1), 0.0, None))
            apart = own[..., :, None] * own[..., None, :] * (1.0 - np.eye(self.keys))
            found = found + (shared - fresh) * (self.u @ apart @ self.u.T)
        return found

    def shares(self) -> np.ndarray:
        """How much of E[p_ij p_i'j'] lies on equal keys beyond what equal probabilities have: (lead..., i, i')."""
        common = np.minimum((self.seen @ self.seen.T), np.minimum.outer(self.counts, self.counts))
        s = common / np.outer(self.counts, self.counts)
        cov = np.clip(self.logit_covariance(), 0.0, None)
        n = np.broadcast_to(np.maximum(np.minimum.outer(self.counts, self.counts), 1.0), cov.shape)
        rho = concentrations(n, cov)
        e = rho * s
        return np.clip((e - s) / np.maximum(1.0 - s, 1e-12), 0.0, 1.0) * (s < 1 - 1e-9)


def _visible(mask: Field) -> np.ndarray:
    assert mask.array is not None
    values = np.broadcast_to(mask.array, [a.size for a in mask.axes]).reshape(mask.shape)
    values = values.reshape(-1, *values.shape[-2:]).mean(axis=0) if values.ndim > 2 else values
    if values.min() < -1e3:
        return (values > -1e3).astype(float)
    if set(np.unique(values)) <= {0.0, 1.0} and values.max() > 0:
        return values
    return np.ones_like(values)


def shared_heads(x: Field, heads: int) -> Field:
    """Each head for several others: copies, inside of the head dimension."""
    d = len(x.dims) - 3
    times = heads // x.shape[d]
    return repeated(x, d, times) if times > 1 else x


def _common_lead(fields: Sequence[Field], lead: int) -> list[Field]:
    return aligned(fields, [[*range(lead), f"position {k}", f"width {k}"] for k in range(len(fields))])


def _one_position_factor(f: Field) -> Field:
    d = len(f.dims) - 2
    start = sum(len(x) for x in f.dims[:d])
    f = merged(f, start, len(f.dims[d])) if f.dims[d] else with_factor(f, d, Axis(1))
    return f if f.dims[-1] else with_factor(f, d + 1, Axis(1))


def _attention_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    if any(not f.known for f in (*inputs[:3], g)):
        return [
            unknown(i.shape, "attention of what is unknown") if w else None for i, w in zip(inputs, wanted, strict=True)
        ]
    short = shortened(node, inputs)
    if short and len(inputs) > 3 and wanted[3]:
        why = f"attention over {max(short[0].rows[0], short[0].keys[0])} positions with a learned bias"
        return [unknown(i.shape, why) if w else None for i, w in zip(inputs, wanted, strict=True)]
    if short:
        both = [_attention_back(node, like_rows(g, s.rows[1]), y, s.inputs, wanted) for s in short]
        return [
            continued(short, (a, b), k == 0) if a is not None and b is not None else None
            for k, (a, b) in enumerate(zip(*both, strict=True))
        ]
    gqa = bool(node.params.get("enable_gqa"))
    a = _Attention(node, inputs)
    g = _one_position_factor(_common_lead([g, a.q, a.k], a.lead)[0])
    u, s = a.u, a.shares()
    n = a.keys
    gg = a.tables(g)  # (lead, width, i, i')
    w = np.expand_dims(s, -3)
    norm = a.norm
    # values
    spread = u.T @ ((1 - w) * gg) @ u
    peaks = a.at_keys(w * gg / norm)
    gv = spread + peaks[..., None] * np.eye(n)
    # logits: dS_ij = p_ij g_i (v_j - sum of p_il v_l), the probabilities as equal as ``s`` leaves them
    vv, kk, qq = a.over_width(a.v), a.over_width(a.k), a.over_width(a.q)
    gd = a.scale**2 * a.v.shape[-1] * a.over_width(g)  # (lead, i, i')
    ut = np.swapaxes(u, -1, -2)
    vu, ku = vv @ ut, kk @ ut
    mixed = u @ vu
    once = u @ (vu * ku)
    even = u @ (vv * kk) @ ut - once - np.swapaxes(once, -1, -2) + mixed * (u @ ku) + a.both_uneven(vv, kk)
    both = (1 - s) * norm + s  # sum over keys of E[p_ij p_i'j]
    root = np.sqrt(a.flatness())
    ratio = both / norm * root[:, None] * root[None, :]
    gq = gd * even * ratio
    h = gd * qq * ratio
    hu = ut @ h
    part = (hu * vu) @ u
    gk = vv * (hu @ u) - part - np.swapaxes(part, -1, -2) + ut @ (h * mixed) @ u
    base = (
        gd
        / a.scale**2
        * ratio
        * norm
        * np.clip(np.trace(vv, axis1=-2, axis2=-1) / n - vv.mean(axis=(-2, -1)), 0.0, None)[..., None, None]
    )
    found: list[Field | None] = [None] * len(inputs)
    responses = a.responses()
    by_row = np.diagonal(gq, axis1=-2, axis2=-1).reshape(-1, a.rows).mean(axis=0)
    pulls = [float(np.sum(r * by_row) / np.sum(by_row)) if np.sum(by_row) > 0 else 1.0 for r in responses]
    few = a.few_rows(by_row)
    if wanted[0]:
        found[0] = _uncertain(replace(_cotangent(a.q, gq, g), own_alignment=pulls[0]), few)
    if wanted[1]:
        found[1] = _uncertain(replace(_cotangent(a.k, gk, g), own_alignment=pulls[1]), few)
    if wanted[2]:
        found[2] = replace(_back_to(a, a.v, gv, g), alignment=g.alignment * a.kept_alignment(gg))
    if len(inputs) > 3 and wanted[3]:
        square = np.diagonal(base, axis1=-2, axis2=-1)[..., None] / a.counts[:, None] * (a.seen > 0)
        found[3] = _of_scores(square, a, inputs[3], g)
    if gqa:
        for j in (1, 2):
            if found[j] is not None:
                found[j] = gathered_heads(found[j], inputs[j].shape)  # type: ignore[arg-type]
    return found


def _uncertain(g: Field, spread: float) -> Field:
    """With one more source of its scale."""
    fluctuation = float(np.log1p(spread))
    return replace(g, scale=with_scale(g.scale, object(), float(np.sqrt(fluctuation))), lean=g.lean + fluctuation / 2)


def _of_scores(square: np.ndarray, a: _Attention, mask: Field, g: Field) -> Field:
    """The cotangent of what is added to the scores, (lead classes..., i, j), summed over what shares it."""
    for k in range(square.ndim - 2):
        axis = a.q.axes[k]
        square = pair.resolved_one(square, k, axis).mean(axis=k, keepdims=True)
    square = square.reshape(square.shape[-2:])
    repeats = float(np.prod(g.shape[:-2])) / max(float(np.prod(mask.shape[:-2])), 1.0)
    shape = mask.shape
    second = (square * repeats).reshape((1,) * (len(shape) - 2) + square.shape)
    second = second if shape[-2:] == square.shape else np.mean(second, axis=(-2, -1), keepdims=True)
    return replace(
        iid(shape, 0.0, second), scale=g.scale, lean=g.lean, kind=worst(g.kind, "approximate"), why="scores' cotangent"
    )


def gathered_heads(g: Field, shape: Sequence[int]) -> Field:
    """The cotangents of copies of a head, summed."""
    d = len(shape) - 3
    times = g.shape[d] // shape[d]
    if times <= 1:
        return g
    g = refined(g, d, [shape[d], times])
    start = sum(len(x) for x in g.dims[:d])
    total = pair.total(g.pairs, start + 1, g.axes[start + 1])
    dims = list(g.dims)
    dims[d] = (g.axes[start],)
    table = np.squeeze(total, start + 1)
    axes = [a for dim in dims for a in dim]
    return replace(
        g,
        dims=tuple(dims),
        mean=np.zeros((1,) * len(axes)),
        second=np.maximum(pair.resolved(table, axes), 0.0),
        pairs=table,
    )


def _cotangent(like: Field, table: np.ndarray, g: Field) -> Field:
    """A cotangent whose width elements are uncorrelated, from its table (lead..., i, i')."""
    axis = _position_axis(like)
    inner = pair.average(table, table.ndim - 2, axis)
    for a in like.dims[-1]:
        first = np.expand_dims(inner, -1)
        rest = np.zeros((*inner.shape, a.classes))
        rest[..., a.same] = first
        inner = rest
    return _made(like, inner, g)


def _back_to(a: _Attention, like: Field, table: np.ndarray, g: Field) -> Field:
    """A cotangent of the values: (lead..., width classes, j, j')."""
    axis = _position_axis(like)
    width = table.ndim - 3
    inner = pair.average(table, width, axis)  # position classes at the width's place, width behind
    return _made(like, inner, g)


def _position_axis(like: Field) -> Axis:
    return like.axes[len(like.axes) - 1 - len(like.dims[-1])]


def _made(like: Field, table: np.ndarray, g: Field) -> Field:
    axes = like.axes
    return within_budget(
        Field(
            like.dims,
            np.zeros((1,) * len(axes)),
            np.maximum(pair.resolved(table, axes), 0.0),
            table,
            kurtosis=4.0,
            scale=g.scale,
            lean=g.lean,
            noise=g.noise,
            noise_lean=g.noise_lean,
            rough=g.rough,
            units=float(like.shape[-1]),
            sources=like.sources,
            kind=worst(g.kind, "approximate"),
            why="softmax attention by its integral",
        )
    )


@rule("attention", backward=_attention_back)
def _attention(node: Node, inputs: Sequence[Field]) -> Field:
    if any(not f.known for f in inputs[:3]):
        return unknown(sizes(node.shape), "attention of what is unknown")
    short = shortened(node, inputs)
    if short:
        return continued(short, [_attention(node, s.inputs) for s in short], rows=True)
    a = _Attention(node, inputs)
    s = np.expand_dims(a.shares(), -3)
    vv = a.tables(a.v)  # (lead..., width classes, j, j')
    u = a.u
    spread = u @ vv @ u.T
    diagonal = np.diagonal(vv, axis1=-2, axis2=-1)
    peaks = (u * diagonal[..., None, :]) @ u.T / a.norm
    table = (1 - s) * spread + s * peaks
    like = replace(a.v, dims=(*a.v.dims[:-2], a.q.dims[-2], a.v.dims[-1]))
    axis = _position_axis(like)
    inner = pair.average(table, table.ndim - 3, axis)
    axes = like.axes
    mean = np.broadcast_to(
        np.mean(a.v.mean, axis=len(axes) - 1 - len(a.v.dims[-1]), keepdims=True),
        [1 if n == 1 else n for n in np.mean(a.v.mean, axis=len(axes) - 1 - len(a.v.dims[-1]), keepdims=True).shape],
    )
    return within_budget(
        Field(
            like.dims,
            mean,
            np.maximum(pair.resolved(inner, axes), 0.0),
            inner,
            normal=a.v.normal,
            scale=a.v.scale,
            lean=a.v.lean,
            noise=a.v.noise,
            noise_lean=a.v.noise_lean,
            rough=a.v.rough,
            units=a.v.units,
            sources=a.q.sources | a.k.sources | a.v.sources,
            odd=a.v.odd,
            kind=worst(*(f.kind for f in inputs[:3]), "approximate"),
            why="softmax attention by its integral",
        )
    )
