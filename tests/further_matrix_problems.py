"""The second table of derivatives, continued: matrices (Matrix Cookbook chapter 2, networks) and tensors."""

from __future__ import annotations

from tests.problems import Problem

SQUARE = {"X": "n,n"}
FACTORS = {"T": "m,n", "U": "m,r", "V": "n,r"}
GATED = {"X": "B,d", "W": "d,h", "V": "d,h", "G": "B,h"}
LSTM = "i = sigmoid(Wi @ x); f = sigmoid(Wf @ x); u = tanh(Wu @ x); o = sigmoid(Wo @ x); c = f*c0 + i*u; h = o*tanh(c); l = v' @ h"
LSTM_SHAPES = {**dict.fromkeys(["Wi", "Wf", "Wu", "Wo"], "m,n"), "x": "n", "c0": "m", "v": "m"}
GRU = "z = sigmoid(W @ x); h = (1 - z)*h0 + z*u; l = v' @ h"
ATTENTION = "sum(G*(softmax(Q @ K'/sqrt(d)) @ V))"
HEADS = {"Q": "m,d", "K": "n,d", "V": "n,v", "G": "m,v"}
ROW_NORM = (
    "mu = mean(X, 1)[:, None]; sigma = sqrt(mean((X - mu)^2, 1)[:, None] + eps); xhat = (X - mu)/sigma; l = sum(G*xhat)"
)
ROW_RMS = "r = sqrt(mean(X^2, 1)[:, None] + eps); xhat = X/r; l = sum(G*xhat)"
ROWS = {"X": "B,n", "G": "B,n"}
MLP = {"X": "B,d", "W1": "d,h", "W2": "h,k", "Z": "B,k"}
RNN = "h1 = tanh(W @ x1 + U @ h0); h2 = tanh(W @ x2 + U @ h1); l = c' @ h2"
RNN_SHAPES = {"W": "m,n", "U": "m,m", "x1": "n", "x2": "n", "h0": "m", "c": "m"}
TALL = {"m": "n"}

