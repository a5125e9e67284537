"""The open test problems of ``derive``: formula, variable and the answer a person would print.

Every problem is written in the formula language, and so is its answer, as the literature prints it. Abbreviations that
the printed answer uses (p = softmax(z), s = sigmoid(x), S, delta) are assignments before its last expression;
names that the formula itself assigns (f0, xhat, sigma) may be used in the answer as they are.

``layout`` is the one in which the printed answer holds: d(A x)/dx = A is numerator, F.shape + X.shape. For the
gradient of a scalar both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.ir import SPELLINGS


@dataclass(frozen=True)
class Problem:
    """One derivative and its printed answer.

    Attributes:
        id: as in the list it comes from. formula: one formula or assignments. wrt: the variable.
        answer: the printed derivative, abbreviations as assignments before it.
        domain: name -> what values the answer is for (the functions of :data:`DOMAINS`), where not all values.
        larger: dimension -> one that it must exceed (a tall matrix, a window that fits).
        needs: functions of the language that may not be declared yet.
    """

    id: str
    formula: str
    wrt: str
    answer: str
    shapes: Mapping[str, str] = field(default_factory=dict)
    order: int = 1
    layout: str = "denominator"
    cotangent: str | None = None
    domain: Mapping[str, str] = field(default_factory=dict)
    larger: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of ``needs`` that the language does not have yet."""
        return tuple(name for name in self.needs if name not in SPELLINGS)


