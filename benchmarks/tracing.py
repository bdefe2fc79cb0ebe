"""What bridge adds where Python runs: to the trace of a train step, and to calls outside of jax.jit.

    python benchmarks/tracing.py [--quick]

For the deep net of each library: tracing forward, backward and Adam, tracing and lowering it, and the
lines of StableHLO, against the library's own functional form; a call of a small net in train mode, with
state and keys, against the library's own call. For a tree of 200 small Modules with dropout in each:
the trace, and the folds of keys in it, against a plain function that draws as often.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import bridge as br

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import measuring, nets
from benchmarks.measuring import Figure
from benchmarks.nets import ADAM, KEY, PAIRS, Pair

DEPTH, WIDTH = 8, 16
MODULES = 200
X = Y = jnp.ones((4, WIDTH))
Side = tuple[Callable[..., Any], tuple[Any, ...]]


class Dropout(br.Module):
    scale: br.Parameter
    rate: float = nets.RATE

    def __call__(self, x):
        return dropped(self.rng, x * self.scale, self.rate)


def dropped(key: Any, x: Any, rate: float) -> Any:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def chains() -> tuple[Side, Side]:
    """The call of a tree with dropout in every module, and of a plain function with as many draws."""
    scales = [jnp.float32(number) for number in range(MODULES)]

    def plain(scales, x, key):
        for number, scale in enumerate(scales):
            below = jax.random.fold_in(jax.random.fold_in(key, number), 0)
            x = dropped(below, x * scale, nets.RATE)
        return x

    def run(module, x, key):
        return module.apply(x, rng=key, mode="train")[0]

    return (run, (br.Sequential(*map(Dropout, scales)), X, KEY)), (plain, (scales, X, KEY))


def folds(side: Side) -> int:
    """How often the traced function folds a number into a key."""
    function, args = side
    return str(jax.make_jaxpr(function)(*args)).count("random_fold_in")


def sides(pair: Pair) -> tuple[Side, Side]:
    """The train step of a wrapped model and of its library, with their arguments."""
    ours = pair.module, br.Optimizer(ADAM).init(pair.module), X, Y, KEY
    theirs = pair.params, pair.state, ADAM.init(pair.params), X, Y, KEY
    return (nets.bridge_step, ours), (nets.native_step(pair.forward), theirs)


def lowered(side: Side) -> tuple[Any, float, float]:
    """The lowered program, and the CPU seconds that tracing it, and tracing and lowering it, took."""
    function, args = side
    fresh = jax.jit(lambda *args: function(*args))  # JAX keeps the trace of a function that it knows
    started = time.process_time()
    traced = fresh.trace(*args)
    halfway = time.process_time()
    program = traced.lower()
    return program, halfway - started, time.process_time() - started


def traces(ours: Side, theirs: Side, rounds: int) -> tuple[float, float]:
    """The ratios of tracing, and of tracing and lowering: medians of pairs in turns."""
    for side in (ours, theirs):
        lowered(side)
    pairs = measuring.in_turns(ours, theirs, rounds, lambda side: lowered(side)[1:])
    trace, both = (
        statistics.median(our[which] / their[which] for our, their in pairs) for which in (0, 1)
    )
    return trace, both


def figures(quick: bool = False) -> Iterator[Figure]:
    """Traces, programs and eager calls of each library, then the tree of many draws."""
    rounds = 3 if quick else 15
    for library, build in PAIRS.items():
        ours, theirs = sides(build(DEPTH, WIDTH))
        trace, both = traces(ours, theirs, rounds)
        yield Figure("trace", f"train step, {library}", "native", trace, 1.05)
        yield Figure("trace", f"train step with lowering, {library}", "native", both, 1.05)
        lines = [lowered(side)[0].as_text().count("\n") for side in (ours, theirs)]
        yield Figure("trace", f"lines of StableHLO, {library}", "native", lines[0] / lines[1], 1.0)
    ours, theirs = chains()
    trace, _ = traces(ours, theirs, rounds)
    yield Figure("trace", f"{MODULES} Modules with dropout", "plain function", trace, 1.05)
    many = folds(ours) / folds(theirs)
    yield Figure("trace", f"{MODULES} Modules with dropout, folds", "plain function", many, 1.0)
    for library, build in PAIRS.items():
        pair = build(2, WIDTH)
        found = measuring.ratio(
            lambda pair=pair: pair.module.apply(X, rng=KEY, mode="train"),
            lambda pair=pair: pair.eager(X, KEY),
            5 * rounds,
        )
        yield Figure("eager", f"call in train mode, {library}", "native", found, 1.05)
        if library == "nnx":  # whose own call changes the model, and gives no state out
            found = measuring.ratio(
                lambda pair=pair: pair.module.apply(X, rng=KEY, mode="train"),
                lambda pair=pair: pair.forward(pair.params, pair.state, X, KEY),
                5 * rounds,
            )
            yield Figure("eager", f"call in train mode, {library}", "split and merge", found, 1.05)


def main() -> None:
    given = measuring.parser(__doc__).parse_args()
    measuring.report(figures(given.quick), given.json)


if __name__ == "__main__":
    main()
