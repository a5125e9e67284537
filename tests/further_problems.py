"""A second table of derivatives, of scalars and vectors: the same families as ``tests.problems``, other members.

The answers were written down from the literature before the tool was asked; what a textbook abbreviates is
abbreviated (p = softmax(z), s = sigmoid(x), r for a residual). Matrices and tensors: ``further_matrix_problems``.
"""

from __future__ import annotations

from tests.problems import Problem

MISH = "x*tanh(log(1 + exp(x)))"
GELU_TANH = "x*(1 + tanh(c*(x + a*x^3)))/2"
HUBER = "where(abs(r) < d, r^2/2, d*(abs(r) - d/2))"

SCALAR = [
    Problem("S31", "tanh(x)", "x", "1 - tanh(x)^2"),
    Problem("S32", MISH, "x", "t = tanh(softplus(x)); t + x*(1 - t^2)*sigmoid(x)"),
    Problem("S33", "x*sigmoid(β*x)", "x", "s = sigmoid(β*x); s*(1 + β*x*(1 - s))"),
    Problem("S34", GELU_TANH, "x", "t = tanh(c*(x + a*x^3)); (1 + t + c*x*(1 - t^2)*(1 + 3*a*x^2))/2"),
    Problem("S35", "log(cosh(x))", "x", "tanh(x)"),
    Problem("S36", "atan(x)", "x", "1/(1 + x^2)"),
    Problem("S37", HUBER, "r", "where(abs(r) < d, r, d*sign(r))", domain={"d": "positive"}),
    Problem("S38", "log(σ) + (y - μ)^2/(2*σ^2)", "σ", "1/σ - (y - μ)^2/σ^3", domain={"σ": "positive"}),
    Problem("S39", "log(σ) + (y - μ)^2/(2*σ^2)", "μ", "(μ - y)/σ^2", domain={"σ": "positive"}),
    Problem("S40", "λ - k*log(λ)", "λ", "1 - k/λ", domain={"λ": "positive"}),
    Problem("S41", "exp(η) - k*η", "η", "exp(η) - k"),
    Problem("S42", "maximum(0, 1 - y*f)", "f", "-y*[1 - y*f > 0]"),
    Problem("S43", "-(1 - p)^γ*log(p)", "p", "γ*(1 - p)^(γ - 1)*log(p) - (1 - p)^γ/p", domain={"p": "fraction"}),
    Problem("S44", "elu(x)", "x", "where(x > 0, 1, exp(x))"),
    Problem("S45", "(a*x + b)/(c*x + d)", "x", "(a*d - b*c)/(c*x + d)^2"),
    Problem("S46", "x^x", "x", "x^x*(1 + log(x))", domain={"x": "positive"}),
    Problem("S47", "exp(-x^2/(2*σ^2))", "x", "-x/σ^2*exp(-x^2/(2*σ^2))"),
    Problem("S48", "sqrt(x + sqrt(x))", "x", "(1 + 1/(2*sqrt(x)))/(2*sqrt(x + sqrt(x)))", domain={"x": "positive"}),
    Problem("S49", "sin(x)/x", "x", "(x*cos(x) - sin(x))/x^2"),
    Problem("S50", "log(x + sqrt(1 + x^2))", "x", "1/sqrt(1 + x^2)"),
    Problem("S51", "sigmoid(x)", "x", "s = sigmoid(x); s*(1 - s)*(1 - 2*s)", order=2),
    Problem("S52", "tanh(x)", "x", "t = tanh(x); -2*t*(1 - t^2)", order=2),
    Problem("S53", "log(sigmoid(x))", "x", "sigmoid(-x)"),
    Problem("S54", "-y*log(p) - (1 - y)*log(1 - p)", "p", "(p - y)/(p*(1 - p))", domain={"p": "fraction"}),
    Problem("S55", "exp(sin(x^2))", "x", "2*x*cos(x^2)*exp(sin(x^2))"),
    Problem("S56", "1/(1 + exp(-a*(x - b)))", "a", "s = sigmoid(a*(x - b)); (x - b)*s*(1 - s)"),
    Problem("S57", "log(1 + exp(x))", "x", "s = sigmoid(x); s*(1 - s)", order=2),
    Problem("S58", "log(log(x))", "x", "1/(x*log(x))", domain={"x": "above 1"}),
    Problem("S59", "erf(x)", "x", "1.1283791670955126*exp(-x^2)"),
    Problem("S60", "(exp(x) - exp(-x))/(exp(x) + exp(-x))", "x", "4/(exp(x) + exp(-x))^2"),
    Problem("S61", "log(x^2 + 1)/x", "x", "2/(x^2 + 1) - log(x^2 + 1)/x^2"),
    Problem("S62", "((x^2 + a)^2 + b)^2", "x", "8*x*(x^2 + a)*((x^2 + a)^2 + b)"),
]