MATRIX = [
    Problem("M71", "det(A @ X @ B)", "X", "det(A @ X @ B)*inv(X)'", {"A": "n,n", "B": "n,n", **SQUARE}),
    Problem(
        "M72",
        "det(X' @ A @ X)",
        "X",
        "det(X' @ A @ X)*(A @ X @ inv(X' @ A @ X) + A' @ X @ inv(X' @ A' @ X))",
        {"X": "m,n", "A": "m,m"},
        domain={"A": "positive definite"},
        larger=TALL,
    ),
    Problem("M73", "det(X)^2", "X", "2*det(X)^2*inv(X)'", SQUARE),
    Problem("M74", "tr(X' @ X)", "X", "2*X", {"X": "m,n"}),
    Problem("M75", "tr(A @ X' @ B)", "X", "B @ A", {"A": "m,n", "X": "k,n", "B": "k,m"}),
    Problem("M76", "tr(A @ X @ B)", "X", "A' @ B'", {"A": "m,n", "X": "n,k", "B": "k,m"}),
    Problem("M77", "tr(X @ X)", "X", "2*X'", SQUARE),
    Problem("M78", "tr(X @ X @ B)", "X", "(X @ B + B @ X)'", {"B": "n,n", **SQUARE}),
    Problem(
        "M79",
        "tr(B' @ X' @ C @ X @ B)",
        "X",
        "(C + C') @ X @ B @ B'",
        {"B": "n,k", "X": "m,n", "C": "m,m"},
    ),
    Problem("M80", "tr(X' @ B @ X @ C)", "X", "B @ X @ C + B' @ X @ C'", {"B": "m,m", "X": "m,n", "C": "n,n"}),
    Problem(
        "M81",
        "tr((A @ X @ B + C) @ (A @ X @ B + C)')",
        "X",
        "2*A' @ (A @ X @ B + C) @ B'",
        {"A": "p,m", "X": "m,n", "B": "n,q", "C": "p,q"},
    ),
    Problem("M82", "tr(X @ X @ X @ X)", "X", "4*(X @ X @ X)'", SQUARE),
    Problem(
        "M83",
        "tr(A @ X @ X @ X)",
        "X",
        "(A @ X @ X + X @ A @ X + X @ X @ A)'",
        {"A": "n,n", **SQUARE},
    ),
    Problem("M84", "tr(inv(X + A))", "X", "-(inv(X + A) @ inv(X + A))'", {"A": "n,n", **SQUARE}),
    Problem(
        "M85",
        "tr(A @ inv(X) @ B)",
        "X",
        "-(inv(X) @ B @ A @ inv(X))'",
        {"A": "m,n", "B": "n,m", **SQUARE},
    ),
    Problem(
        "M86",
        "J = inv(X' @ C @ X); l = tr(J @ (X' @ B @ X))",
        "X",
        "2*B @ X @ J - 2*C @ X @ J @ X' @ B @ X @ J",
        {"X": "m,n", "B": "m,m", "C": "m,m"},
        domain={"B": "symmetric", "C": "symmetric"},
        larger=TALL,
    ),
    Problem(
        "M87",
        "b' @ X' @ D @ X @ c",
        "X",
        "D' @ X @ b @ c' + D @ X @ c @ b'",
        {"b": "n", "c": "n", "D": "m,m", "X": "m,n"},
    ),
    Problem("M88", "norm(X @ X' - A)^2", "X", "2*(2*X @ X' - A - A') @ X", {"X": "m,n", "A": "m,m"}),
    Problem("M89", "logdet(eye(m) + X @ X')", "X", "2*inv(eye(m) + X @ X') @ X", {"X": "m,n"}),
    Problem("M90", "log(det(X' @ X))", "X", "2*X @ inv(X' @ X)", {"X": "m,n"}, larger=TALL),
    Problem(
        "M91",
        "logdet(Σ) + tr(inv(Σ) @ S)",
        "Σ",
        "inv(Σ)' - (inv(Σ) @ S @ inv(Σ))'",
        {"Σ": "n,n", "S": "n,n"},
        domain={"Σ": "positive definite"},
    ),
    Problem(
        "M92",
        "tr(S @ P) - logdet(P) + λ*norm1(P)",
        "P",
        "S' - inv(P)' + λ*sign(P)",
        {"P": "n,n", "S": "n,n"},
        domain={"P": "positive definite"},
    ),
    Problem(
        "M93",
        "R = X - X @ W @ W'; l = norm(R)^2",
        "W",
        "-2*(X' @ R + R' @ X) @ W",
        {"X": "m,n", "W": "n,k"},
    ),
    Problem(
        "M94",
        "tr(Q' @ A' @ A @ Q) - 2*tr(B' @ A @ Q)",
        "Q",
        "2*A' @ (A @ Q - B)",
        {"A": "m,n", "Q": "n,k", "B": "m,k"},
    ),
    Problem(
        "M95",
        "sum(U @ V' - T*log(U @ V'))",
        "U",
        "(1 - T/(U @ V')) @ V",
        FACTORS,
        domain={"U": "positive", "V": "positive"},
    ),
    Problem("M96", "norm(T - U @ V')^2/2 + λ*norm(U)^2/2", "U", "(U @ V' - T) @ V + λ*U", FACTORS),
    Problem("M97", "norm(T - U @ V')^2", "V", "-2*(T - U @ V')' @ U", FACTORS),
    Problem(
        "M98",
        "H = relu(X @ W1); l = norm(H @ W2 - Z)^2/2",
        "W1",
        "X' @ (((H @ W2 - Z) @ W2')*[X @ W1 > 0])",
        MLP,
    ),
    Problem("M99", "H = relu(X @ W1); l = norm(H @ W2 - Z)^2/2", "W2", "H' @ (H @ W2 - Z)", MLP),
    Problem(
        "M100",
        "sum(G*silu(X @ W)*(X @ V))",
        "W",
        "Z = X @ W; s = sigmoid(Z); X' @ (G*(X @ V)*s*(1 + Z*(1 - s)))",
        GATED,
    ),
    Problem("M101", "sum(G*silu(X @ W)*(X @ V))", "V", "X' @ (G*silu(X @ W))", GATED),
    Problem("M102", "sum(G*sigmoid(X @ W)*(X @ V))", "W", "s = sigmoid(X @ W); X' @ (G*(X @ V)*s*(1 - s))", GATED),
    Problem("M103", LSTM, "Wf", "(v*o*(1 - tanh(c)^2)*c0*f*(1 - f)) @ x'", LSTM_SHAPES),
    Problem("M104", LSTM, "Wu", "(v*o*(1 - tanh(c)^2)*i*(1 - u^2)) @ x'", LSTM_SHAPES),
    Problem("M105", LSTM, "Wo", "(v*tanh(c)*o*(1 - o)) @ x'", LSTM_SHAPES),
    Problem("M106", GRU, "W", "(v*(u - h0)*z*(1 - z)) @ x'", {"W": "m,n", "x": "n", "h0": "m", "u": "m", "v": "m"}),
    Problem(
        "M107",
        ATTENTION,
        "K",
        "P = softmax(Q @ K'/sqrt(d)); A = G @ V'; S = P*(A - sum(A*P, 1)[:, None]); S' @ Q/sqrt(d)",
        HEADS,
    ),
    Problem("M108", "sum(G*(Q @ (K' @ V)))", "K", "V @ G' @ Q", HEADS),
    Problem("M109", "sum(G*(Q @ (K' @ V)))", "Q", "G @ V' @ K", HEADS),
    Problem(
        "M110",
        ROW_NORM,
        "X",
        "(G - mean(G, 1)[:, None] - xhat*mean(G*xhat, 1)[:, None])/sigma",
        ROWS,
        domain={"eps": "positive"},
    ),
    Problem("M111", ROW_RMS, "X", "(G - xhat*mean(G*xhat, 1)[:, None])/r", ROWS, domain={"eps": "positive"}),
    Problem("M112", "sum(G*log(softmax(S)))", "S", "G - softmax(S)*sum(G, 1)[:, None]", {"G": "m,n", "S": "m,n"}),
    Problem("M113", "g' @ logsumexp(S)", "S", "diag(g) @ softmax(S)", {"g": "m", "S": "m,n"}),
    Problem(
        "M114",
        "sum(log(1 + exp(X @ W)) - Y*(X @ W))",
        "W",
        "X' @ (sigmoid(X @ W) - Y)",
        {"X": "B,d", "W": "d,k", "Y": "B,k"},
    ),
    Problem(
        "M115",
        "norm(X @ W - Y)^2",
        "W",
        '2*einsum("ik,jl->ijkl", X\' @ X, eye(k))',
        {"X": "m,n", "W": "n,k", "Y": "m,k"},
        order=2,
    ),
    Problem(
        "M116",
        "tr(X' @ A @ X)",
        "X",
        'einsum("ik,jl->ijkl", A + A\', eye(n))',
        {"X": "m,n", "A": "m,m"},
        order=2,
    ),
    Problem("M117", "A @ X", "X", 'einsum("ik,jl->ijkl", A, eye(n))', {"A": "p,m", "X": "m,n"}, layout="numerator"),
    Problem(
        "M118",
        "X' @ X",
        "X",
        'einsum("ki,jl->ijkl", X, eye(n)) + einsum("kj,il->ijkl", X, eye(n))',
        {"X": "m,n"},
        layout="numerator",
    ),
    Problem(
        "M119",
        "X @ X",
        "X",
        'einsum("ik,lj->ijkl", eye(n), X) + einsum("ik,lj->ijkl", X, eye(n))',
        SQUARE,
        layout="numerator",
    ),
    Problem(
        "M120",
        "tanh(X)",
        "X",
        'einsum("ij,ik,jl->ijkl", 1 - tanh(X)^2, eye(m), eye(n))',
        {"X": "m,n"},
        layout="numerator",
    ),
    Problem(
        "M121",
        "tr((X - A)' @ W @ (X - A))",
        "X",
        "(W + W') @ (X - A)",
        {"X": "m,n", "A": "m,n", "W": "m,m"},
    ),
    Problem("M122", "sum(norm(X, 1))", "X", "X/norm(X, 1)[:, None]", {"X": "m,n"}),
    Problem(
        "M123",
        "a' @ inv(X' @ X) @ a",
        "X",
        "-2*X @ inv(X' @ X) @ a @ a' @ inv(X' @ X)",
        {"a": "n", "X": "m,n"},
        larger=TALL,
    ),
    Problem(
        "M124",
        "b = inv(X' @ X) @ X' @ y; f = y' @ X @ b",
        "X",
        "2*(y - X @ b) @ b'",
        {"X": "m,n", "y": "m"},
        larger=TALL,
    ),
    Problem("M125", "sum(A*exp(X))", "X", "A*exp(X)", {"A": "m,n", "X": "m,n"}),
    Problem("M126", "det(X' @ X)", "X", "2*det(X' @ X)*X @ inv(X' @ X)", {"X": "m,n"}, larger=TALL),
    Problem("M127", "a' @ solve(X, b)", "X", "-solve(X', a) @ solve(X, b)'", {"a": "n", "b": "n", **SQUARE}),
    Problem(
        "M128",
        RNN,
        "U",
        "δ2 = c*(1 - h2^2); δ1 = (U' @ δ2)*(1 - h1^2); δ2 @ h1' + δ1 @ h0'",
        RNN_SHAPES,
    ),
    Problem(
        "M129",
        RNN,
        "x1",
        "δ2 = c*(1 - h2^2); δ1 = (U' @ δ2)*(1 - h1^2); W' @ δ1",
        RNN_SHAPES,
    ),
    Problem(
        "M130",
        "sqrt(tr(X' @ A @ X))",
        "X",
        "(A + A') @ X/(2*sqrt(tr(X' @ A @ X)))",
        {"X": "m,n", "A": "m,m"},
        domain={"A": "positive definite"},
    ),
    Problem("M131", "f = tr(A @ X)/tr(B @ X)", "X", "(A' - f*B')/tr(B @ X)", {"A": "m,n", "B": "m,n", "X": "n,m"}),
    Problem("M132", "norm(L @ (x - y))^2", "L", "2*L @ (x - y) @ (x - y)'", {"L": "m,n", "x": "n", "y": "n"}),
    Problem(
        "M133",
        "-t' @ log(softmax(W @ x))",
        "W",
        "(sum(t)*softmax(W @ x) - t) @ x'",
        {"t": "m", "W": "m,n", "x": "n"},
    ),
    Problem(
        "M134",
        "r = W' @ W @ x - x; l = norm(r)^2",
        "W",
        "2*W @ (x @ r' + r @ x')",
        {"W": "m,n", "x": "n"},
    ),
    Problem("M135", "sum(G*softmax(S, 0))", "S", "P = softmax(S, 0); P*(G - sum(G*P, 0))", {"G": "m,n", "S": "m,n"}),
    Problem(
        "M136",
        "x' @ inv(A + X) @ x + logdet(A + X)",
        "X",
        "inv(A + X)' - inv(A + X)' @ x @ x' @ inv(A + X)'",
        {"A": "n,n", "x": "n", **SQUARE},
    ),
    Problem("M137", "tr(A @ X' @ B @ X)", "X", "B @ X @ A + B' @ X @ A'", {"A": "n,n", "B": "m,m", "X": "m,n"}),
]

