"""The same training steps in JAX: ``jit`` of a ``lax.scan`` over many steps. A peer of ``benchmarks.native``.

Runs in an environment of its own that has jax (``CHAINRULE_JAX=/path/to/python``), or where jax is installed beside
chainrule. Reads ``NAME SECONDS`` lines, answers ``NAME seconds-per-step``: the best of the windows that fit.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np


def dense(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) * np.sqrt(2 / a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def mlp(params, x, activation):
    for w, b in params[:-1]:
        x = activation(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def cross_entropy(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def momentum(loss, lr=0.01, beta=0.9):
    def step(state, batch):
        params, velocity = state
        value, grads = jax.value_and_grad(loss)(params, *batch)
        velocity = jax.tree.map(lambda v, g: beta * v + g, velocity, grads)
        return (jax.tree.map(lambda p, v: p - lr * v, params, velocity), velocity), value

    return step, lambda params: (params, jax.tree.map(jnp.zeros_like, params))


def adam(loss, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8):
    def step(state, batch):
        params, m, v, t = state
        value, grads = jax.value_and_grad(loss)(params, *batch)
        t = t + 1
        m = jax.tree.map(lambda a, g: b1 * a + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda a, g: b2 * a + (1 - b2) * g * g, v, grads)
        size, root = lr / (1 - b1**t), jnp.sqrt(1 - b2**t)
        params = jax.tree.map(lambda p, a, b: p - size * a / (jnp.sqrt(b) / root + eps), params, m, v)
        return (params, m, v, t), value

    def start(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, zeros, zeros, jnp.zeros(())

    return step, start


def burgers(params, points):
    """u_t + u u_x - 0.01 u_xx by forward mode over the inputs: fewer products than nested reverse mode."""

    def u(x, t):
        return mlp(params, jnp.stack([x, t], 1), jnp.tanh)[:, 0]

    x, t = points[:, 0], points[:, 1]
    one = jnp.ones_like(x)

    def along_x(x):
        return jax.jvp(lambda x: u(x, t), (x,), (one,))

    (value, u_x), (_, u_xx) = jax.jvp(along_x, (x,), (one,))
    _, u_t = jax.jvp(lambda t: u(x, t), (t,), (one,))
    return jnp.mean((u_t + value * u_x - 0.01 * u_xx) ** 2)


def lenet(params, x):
    (k1, c1), (k2, c2), *rest = params
    dims = ("NHWC", "HWIO", "NHWC")

    def block(x, k, c):
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=dims) + c)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    x = block(block(x, k1, c1), k2, c2).reshape(x.shape[0], -1)
    return mlp(rest, x, jax.nn.relu)


def workloads(name):
    """(step, first state, samples, batch size, steps per window)."""
    key = jax.random.PRNGKey(0)
    rng = np.random.default_rng(0)
    if name == "figure 7.8":
        step, start = momentum(lambda p, x, y: jnp.mean((mlp(p, x, jax.nn.relu) - y) ** 2))
        data = (rng.standard_normal((100, 10)), rng.standard_normal((100, 5)))
        return step, start(dense(key, (10, 40, 40, 5))), data, 10, 1000
    if name == "784-128-10":
        step, start = momentum(lambda p, x, y: cross_entropy(mlp(p, x, jax.nn.relu), y))
        return step, start(dense(key, (784, 128, 10))), (rng.random((640, 784)), rng.integers(0, 10, 640)), 64, 20
    if name == "tanh":
        step, start = adam(lambda p, x, y: jnp.mean((mlp(p, x, jnp.tanh) - y) ** 2))
        data = (rng.standard_normal((2560, 2)), rng.standard_normal((2560, 1)))
        return step, start(dense(key, (2, 64, 64, 64, 64, 1))), data, 256, 10
    if name == "physics":
        step, start = adam(burgers)
        return step, start(dense(key, (2, 64, 64, 64, 64, 1))), (rng.standard_normal((2560, 2)),), 256, 5
    step, start = adam(lambda p, x, y: cross_entropy(lenet(p, x), y))
    kernels = [
        (jax.random.normal(key, (5, 5, 1, 6)) * 0.2, jnp.zeros(6)),
        (jax.random.normal(key, (5, 5, 6, 16)) * 0.1, jnp.zeros(16)),
    ]
    data = (rng.random((640, 28, 28, 1)), rng.integers(0, 10, 640))
    return step, start([*kernels, *dense(key, (256, 120, 84, 10))]), data, 128, 2


def prepared(name):
    step, state, data, size, steps = workloads(name)
    data = tuple(jnp.asarray(d, jnp.float32 if d.dtype.kind == "f" else jnp.int32) for d in data)
    rng = np.random.default_rng(1)
    order = np.concatenate([rng.permutation(len(data[0])) for _ in range(steps)])[: steps * size]
    order = jnp.asarray(order.reshape(steps, size))

    @jax.jit
    def many(state, order):
        return jax.lax.scan(lambda s, at: step(s, tuple(d[at] for d in data)), state, order)

    jax.block_until_ready(many(state, order))
    return lambda: jax.block_until_ready(many(state, order)), steps


def main():
    ready = {}
    for line in sys.stdin:
        name, seconds = line.strip().rsplit(" ", 1)
        if name not in ready:
            ready[name] = prepared(name)
        run, steps = ready[name]
        best, end = float("inf"), time.perf_counter() + float(seconds)
        while time.perf_counter() < end:
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
        print(f"{name} {best / steps!r}", flush=True)


if __name__ == "__main__":
    main()
