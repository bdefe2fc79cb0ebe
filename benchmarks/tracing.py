"""What it costs to trace the train step of a wrapped model: against the library's own functional step.

    python benchmarks/tracing.py

For a deep net of each library, forward, backward and Adam: the ratios of the CPU time of tracing, and
of tracing and lowering (below 1.0: quicker than the library alone), and the lines of StableHLO of both.
The two sides are timed in turns in one process; a figure is the ratio of the quickest.
"""

from __future__ import annotations

import platform
import sys
import time

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bridge as br

ROUNDS, DEPTH, WIDTH = 11, 8, 16
X = Y = jnp.ones((4, WIDTH))
KEY = jax.random.key(0)
ADAM = optax.adam(1e-3)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(DEPTH):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(WIDTH)(x)))
            x = nn.Dropout(0.1, deterministic=False)(x)
        return x


def linen():
    module = br.from_linen(LinenNet()).init(KEY, X)
    variables = module.native()

    def forward(params, state, x, key):
        variables = {"params": params, **state}
        return LinenNet().apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"])

    return module, forward, variables.pop("params"), variables


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, x, rngs):
        return self.dropout(nnx.relu(self.norm(self.linear(x))), rngs=rngs)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.rngs = nnx.Rngs(dropout=0)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(DEPTH)])

    def __call__(self, x, rngs=None):
        for block in self.blocks:
            x = block(x, rngs or self.rngs)
        return x


def nnx_():
    module = br.from_nnx(NnxNet(nnx.Rngs(0))).train()
    kinds = nnx.BatchStat, nnx.RngState
    graph, params, *state = nnx.split(module.native(), nnx.Param, *kinds)

    def forward(params, state, x, key):
        model = nnx.merge(graph, params, *state, copy=True)
        return model(x, nnx.Rngs(key)), tuple(nnx.split(model, nnx.Param, *kinds)[2:])

    return module, forward, params, tuple(state)


def haiku():
    def net(x):
        for _ in range(DEPTH):
            x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(WIDTH)(x), is_training=True))
            x = hk.dropout(hk.next_rng_key(), 0.1, x)
        return x

    module = jax.jit(lambda key: br.from_haiku(net).init(key, X))(KEY)
    native = hk.transform_with_state(net)

    def forward(params, state, x, key):
        return native.apply(params, state, key, x)

    return module, forward, *module.native()


class EquinoxNet(eqx.Module):
    linears: list
    norms: list
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        keys = jax.random.split(key, DEPTH)
        self.linears = [eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys]
        self.norms = [eqx.nn.BatchNorm(WIDTH, axis_name="batch", mode="batch") for _ in keys]
        self.dropout = eqx.nn.Dropout(0.1)

    def __call__(self, x, state, key):
        keys = jax.random.split(key, DEPTH)
        for linear, norm, key in zip(self.linears, self.norms, keys, strict=True):
            x, state = norm(linear(x), state)
            x = self.dropout(jax.nn.relu(x), key=key)
        return x, state


def equinox():
    module = br.from_equinox(eqx.nn.make_with_state(EquinoxNet)(KEY), vmap=True)
    model, state = module.native()
    params, static = eqx.partition(model, eqx.is_array)

    def forward(params, state, x, key):
        model = eqx.combine(params, static)
        keys = jax.random.split(key, len(x))
        return jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")(x, state, keys)

    return module, forward, params, state


def native_step(forward):
    def step(params, state, opt_state, x, y, key):
        def loss_of(params):
            out, after = forward(params, state, x, key)
            return optax.l2_loss(out, y).mean(), after

        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    return step


def bridge_step(module, optimizer, x, y, key):
    def loss_of(module):
        out, after = module.apply(x, rng=key, mode="train")
        return optax.l2_loss(out, y).mean(), after

    (loss, module), grads = br.value_and_grad(loss_of, has_aux=True)(module)
    module, optimizer = optimizer.step(grads, module)
    return module, optimizer, loss


def lowered(step, *args):
    """The lowered step, and the seconds of CPU that tracing it, and tracing and lowering it, took."""
    fresh = jax.jit(lambda *args: step(*args))  # JAX keeps the trace of a function that it knows
    started = time.process_time()
    traced = fresh.trace(*args)
    halfway = time.process_time()
    program = traced.lower()
    return program, halfway - started, time.process_time() - started


def ratios(ours, theirs):
    """Of tracing, and of tracing and lowering: the quickest of each side, which take turns."""
    found = {id(ours): [], id(theirs): []}
    for number in range(ROUNDS):
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            found[id(side)].append(lowered(*side)[1:])
    quickest = [map(min, zip(*found[id(side)], strict=True)) for side in (ours, theirs)]
    return [our / their for our, their in zip(*quickest, strict=True)]


def main():
    print(f"python {platform.python_version()}, jax {jax.__version__}, {platform.machine()}")
    print(f"{'library':8}  {'trace':>6}  {'trace and lower':>15}  lines of StableHLO: bridge, native")
    for library in (linen, nnx_, haiku, equinox):
        module, forward, params, state = library()
        ours = bridge_step, module, br.Optimizer(ADAM).init(module), X, Y, KEY
        theirs = native_step(forward), params, state, ADAM.init(params), X, Y, KEY
        lines = [lowered(*side)[0].as_text().count("\n") for side in (ours, theirs)]
        trace, both = ratios(ours, theirs)
        print(f"{library.__name__.strip('_'):8}  {trace:6.2f}  {both:15.2f}  {lines[0]}, {lines[1]}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