# ---- values for which an answer holds ----------------------------------------------------------------------
def _distances(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    points = generator.standard_normal((shape[0], 2))
    return ((points[:, None] - points[None, :]) ** 2).sum(-1)


def _symmetric(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    a = generator.standard_normal(shape)
    return a + a.T


def _stochastic(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    a = generator.uniform(0.2, 1.0, shape)
    return a / a.sum(-1, keepdims=True)


def _definite(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Positive definite, but not symmetric: a free matrix near the identity."""
    return np.eye(shape[0]) + 0.2 * generator.standard_normal(shape)


DOMAINS = {
    "fraction": lambda generator, shape: generator.uniform(0.2, 0.8, shape),
    "above 1": lambda generator, shape: generator.uniform(2.0, 4.0, shape),
    "large": lambda generator, shape: generator.uniform(20.0, 30.0, shape),
    "sign": lambda generator, shape: generator.choice([-1.0, 1.0], shape),
    "positive": lambda generator, shape: generator.uniform(0.5, 1.5, shape),
    "symmetric": _symmetric,
    "rows sum to 1": _stochastic,
    "squared distances": _distances,
    "positive definite": _definite,
}

# ---- scalars -----------------------------------------------------------------------------------------------
TOY = (
    "f0 = β0 + ω0*x; h1 = sin(f0); f1 = β1 + ω1*h1; h2 = exp(f1); f2 = β2 + ω2*h2; h3 = cos(f2); "
    "f3 = β3 + ω3*h3; l = (f3 - y)^2"
)

SCALAR = [
    Problem("S01", "(x^2 + 1)^3", "x", "6*x*(x^2 + 1)^2"),
    Problem("S02", "sigmoid(x)", "x", "s = sigmoid(x); s*(1 - s)"),
    Problem("S04", "log(1 + exp(x))", "x", "sigmoid(x)"),
    Problem("S05", TOY, "ω0", "-2*(f3 - y)*ω1*ω2*ω3*x*cos(f0)*h2*sin(f2)"),
    Problem("S08", "u = exp(x) + exp(2*x); y = exp(u) + sin(u)", "x", "(exp(u) + cos(u))*(exp(x) + 2*exp(2*x))"),
    Problem("S21", "c = x^2 + exp(x^2); y = sqrt(c) + cos(c)", "x", "2*x*(1/(2*sqrt(c)) - sin(c))*(1 + exp(x^2))"),
    Problem("S09", "x*sigmoid(x)", "x", "s = sigmoid(x); s*(1 + x*(1 - s))"),
    # Phi and phi of the normal distribution; the language has no pi: 1/sqrt(2*pi) is written out.
    Problem("S10", "Φ = (1 + erf(x/sqrt(2)))/2; y = x*Φ", "x", "φ = 0.3989422804014327*exp(-x^2/2); Φ + x*φ"),
    Problem("S12", "log(1 + exp(z)) - y*z", "z", "sigmoid(z) - y"),
    Problem("S14", "sqrt(1 + x^2) - 1", "x", "x/sqrt(1 + x^2)"),
    Problem("S16", "x/(1 + abs(x))", "x", "1/(1 + abs(x))^2"),
    Problem("S18", "(l + exp(-l)*(y - mu)^2)/2", "l", "(1 - exp(-l)*(y - mu)^2)/2"),
]

# ---- vectors -----------------------------------------------------------------------------------------------
X = {"x": "n"}
QUADRATIC = {"x": "n", "A": "n,n"}
LEAST_SQUARES = {"X": "m,n", "y": "m", "w": "n"}
LAYER_NORM = "mu = mean(x); sigma = sqrt(mean((x - mu)^2) + eps); xhat = (x - mu)/sigma"
ABOVE = {"eps": "positive"}
GAUSSIAN_PROCESS = "Kf = s^2*exp(-D/(2*ℓ^2)); K = Kf + σ^2*eye(n); L = y' @ inv(K) @ y/2 + logdet(K)/2"

VECTOR = [
    Problem("V01", "v' @ x", "x", "v", {"v": "n", "x": "n"}),
    Problem("V02", "x' @ A @ x", "x", "(A + A') @ x", QUADRATIC),
    Problem("V03", "x' @ A @ x", "x", "A + A'", QUADRATIC, order=2),
    Problem(
        "V04",
        "(B @ x + b)' @ C @ (D @ x + c)",
        "x",
        "B' @ C @ (D @ x + c) + D' @ C' @ (B @ x + b)",
        {"B": "m,n", "x": "n", "b": "m", "C": "m,k", "D": "k,n", "c": "k"},
    ),
    Problem("V05", "norm(X @ w - y)^2/2 + λ*norm(w)^2/2", "w", "X' @ (X @ w - y) + λ*w", LEAST_SQUARES),
    Problem("V07", "norm(x)", "x", "x/norm(x)", X),
    Problem("V09", "log(sum(exp(x)))", "x", "softmax(x)", X),
    Problem("V10", "softmax(x)", "x", "p = softmax(x); diag(p) - p @ p'", X),
    Problem("V11", "log(softmax(x))", "x", "p = softmax(x); eye(n) - ones(n) @ p'", X, layout="numerator"),
    Problem("V12", "-c' @ log(softmax(z))", "z", "p = softmax(z); sum(c)*p - c", {"c": "n", "z": "n"}),
    Problem(
        "V13",
        "-c' @ log(softmax(z))",
        "z",
        "p = softmax(z); sum(c)*(diag(p) - p @ p')",
        {"c": "n", "z": "n"},
        order=2,
    ),
    Problem(
        "V14",
        "sum(log(1 + exp(-y*(X @ w))))",
        "w",
        "-X' @ (y*sigmoid(-y*(X @ w)))",
        LEAST_SQUARES,
        domain={"y": "sign"},
    ),
    Problem(  # the answer uses y^2 = 1 and that its sign does not matter; for any y there is y^2*s(y*Xw)*s(-y*Xw)
        "V15",
        "sum(log(1 + exp(-y*(X @ w))))",
        "w",
        "X' @ diag(sigmoid(X @ w)*sigmoid(-X @ w)) @ X",
        LEAST_SQUARES,
        order=2,
        domain={"y": "sign"},
    ),
    Problem("V18", "exp(A @ x)", "x", "diag(exp(A @ x)) @ A", {"A": "m,n", "x": "n"}, layout="numerator"),
    Problem("V19", "A @ (x*x)", "x", "2*A @ diag(x)", {"A": "m,n", "x": "n"}, layout="numerator"),
    Problem("V21", "r = (x' @ A @ x)/(x' @ x)", "x", "((A + A') @ x - 2*r*x)/(x' @ x)", QUADRATIC),
    Problem("V22", LAYER_NORM, "x", "(eye(n) - ones(n) @ ones(n)'/n - xhat @ xhat'/n)/sigma", X, domain=ABOVE),
    Problem(
        "V23",
        LAYER_NORM + "; l = dy' @ (gamma*xhat + beta)",
        "x",
        "g = gamma*dy; (g - mean(g) - xhat*mean(g*xhat))/sigma",
        {"x": "n", "dy": "n", "gamma": "n", "beta": "n"},
        domain=ABOVE,
    ),
    Problem(
        "V25",
        "c = (x' @ b)/(norm(x)*norm(b))",
        "x",
        "(b/norm(b) - c*x/norm(x))/norm(x)",
        {"x": "n", "b": "n"},
    ),
    Problem(
        "V29",
        "sum(maximum(0, 1 - y*(X @ w))^2)",
        "w",
        "-2*X' @ (y*maximum(0, 1 - y*(X @ w)))",
        LEAST_SQUARES,
        domain={"y": "sign"},
    ),
    Problem(  # sum_i g_i x_{i+j} is the correlation of x with g
        "V30",
        "g' @ conv1d(x, w)",
        "w",
        "conv1d(x, g)",
        {"x": "n", "w": "k", "g": "n - k + 1"},
        larger={"n": "k"},
        needs=("conv1d",),
    ),
    Problem("V32", "v' @ relu(W @ x)", "x", "W' @ (v*[W @ x > 0])", {"v": "m", "W": "m,n", "x": "n"}),
    Problem(
        "V35",
        "V' @ softmax(K @ q)",
        "q",
        "p = softmax(K @ q); V' @ (diag(p) - p @ p') @ K",
        {"V": "m,v", "K": "m,d", "q": "d"},
        layout="numerator",
    ),
    Problem("V36", "(x - μ)' @ P @ (x - μ)", "μ", "-(P + P') @ (x - μ)", {"x": "n", "μ": "n", "P": "n,n"}),
    Problem(
        "V37",
        "g' @ (x + W2 @ relu(W1 @ x))",
        "x",
        "g + W1' @ ((W2' @ g)*[W1 @ x > 0])",
        {"g": "n", "x": "n", "W1": "m,n", "W2": "n,m"},
    ),
    Problem(
        "V40",
        GAUSSIAN_PROCESS,
        "ℓ",
        "α = inv(K) @ y; tr((inv(K) - α @ α') @ (Kf*D/ℓ^3))/2",
        {"D": "n,n", "y": "n"},
        domain={"D": "squared distances", "ℓ": "positive", "s": "positive", "σ": "positive"},
    ),
]

# ---- matrices ----------------------------------------------------------------------------------------------
SQUARE = {"X": "n,n"}
FACTORS = {"T": "m,n", "U": "m,r", "V": "n,r"}
LINEAR = {"G": "m,n", "X": "m,k", "W": "k,n", "b": "n"}
ATTENTION = "sum(G*(softmax(Q @ K'/sqrt(d)) @ V))"
HEADS = {"Q": "m,d", "K": "n,d", "V": "n,v", "G": "m,v"}
BATCH_NORM = "mu = mean(X, 0); sigma = sqrt(mean((X - mu)^2, 0) + eps); xhat = (X - mu)/sigma; " + (
    "l = sum(G*(gamma*xhat + beta))"
)
BATCH = {"X": "B,n", "G": "B,n", "gamma": "n", "beta": "n"}

MATRIX = [
    Problem("M01", "tr(A @ X)", "X", "A'", {"A": "m,n", "X": "n,m"}),
    Problem("M02", "tr(X' @ A @ X)", "X", "(A + A') @ X", {"X": "m,n", "A": "m,m"}),
    Problem(
        "M03",
        "tr(A @ X @ B @ X' @ C)",
        "X",
        "A' @ C' @ X @ B' + C @ A @ X @ B",
        {"A": "p,m", "X": "m,n", "B": "n,n", "C": "m,p"},
    ),
    Problem("M04", "a' @ X @ b", "X", "a @ b'", {"a": "m", "X": "m,n", "b": "n"}),
    Problem("M05", "a' @ X' @ X @ b", "X", "X @ (a @ b' + b @ a')", {"a": "n", "X": "m,n", "b": "n"}),
    Problem(
        "M07",
        "(X @ b + c)' @ D @ (X @ b + c)",
        "X",
        "(D + D') @ (X @ b + c) @ b'",
        {"X": "m,n", "b": "n", "c": "m", "D": "m,m"},
    ),
    Problem("M08", "a' @ inv(X) @ b", "X", "-inv(X)' @ a @ b' @ inv(X)'", {"a": "n", "b": "n", **SQUARE}),
    Problem("M09", "log(abs(det(X)))", "X", "inv(X)'", SQUARE),
    Problem("M10", "det(X)", "X", "det(X)*inv(X)'", SQUARE),
    Problem("M11", "logdet(X' @ X)", "X", "2*X @ inv(X' @ X)", {"X": "m,n"}, larger={"m": "n"}),
    Problem("M14", "tr(inv(X) @ A)", "X", "-(inv(X) @ A @ inv(X))'", {"A": "n,n", **SQUARE}),
    Problem("M15", "norm(X)", "X", "X/norm(X)", {"X": "m,n"}),
    Problem("M16", "norm(A @ X - B)^2", "X", "2*A' @ (A @ X - B)", {"A": "p,m", "X": "m,n", "B": "p,n"}),
    Problem("M17", "tr(X @ X @ X)", "X", "3*(X @ X)'", SQUARE),
    Problem("M19", "tr(A' @ (X*X))", "X", "2*A*X", {"A": "m,n", "X": "m,n"}),
    Problem(
        "M20",
        "A @ X @ B",
        "X",
        'einsum("ik,lj->ijkl", A, B)',
        {"A": "p,m", "X": "m,n", "B": "n,q"},
        layout="numerator",
    ),
    Problem("M21", "inv(X)", "X", '-einsum("ik,lj->ijkl", inv(X), inv(X))', SQUARE, layout="numerator"),
    Problem(
        "M22",
        "X @ X'",
        "X",
        'einsum("ik,jl->ijkl", eye(m), X) + einsum("il,jk->ijkl", X, eye(m))',
        {"X": "m,n"},
        layout="numerator",
    ),
    Problem("M25", "sum(G*(X @ W + ones(m) @ b'))", "W", "X' @ G", LINEAR),
    Problem("M26", "sum(G*(X @ W + ones(m) @ b'))", "X", "G @ W'", LINEAR),
    Problem("M27", "sum(G*(X @ W + ones(m) @ b'))", "b", "G' @ ones(m)", LINEAR),
    Problem(
        "M28",
        "sum(G*softmax(S))",
        "S",
        "P = softmax(S); P*(G - ((G*P) @ ones(n)) @ ones(n)')",
        {"G": "m,n", "S": "m,n"},
    ),
    Problem(
        "M29",
        "-sum(Y*log(softmax(X @ W)))/B",
        "W",
        "P = softmax(X @ W); X' @ (P - Y)/B",
        {"X": "B,d", "W": "d,k", "Y": "B,k"},
        domain={"Y": "rows sum to 1"},
    ),
    Problem(
        "M31",
        "norm(tanh(X @ W1) @ W2 - Z)^2/(2*B)",
        "W1",
        "H = tanh(X @ W1); R = H @ W2 - Z; X' @ ((R @ W2')*(1 - H^2))/B",
        {"X": "B,d", "W1": "d,h", "W2": "h,k", "Z": "B,k"},
    ),
    Problem("M32", ATTENTION, "V", "P = softmax(Q @ K'/sqrt(d)); P' @ G", HEADS),
    Problem(
        "M33",
        ATTENTION,
        "Q",
        "P = softmax(Q @ K'/sqrt(d)); S = P*(G @ V' - ((G @ V'*P) @ ones(n)) @ ones(n)'); S @ K/sqrt(d)",
        HEADS,
    ),
    Problem(
        "M35",
        BATCH_NORM,
        "X",
        "gamma/(B*sigma)*(B*G - sum(G, 0) - xhat*sum(G*xhat, 0))",
        BATCH,
        domain=ABOVE,
    ),
    Problem("M36", BATCH_NORM, "gamma", "sum(G*xhat, 0)", BATCH, domain=ABOVE),
    Problem(
        "M37",
        "logdet(Σ)/2 + r' @ inv(Σ) @ r/2",
        "Σ",
        "(inv(Σ)' - inv(Σ)' @ r @ r' @ inv(Σ)')/2",
        {"Σ": "n,n", "r": "n"},
        domain={"Σ": "positive definite"},
    ),
    Problem("M40", "norm(T - U @ V')^2", "U", "-2*(T - U @ V') @ V", FACTORS),
    Problem("M42", "norm(T - U @ V')^2", "U", '2*einsum("ij,kl->ikjl", eye(m), V\' @ V)', FACTORS, order=2),
    Problem("M43", "norm(Ω*(T - U @ V'))^2", "U", "-2*(Ω^2*(T - U @ V')) @ V", {"Ω": "m,n", **FACTORS}),
    Problem(
        "M49",
        "tr(inv(X' @ C @ X) @ A)",
        "X",
        "-C @ X @ inv(X' @ C @ X) @ (A + A') @ inv(X' @ C @ X)",
        {"X": "m,n", "C": "m,m", "A": "n,n"},
        domain={"C": "symmetric"},
        larger={"m": "n"},
    ),
    Problem("M51", "norm(W' @ W - eye(n))^2", "W", "4*W @ (W' @ W - eye(n))", {"W": "m,n"}),
    Problem(
        "M52",
        "h1 = tanh(W @ x1 + U @ h0); h2 = tanh(W @ x2 + U @ h1); l = c' @ h2",
        "W",
        "δ2 = c*(1 - h2^2); δ1 = (U' @ δ2)*(1 - h1^2); δ2 @ x2' + δ1 @ x1'",
        {"W": "m,n", "U": "m,m", "x1": "n", "x2": "n", "h0": "m", "c": "m"},
    ),
    Problem(
        "M54",
        "f0 = Ω0 @ x; h1 = relu(f0); f1 = Ω1 @ h1; h2 = relu(f1); l = norm(Ω2 @ h2 - y)^2",
        "Ω0",
        "([f0 > 0]*(Ω1' @ ([f1 > 0]*(Ω2' @ (2*(Ω2 @ h2 - y)))))) @ x'",
        {"Ω0": "p,n", "Ω1": "q,p", "Ω2": "k,q", "x": "n", "y": "k"},
    ),
    Problem("M58", "sum(abs(X))", "X", "sign(X)", {"X": "m,n"}),
    Problem("M60", "logdet(X)", "X", '-einsum("jk,li->ijkl", inv(X), inv(X))', SQUARE, order=2),
]

# ---- tensors -----------------------------------------------------------------------------------------------
ORDER_THREE = {"T": "i,j,k", "x": "i", "y": "j", "z": "k"}
MANY_HEADS = {"Q": "b,h,q,d", "K": "b,h,k,d", "V": "b,h,k,e", "G": "b,h,q,e"}

TENSOR = [
    Problem(
        "T01",
        'einsum("ijk,i,j,k->", T, x, x, x)',
        "x",
        'einsum("ijk,j,k->i", T, x, x) + einsum("ijk,i,k->j", T, x, x) + einsum("ijk,i,j->k", T, x, x)',
        {"T": "n,n,n", "x": "n"},
    ),
    Problem("T04", 'einsum("ijk,i,j,k->", T, x, y, z)', "T", 'einsum("i,j,k->ijk", x, y, z)', ORDER_THREE),
    Problem(
        "T08",
        "x @ x'",
        "x",
        'einsum("ik,j->ijk", eye(n), x) + einsum("i,jk->ijk", x, eye(n))',
        X,
        layout="numerator",
    ),
    Problem(
        "T10",
        'sum(G*einsum("bik,kj->bij", X, W))',
        "W",
        'einsum("bik,bij->kj", X, G)',
        {"X": "b,i,k", "W": "k,j", "G": "b,i,j"},
    ),
    Problem(
        "T11",
        'g\' @ einsum("i,kij,j->k", x, W, z)',
        "W",
        'einsum("k,i,j->kij", g, x, z)',
        {"g": "k", "W": "k,i,j", "x": "i", "z": "j"},
    ),
    Problem(
        "T13",
        'sum((T - einsum("ir,jr,kr->ijk", A, B, C))^2)',
        "A",
        'R = T - einsum("ir,jr,kr->ijk", A, B, C); -2*einsum("ijk,jr,kr->ir", R, B, C)',
        {"T": "i,j,k", "A": "i,r", "B": "j,r", "C": "k,r"},
    ),
    Problem(
        "T16",
        'P = softmax(einsum("bhqd,bhkd->bhqk", Q, K)/sqrt(d)); l = sum(G*einsum("bhqk,bhke->bhqe", P, V))',
        "Q",
        'A = einsum("bhqe,bhke->bhqk", G, V); S = P*(A - sum(A*P, 3)[:, :, :, None]); '
        'einsum("bhqk,bhkd->bhqd", S, K)/sqrt(d)',
        MANY_HEADS,
    ),
    Problem(
        "T19",
        "norm(W2 @ W1 @ X - Y)^2/2",
        "W1",
        "einsum(\"ik,jl->ijkl\", W2' @ W2, X @ X')",
        {"W2": "p,m", "W1": "m,n", "X": "n,s", "Y": "p,s"},
        order=2,
    ),
    Problem(  # d + eye(n) is d off the diagonal and 1 on it, where x_i - x_j is zero: the sum over j != i
        "T21",
        "sum(norm(X[:, None] - X[None, :], 2))",
        "X",
        "D = X[:, None] - X[None, :]; d = norm(D, 2) + eye(n); 2*sum(D/d[:, :, None], 1)",
        {"X": "n,k"},
    ),
    Problem(  # sum_bhw g_bohw x_{b,i,h+p,w+q} is the same correlation with batch and channels exchanged
        "T24",
        "sum(g*conv2d(x, w))",
        "w",
        'einsum("iopq->oipq", conv2d(einsum("bihw->ibhw", x), einsum("bohw->obhw", g)))',
        {"x": "b,i,h,w", "w": "o,i,p,q", "g": "b,o,h - p + 1,w - q + 1"},
        larger={"h": "p", "w": "q"},
        needs=("conv2d",),
    ),
]

PROBLEMS: tuple[Problem, ...] = (*SCALAR, *VECTOR, *MATRIX, *TENSOR)