HEADED = 'P = softmax(einsum("bhqd,bhkd->bhqk", Q, K)/sqrt(d)); l = sum(G*einsum("bhqk,bhke->bhqe", P, V))'
MANY_HEADS = {"Q": "b,h,q,d", "K": "b,h,k,d", "V": "b,h,k,e", "G": "b,h,q,e"}
CP = {"T": "i,j,k", "A": "i,r", "B": "j,r", "C": "k,r"}
TUCKER = 'R = T - einsum("abc,ia,jb,kc->ijk", S, A, B, C); l = sum(R^2)'
TUCKER_SHAPES = {"T": "i,j,k", "S": "a,b,c", "A": "i,a", "B": "j,b", "C": "k,c"}
KERNEL = "D = X[:, None] - X[None, :]; K = exp(-sum(D^2, 2)/(2*s^2)); l = sum(G*K)"

TENSOR = [
    Problem(
        "T31",
        'R = T - einsum("ir,jr,kr->ijk", A, B, C); l = sum(R^2)',
        "B",
        '-2*einsum("ijk,ir,kr->jr", R, A, C)',
        CP,
    ),
    Problem("T32", TUCKER, "S", '-2*einsum("ijk,ia,jb,kc->abc", R, A, B, C)', TUCKER_SHAPES),
    Problem("T33", TUCKER, "A", '-2*einsum("ijk,abc,jb,kc->ia", R, S, B, C)', TUCKER_SHAPES),
    Problem(
        "T34",
        'einsum("ijk,i,j,k->", T, x, y, z)',
        "y",
        'einsum("ijk,i,k->j", T, x, z)',
        {"T": "i,j,k", "x": "i", "y": "j", "z": "k"},
    ),
    Problem("T35", HEADED, "V", 'einsum("bhqk,bhqe->bhke", P, G)', MANY_HEADS),
    Problem(
        "T36",
        HEADED,
        "K",
        'A = einsum("bhqe,bhke->bhqk", G, V); S = P*(A - sum(A*P, 3)[:, :, :, None]); '
        'einsum("bhqk,bhqd->bhkd", S, Q)/sqrt(d)',
        MANY_HEADS,
    ),
    Problem(
        "T37",
        "g' @ conv1d(x, w)",
        "x",
        "conv1d(pad(g, k - 1, k - 1), flip(w))",
        {"x": "n", "w": "k", "g": "n - k + 1"},
        larger={"n": "k"},
    ),
    Problem(
        "T38",
        'sum(G*einsum("bij,bjk->bik", A, B))',
        "A",
        'einsum("bik,bjk->bij", G, B)',
        {"A": "b,i,j", "B": "b,j,k", "G": "b,i,k"},
    ),
    Problem(
        "T39",
        "norm(W2 @ W1 @ X - Y)^2/2",
        "W2",
        'H = W1 @ X; einsum("ik,jl->ijkl", eye(p), H @ H\')',
        {"W2": "p,m", "W1": "m,n", "X": "n,s", "Y": "p,s"},
        order=2,
    ),
    Problem(
        "T40",
        "sum(W*sum((X[:, None] - X[None, :])^2, 2))",
        "X",
        "S = W + W'; 2*(diag(sum(S, 1)) @ X - S @ X)",
        {"W": "n,n", "X": "n,k"},
    ),
    Problem("T41", KERNEL, "X", '-einsum("ij,ijk->ik", (G + G\')*K, D)/s^2', {"X": "n,k", "G": "n,n"}),
    Problem(
        "T42",
        "-tr(log(softmax(A @ B'/τ)))",
        "A",
        "(softmax(A @ B'/τ) - eye(n)) @ B/τ",
        {"A": "n,k", "B": "n,k"},
    ),
    Problem(
        "T43",
        "-tr(log(softmax(A @ B'/τ)))",
        "B",
        "(softmax(A @ B'/τ) - eye(n))' @ A/τ",
        {"A": "n,k", "B": "n,k"},
    ),
    Problem(
        "T44",
        'einsum("i,j,k->ijk", x, x, x)',
        "x",
        'einsum("il,j,k->ijkl", eye(n), x, x) + einsum("i,jl,k->ijkl", x, eye(n), x) + '
        'einsum("i,j,kl->ijkl", x, x, eye(n))',
        {"x": "n"},
        layout="numerator",
    ),
    Problem(
        "T45",
        'sum(G*einsum("bi,oij,bj->bo", X, W, Z))',
        "W",
        'einsum("bo,bi,bj->oij", G, X, Z)',
        {"X": "b,i", "W": "o,i,j", "Z": "b,j", "G": "b,o"},
    ),
    Problem(
        "T46",
        "tr(X' @ A @ X @ B)",
        "X",
        'einsum("ik,lj->ijkl", A, B) + einsum("ki,jl->ijkl", A, B)',
        {"X": "m,n", "A": "m,m", "B": "n,n"},
        order=2,
    ),
    Problem("T47", 'einsum("bi,ij,bj->", X, A, X)', "X", "X @ (A + A')", {"X": "b,i", "A": "i,i"}),
    Problem(
        "T48",
        "sum(W*(sum(X^2, 1)[:, None] + sum(Y^2, 1)[None, :] - 2*X @ Y'))",
        "X",
        "2*(diag(sum(W, 1)) @ X - W @ Y)",
        {"W": "m,n", "X": "m,k", "Y": "n,k"},
    ),
    Problem("T49", "norm(T - S)", "T", "(T - S)/norm(T - S)", {"T": "i,j,k", "S": "i,j,k"}),
    Problem(
        "T50",
        "mu = mean(X, 2)[:, :, None]; sigma = sqrt(mean((X - mu)^2, 2)[:, :, None] + eps); "
        "xhat = (X - mu)/sigma; l = sum(G*xhat)",
        "X",
        "(G - mean(G, 2)[:, :, None] - xhat*mean(G*xhat, 2)[:, :, None])/sigma",
        {"X": "b,t,n", "G": "b,t,n"},
        domain={"eps": "positive"},
    ),
    Problem(
        "T51",
        "sum(g*conv2d(x, w))",
        "x",
        'conv2d(pad(g, 0, 0, p - 1, q - 1, 0, 0, p - 1, q - 1), flip(einsum("oipq->iopq", w), 2, 3))',
        {"x": "b,i,h,w", "w": "o,i,p,q", "g": "b,o,h - p + 1,w - q + 1"},
        larger={"h": "p", "w": "q"},
    ),
]

FURTHER: tuple[Problem, ...] = (*MATRIX, *TENSOR)
