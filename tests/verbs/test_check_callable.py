"""Hand-written backwards: right ones pass in every dtype, planted mistakes are found, placed and named."""

from __future__ import annotations

import json

import pytest
import torch

import chainrule as cr
from chainrule.errors import ChainruleError, ModelError
from tests.verbs import hand_written as hand

MAKERS = [hand.softmax_ce, hand.layer_norm, hand.rms_norm, hand.attention, hand.swiglu, hand.leaky_relu]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_right_ones_pass(maker, dtype) -> None:
    function, plain, inputs = maker()
    c = cr.check(function, inputs, reference=plain, dtype=dtype)
    assert c.holds and not c.slip and not c.problems, str(c)
    assert c.truth_by == "derived" and c.dtype == str(dtype).removeprefix("torch.")


# maker, mistake, the input whose gradient is wrong, words of the place, words of the slip
PLANTED = [
    (hand.softmax_ce, "no target", "x", "all of it", "missing term: t"),
    (hand.softmax_ce, "sign", "x", "all of it", "sign: the gradient"),
    (hand.softmax_ce, "target sign", "x", "all of it", "sign: the term t"),
    (hand.softmax_ce, "target assumed normalised", "x", "all of it", "missing factor, the sum"),
    (hand.softmax_ce, "mean", "x", "all of it", "1/128 times too large; 128 is the size of dimension 0 of x"),
    (hand.softmax_ce, "cotangent ignored", "x", "all of it", "the cotangent is ignored"),
    (hand.softmax_ce, "rows", "x", "rows 64-127", "zero"),
    (hand.softmax_ce, "nan", "x", "elements", "nan"),
    (hand.softmax_ce, "none", "t", "", "none"),
    (hand.layer_norm, "no weight", "x", "all of it", "missing factor: w"),
    (hand.layer_norm, "sum for mean", "x", "all of it", "24 times too large"),
    (hand.layer_norm, "no mean", "x", "all of it", "missing term"),
    (hand.layer_norm, "no projection", "x", "all of it", "missing term"),
    (hand.layer_norm, "projection sign", "x", "all of it", "sign: the term"),
    (hand.layer_norm, "no rstd", "x", "all of it", "missing factor: sqrt"),
    (hand.layer_norm, "last column", "w", "the last element", "twice"),
    (hand.layer_norm, "swapped", "w", "all of it", "gradient of b"),
    (hand.rms_norm, "rstd power", "x", "all of it", "missing factor: sqrt"),
    (hand.rms_norm, "no projection", "x", "all of it", "missing term"),
    (hand.rms_norm, "projection half", "x", "all of it", "half"),
    (hand.attention, "no delta", "q", "all of it", "missing term: sum((g @ v"),
    (hand.attention, "delta sign", "k", "all of it", "sign: the term"),
    (hand.attention, "no p", "q", "all of it", "missing factor: softmax"),
    (hand.attention, "no scale", "q", "all of it", "sqrt(8) times too large"),
    (hand.attention, "second block", "k", "16-31", "zero"),
    (hand.attention, "transposed", "v", "all of it", "missing transpose: softmax"),
    (hand.attention, "swapped", "k", "all of it", "gradient of q"),
    (hand.swiglu, "no product rule", "a", "all of it", "missing term: a * (1 - sigmoid(a))"),
    (hand.swiglu, "slope sign", "a", "all of it", "sign: the term a * (1 - sigmoid(a))"),
    (hand.swiglu, "no other factor", "a", "all of it", "missing factor: b"),
    (hand.swiglu, "twice", "b", "all of it", "twice"),
    (hand.swiglu, "contiguous", "a", "all of it", "not contiguous"),
    (hand.leaky_relu, "negative side", "x", "where x < 0", "zero"),
]


@pytest.mark.parametrize(
    ("maker", "mistake", "name", "where", "slip"), PLANTED, ids=lambda v: getattr(v, "__name__", v)
)
def test_planted_mistakes_are_found(maker, mistake, name, where, slip) -> None:
    function, plain, inputs = maker(mistake)
    c = cr.check(function, inputs, reference=plain)
    assert not c.holds
    wrong = {r.what: r for r in c.compared if not r.holds}
    found = wrong[f"gradient of {name}"]
    assert where in found.where and slip in found.slip, str(c)
    assert all(r.holds for r in c.compared if r.what.startswith("output"))


@pytest.mark.parametrize("case", PLANTED[::4], ids=lambda v: f"{v[0].__name__}-{v[1]}")
def test_planted_mistakes_are_found_in_bfloat16(case) -> None:
    function, plain, inputs = case[0](case[1])
    c = cr.check(function, inputs, reference=plain, dtype="bfloat16")
    assert not next(r for r in c.compared if r.what == f"gradient of {case[2]}").holds, str(c)


@pytest.mark.parametrize(
    ("maker", "mistake", "words"),
    [
        (hand.leaky_relu, "in place", "writes into its input 'x'"),
        (hand.leaky_relu, "stale", "what it saves is shared"),
        (hand.leaky_relu, "random", "differs from call to call"),
        (hand.leaky_relu, "accumulates", "second backward"),
        (hand.leaky_relu, "cotangent in place", "writes into the cotangent"),
        (hand.leaky_relu, "raises", "raised in its backward: ValueError: no kernel"),
        (hand.layer_norm, "shape", "invalid gradient at index 1"),
    ],
)
def test_what_no_gradient_shows(maker, mistake, words) -> None:
    function, plain, inputs = maker(mistake)
    before = [t.clone() for t in (inputs if isinstance(inputs, tuple) else (inputs,))]
    c = cr.check(function, inputs, reference=plain)
    assert not c.holds and words in c.problems[0] and c.slip
    after = inputs if isinstance(inputs, tuple) else (inputs,)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_wrong_forward_is_named_as_such() -> None:
    function, plain, x = hand.leaky_relu("wrong forward")
    c = cr.check(function, x, reference=plain)
    output, gradient = c.compared
    assert not output.holds and output.where == "where x < 0" and "twice" in output.slip and gradient.holds