X = {"x": "n"}
LINEAR = {"X": "m,n", "y": "m", "w": "n"}
QUADRATIC = {"x": "n", "μ": "n", "P": "n,n"}
MAHALANOBIS = "sqrt((x - μ)' @ P @ (x - μ))"
ENTROPY = "p = softmax(z); H = -p' @ log(p)"
RMS = "r = sqrt(mean(x^2) + eps); xhat = x/r; l = g' @ (γ*xhat)"
TRIPLET = "maximum(0, norm(a - p)^2 - norm(a - q)^2 + m)"
CONTRASTIVE = "d = norm(a - b); l = y*d^2 + (1 - y)*maximum(0, m - d)^2"
QUERY = "p = softmax(K @ q); l = g' @ (V' @ p)"
QUERY_SHAPES = {"K": "m,d", "q": "d", "V": "m,v", "g": "v"}
LOGISTIC = "sum(log(1 + exp(X @ w)) - y*(X @ w)) + λ*norm(w)^2/2"
POISSON = "sum(exp(X @ w) - y*(X @ w))"
BUMP = "exp(-norm(x - c)^2/(2*s^2))"
BARRIER = "c' @ x - μ*sum(log(b - A @ x))"
BARRIER_SHAPES = {"c": "n", "x": "n", "b": "m", "A": "m,n"}
RESIDUAL = {"A": "m,n", "x": "n", "b": "m"}