class Embed(torch.autograd.Function):
    """Rows of a table, and a count: an integer input, several outputs, one of them an integer."""

    wrong = False

    @staticmethod
    def forward(ctx, table, index, scale):
        ctx.save_for_backward(table, index, scale)
        ctx.mark_non_differentiable(index)
        return table[index] * scale, table.sum(), index

    @staticmethod
    def backward(ctx, g, h, _):
        table, index, scale = ctx.saved_tensors
        d = torch.zeros_like(table)
        if Embed.wrong:
            d[index] = g * scale  # instead of adding what comes several times
        else:
            d.index_add_(0, index, g * scale)
        return d + h, None, (g * table[index]).sum(0)


def embed(table, index, scale):
    return table[index] * scale, table.sum(), index.clone()


@pytest.mark.parametrize("wrong", [False, True])
def test_integers_several_outputs_and_keywords(wrong: bool) -> None:
    Embed.wrong = wrong
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([3, 1, 3, 0, 3, 5])
    inputs = (torch.randn(9, 4, generator=generator), index, torch.randn(4, generator=generator))
    c = cr.check(Embed.apply, inputs, reference=embed)
    assert [r.what for r in c.compared] == [
        "output 1",
        "output 2",
        "output 3",
        "gradient of table",
        "gradient of scale",
    ]
    assert c.holds is not wrong, str(c)
    if wrong:
        assert [r.where for r in c.compared if not r.holds] == ["row 3"]
    named = {"table": inputs[0], "index": index, "scale": inputs[2]}
    by_name = cr.check(lambda table, index, scale: Embed.apply(table, index, scale), named, reference=embed)
    assert by_name.holds is not wrong


def test_inputs_that_require_no_gradient_are_left_out() -> None:
    function, plain, (x, t) = hand.softmax_ce("none")
    c = cr.check(function, (x.clone().requires_grad_(True), t), reference=plain)
    assert c.holds and [r.what for r in c.compared] == ["output", "gradient of x"]


def test_a_detached_candidate() -> None:
    c = cr.check(lambda x: torch.tanh(x.detach()), torch.randn(4), reference=torch.tanh)
    assert not c.holds and "no gradient at all" in c.slip


def test_a_reference_that_cannot_be_traced_is_derived_by_torch() -> None:
    def branches(x):
        return x * 2 if x.sum() > 0 else x * 3  # on values: no graph holds both

    c = cr.check(lambda x: x + x, torch.linspace(0.3, 2.0, 12), reference=branches)
    assert c.holds and c.truth_by == "torch autograd" and c.truth_note


def test_a_systematic_error_below_the_rounding_of_one_element_is_found() -> None:
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 3

        @staticmethod
        def backward(ctx, g):
            return g * 3 * (1 + 2e-2)

    c = cr.check(
        Off.apply,
        torch.randn(4000, generator=torch.Generator().manual_seed(0)),
        reference=lambda x: x * 3,
        dtype="bfloat16",
    )
    assert not c.holds


def test_data_and_text() -> None:
    function, plain, inputs = hand.swiglu("no product rule")
    c = cr.check(function, inputs, reference=plain)
    data = json.loads(json.dumps(c.to_dict()))
    assert data["schema"] == "chainrule.check_callable/1" and data["holds"] is False and data["slip"] == c.slip
    assert str(c).startswith("wrong: Hand.apply disagrees with plain") and "likely slip: missing term" in str(c)
    assert c._repr_html_().startswith("<pre>")
    with pytest.raises(AttributeError):
        c.holds = True


@pytest.mark.parametrize(
    "call",
    [
        lambda: cr.check(torch.tanh, torch.ones(3, dtype=torch.long), reference=torch.tanh),
        lambda: cr.check(torch.tanh, torch.randn(3), reference=3),
        lambda: cr.check(4, torch.randn(3), reference=torch.tanh),
        lambda: cr.check(torch.tanh, torch.randn(3), reference=lambda x: x.detach()),
        lambda: cr.check(torch.tanh, torch.randn(3), reference=lambda x: x + torch.randn(3)),
        lambda: cr.check(torch.tanh, torch.randn(3), reference=lambda x: x @ torch.ones(5)),
        lambda: cr.check(torch.tanh, torch.randn(3), reference=torch.tanh, dtype="int8"),
    ],
)
def test_what_cannot_be_checked_is_refused(call) -> None:
    with pytest.raises(ModelError) as error:
        call()
    assert error.value.given and error.value.required and error.value.instead


def test_half_a_question_is_refused() -> None:
    for call in (
        lambda: cr.check(torch.tanh, torch.randn(3)),
        lambda: cr.check("y = x^2", wrt="x"),
        lambda: cr.check(torch.tanh, reference=torch.tanh),
        lambda: cr.check(torch.tanh, torch.randn(3), reference=torch.tanh, wrt="x"),
    ):
        with pytest.raises(ChainruleError) as error:
            call()
        assert error.value.required and error.value.instead