VECTOR = [
    Problem(
        "V51",
        "(y - X @ w)' @ diag(c) @ (y - X @ w)",
        "w",
        "-2*X' @ (c*(y - X @ w))",
        {"c": "m", **LINEAR},
    ),
    Problem("V52", "norm1(x)", "x", "sign(x)", X),
    Problem("V53", "max(abs(x))", "x", "sign(x)*[abs(x) == max(abs(x))]", X),
    Problem(
        "V54",
        MAHALANOBIS,
        "x",
        "(P + P') @ (x - μ)/(2*sqrt((x - μ)' @ P @ (x - μ)))",
        QUADRATIC,
        domain={"P": "positive definite"},
    ),
    Problem("V55", "T*logsumexp(x/T)", "x", "softmax(x/T)", X),
    Problem("V56", "softmax(x/T)", "x", "p = softmax(x/T); (diag(p) - p @ p')/T", X),
    Problem("V57", "-p' @ log(p)", "p", "-log(p) - 1", {"p": "n"}, domain={"p": "positive"}),
    Problem(
        "V58",
        "sum(p*log(p/q))",
        "p",
        "log(p/q) + 1",
        {"p": "n", "q": "n"},
        domain={"p": "positive", "q": "positive"},
    ),
    Problem(
        "V59",
        "sum(p*log(p/q))",
        "q",
        "-p/q",
        {"p": "n", "q": "n"},
        domain={"p": "positive", "q": "positive"},
    ),
    Problem("V60", ENTROPY, "z", "-p*(log(p) + H)", {"z": "n"}),
    Problem(
        "V61", RMS, "x", "(γ*g - xhat*mean(γ*g*xhat))/r", {"x": "n", "g": "n", "γ": "n"}, domain={"eps": "positive"}
    ),
    Problem("V62", "u = x/norm(x)", "x", "(eye(n) - u @ u')/norm(x)", X),
    Problem("V63", "norm(x)", "x", "(eye(n) - x @ x'/(x' @ x))/norm(x)", X, order=2),
    Problem("V64", "norm(A @ x - b)", "x", "A' @ (A @ x - b)/norm(A @ x - b)", RESIDUAL),
    Problem(
        "V65",
        "log(x' @ A @ x)",
        "x",
        "(A + A') @ x/(x' @ A @ x)",
        {"x": "n", "A": "n,n"},
        domain={"A": "positive definite"},
    ),
    Problem("V66", LOGISTIC, "w", "X' @ (sigmoid(X @ w) - y) + λ*w", LINEAR),
    Problem("V67", LOGISTIC, "w", "s = sigmoid(X @ w); X' @ diag(s*(1 - s)) @ X + λ*eye(n)", LINEAR, order=2),
    Problem("V68", POISSON, "w", "X' @ (exp(X @ w) - y)", LINEAR),
    Problem("V69", POISSON, "w", "X' @ diag(exp(X @ w)) @ X", LINEAR, order=2),
    Problem(
        "V70",
        "-(x - μ)' @ inv(P) @ (x - μ)/2",
        "x",
        "-(inv(P) + inv(P)') @ (x - μ)/2",
        QUADRATIC,
        domain={"P": "positive definite"},
    ),
    Problem("V71", "logsumexp(A @ x + b)", "x", "A' @ softmax(A @ x + b)", RESIDUAL),
    Problem(
        "V72", "logsumexp(A @ x + b)", "x", "p = softmax(A @ x + b); A' @ (diag(p) - p @ p') @ A", RESIDUAL, order=2
    ),
    Problem(
        "V73",
        TRIPLET,
        "a",
        "2*(q - p)*[norm(a - p)^2 - norm(a - q)^2 + m > 0]",
        {"a": "n", "p": "n", "q": "n"},
    ),
    Problem(
        "V74",
        CONTRASTIVE,
        "a",
        "2*y*(a - b) - 2*(1 - y)*maximum(0, m - d)*(a - b)/d",
        {"a": "n", "b": "n"},
        domain={"m": "above 1"},
    ),
    Problem("V75", QUERY, "q", "v = V @ g; K' @ (p*(v - p' @ v))", QUERY_SHAPES),
    Problem("V76", QUERY, "K", "v = V @ g; (p*(v - p' @ v)) @ q'", QUERY_SHAPES),
    Problem(
        "V77",
        "(y - X @ w)' @ inv(S) @ (y - X @ w)",
        "w",
        "-X' @ (inv(S) + inv(S)') @ (y - X @ w)",
        {"S": "m,m", **LINEAR},
        domain={"S": "positive definite"},
    ),
    Problem("V78", "norm(X @ w - y)^2/2 + λ*norm(w)^2/2", "w", "X' @ X + λ*eye(n)", LINEAR, order=2),
    Problem("V79", "(x' @ x)^2", "x", "4*(x' @ x)*x", X),
    Problem("V80", "(x' @ x)^2", "x", "4*(x' @ x)*eye(n) + 8*x @ x'", X, order=2),
    Problem("V81", BUMP, "x", "-(x - c)/s^2*exp(-norm(x - c)^2/(2*s^2))", {"x": "n", "c": "n"}),
    Problem(
        "V82",
        "k = " + BUMP,
        "x",
        "k*((x - c) @ (x - c)'/s^2 - eye(n))/s^2",
        {"x": "n", "c": "n"},
        order=2,
    ),
    Problem("V83", "mean((y - X @ w)^2)", "w", "-2*X' @ (y - X @ w)/m", LINEAR),
    Problem("V84", "mean((x - mean(x))^2)", "x", "2*(x - mean(x))/n", X),
    Problem(
        "V85",
        "W2 @ tanh(W1 @ x)",
        "x",
        "W2 @ diag(1 - tanh(W1 @ x)^2) @ W1",
        {"x": "n", "W1": "m,n", "W2": "k,m"},
        layout="numerator",
    ),
    Problem(
        "V86",
        "W2 @ relu(W1 @ x)",
        "x",
        "W2 @ diag([W1 @ x > 0]) @ W1",
        {"x": "n", "W1": "m,n", "W2": "k,m"},
        layout="numerator",
    ),
    Problem("V87", f"sum({HUBER})", "r", "where(abs(r) < d, r, d*sign(r))", {"r": "n"}, domain={"d": "positive"}),
    Problem(
        "V88",
        f"r = A @ x - b; l = sum({HUBER})",
        "x",
        "A' @ where(abs(r) < d, r, d*sign(r))",
        RESIDUAL,
        domain={"d": "positive"},
    ),
    Problem("V89", "sum(log(cosh(A @ x - b)))", "x", "A' @ tanh(A @ x - b)", RESIDUAL),
    Problem("V90", "sum(sqrt(x^2 + ε))", "x", "x/sqrt(x^2 + ε)", X, domain={"ε": "positive"}),
    Problem("V91", "(a' @ x)*(b' @ x)", "x", "(b' @ x)*a + (a' @ x)*b", {"a": "n", "b": "n", "x": "n"}),
    Problem("V92", "logdet(A + diag(x))", "x", "diag(inv(A + diag(x)))", {"A": "n,n", "x": "n"}),
    Problem("V93", BARRIER, "x", "c + μ*A' @ (1/(b - A @ x))", BARRIER_SHAPES, domain={"b": "large"}),
    Problem("V94", BARRIER, "x", "μ*A' @ diag(1/(b - A @ x)^2) @ A", BARRIER_SHAPES, order=2, domain={"b": "large"}),
    Problem("V95", "norm(x)^3", "x", "3*norm(x)*x", X),
    Problem("V96", "sum((A @ x)^4)", "x", "4*A' @ (A @ x)^3", {"A": "m,n", "x": "n"}),
    Problem("V97", "norm(X @ w - y)^2/2 + λ*norm1(w)", "w", "X' @ (X @ w - y) + λ*sign(w)", LINEAR),
    Problem(
        "V98",
        "m + K @ (y - H @ m)",
        "m",
        "eye(n) - K @ H",
        {"m": "n", "K": "n,k", "y": "k", "H": "k,n"},
        layout="numerator",
    ),
    Problem("V99", "norm(x)*x", "x", "norm(x)*eye(n) + x @ x'/norm(x)", X),
    Problem("V100", "v' @ softmax(z)", "z", "p = softmax(z); p*(v - p' @ v)", {"v": "n", "z": "n"}),
    Problem(
        "V101",
        "tanh(W @ x + b)",
        "b",
        "diag(1 - tanh(W @ x + b)^2)",
        {"W": "m,n", "x": "n", "b": "m"},
        layout="numerator",
    ),
    Problem("V102", "sum(softplus(x))", "x", "diag(sigmoid(x)*(1 - sigmoid(x)))", X, order=2),
    Problem("V103", "sum(x)^2", "x", "2*sum(x)*ones(n)", X),
    Problem("V104", "x' @ A @ x + b' @ x + c", "x", "(A + A') @ x + b", {"x": "n", "A": "n,n", "b": "n"}),
    Problem("V105", "log(sum(exp(x)))", "x", "p = softmax(x); diag(p) - p @ p'", X, order=2),
    Problem(
        "V106",
        "norm(x - a)/norm(x - b)",
        "x",
        "(x - a)/(norm(x - a)*norm(x - b)) - norm(x - a)*(x - b)/norm(x - b)^3",
        {"x": "n", "a": "n", "b": "n"},
    ),
    Problem("V107", "x*sigmoid(x)", "x", "s = sigmoid(x); diag(s*(1 + x*(1 - s)))", X),
    Problem("V108", "sum(x*log(x)) - sum(x)", "x", "log(x)", X, domain={"x": "positive"}),
    Problem(
        "V109",
        "-t' @ log(softmax(W @ h + b))",
        "h",
        "W' @ (sum(t)*softmax(W @ h + b) - t)",
        {"t": "m", "W": "m,n", "h": "n", "b": "m"},
    ),
    Problem(
        "V110",
        "conv1d(x, w)' @ conv1d(x, w)/2",
        "w",
        "conv1d(x, conv1d(x, w))",
        {"x": "n", "w": "k"},
        larger={"n": "k"},
    ),
]

FURTHER: tuple[Problem, ...] = (*SCALAR, *VECTOR)
