"""Linen's lifted transforms inside a model, raw ones of JAX, and what capture sees of a call."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import ModelError, PathError, TraceError
from bridge.core.paths import join
from bridge.core.tree import entries
from tests.adapters.linen_made import KEY, X, made, message, same

nn = pytest.importorskip("flax.linen")

# Lifted transforms


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
        return nn.Dropout(0.5, deterministic=not train)(x), None


AXES = {"variable_axes": {"params": 0, "batch_stats": 0}}
SPLITS = {"params": True, "dropout": True}
STATIC = {"static_argnums": (2,)}


def scan(_, x, train):
    stack = nn.scan(Block, **AXES, split_rngs=SPLITS, in_axes=nn.broadcast, length=3)
    return stack()(x, train)[0]


def carried(module, x, train):
    block = Block(name="block")
    if module.is_initializing():
        return block(x, train)[0]
    steps = nn.scan(
        lambda block, x, _: block(x, train),
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False, "dropout": True},
        length=3,
    )
    return steps(block, x, None)[0]


def vmap(_, x, train):
    blocks = nn.vmap(Block, **AXES, split_rngs=SPLITS, in_axes=(0, None), axis_size=2)
    return blocks()(x[:, None], train)[0][:, 0]


def remat(_, x, train):
    return nn.remat(Block, **STATIC)()(x, train)[0]


def jit(_, x, train):
    return nn.jit(Block, **STATIC)()(nn.jit(Block, **STATIC)()(x, train)[0], train)[0]


def remat_in_scan(_, x, train):
    inner = nn.remat(Block, **STATIC)
    stack = nn.scan(inner, **AXES, split_rngs=SPLITS, in_axes=nn.broadcast, length=3)
    return stack()(x, train)[0]


def cond(module, x, train):
    block = Block(name="block")
    if module.is_initializing():
        return block(x, train)[0]
    calls = [lambda block, x, sign=sign: block(sign * x, train)[0] for sign in (1, -1)]
    return nn.cond(x.sum() > 0, *calls, block, x)


def while_loop(module, x, train):
    block = Block(name="block")
    if module.is_initializing():
        return block(x, train)[0]
    return nn.while_loop(
        lambda _, carry: carry[0] < 3,
        lambda block, carry: (carry[0] + 1, block(carry[1], train)[0]),
        block,
        (0, x),
        carry_variables="batch_stats",
        split_rngs={"dropout": True},
    )[1]


class Lifted(nn.Module):
    how: Any

    @nn.compact
    def __call__(self, x, train: bool = False):
        return self.how(self, x, train)


LIFTED = [scan, carried, vmap, remat, jit, remat_in_scan, cond, while_loop]


@pytest.mark.parametrize("how", LIFTED)
def test_a_lifted_transform_gives_what_it_gives_in_linen(how):
    model = Lifted(how)
    module = made(model)
    assert same(module.native(), model.init(KEY, X))

    @jax.jit
    def ours(module, key):
        out, after = module.apply(X, rng=key, mode="train")
        quiet, unchanged = module.apply(X, rng=key)
        return out, after.state.tree(), quiet, unchanged.state.tree()

    @jax.jit
    def native(variables, key):
        options = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        out, after = model.apply(variables, X, True, **options)
        quiet, unchanged = model.apply(variables, X, **options)
        return out, dict(after), quiet, dict(unchanged)

    assert same(ours(module, KEY), native(module.native(), KEY))


# Raw transforms


class Raw(nn.Module):
    """A child with dropout and one with statistics, under a raw transform."""

    how: Any
    which: str

    def setup(self):
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm()
        self.kept = nn.remat(nn.Dropout, **STATIC)(0.5)
        self.compiled = nn.jit(nn.Dropout, **STATIC)(0.5)

    def __call__(self, x, train: bool = False):
        if self.which == "norm":
            self.norm(x, use_running_average=True)
        return self.how(lambda x: self.child(x, not train), x)

    def child(self, x, quiet):
        if self.which == "norm":
            return self.norm(x, use_running_average=quiet)
        if self.which == "own":
            return x if quiet else x + jax.random.normal(self.make_rng("dropout"), x.shape)
        if self.which == "a lifted function":
            return nn.remat(lambda raw, x: raw.drop(x, deterministic=quiet))(self, x)
        return getattr(self, self.which)(x, quiet)


def raw_scan(child, x):
    return jax.lax.scan(lambda carry, _: (carry, child(x)), 0, None, 3)[1]


def raw_vmap(child, x):
    return jax.vmap(child)(jnp.stack([x, x]))


def raw_remat(child, x):
    return jax.checkpoint(child)(x)


RAW = [raw_scan, raw_vmap, raw_remat]
CHILDREN = {
    "drop": ".drop draws from the rng stream 'dropout'",
    "norm": ".norm writes batch_stats.mean",
    "own": " draws from the rng stream 'dropout'",
    "kept": ".kept draws from the rng stream 'dropout'",
    "compiled": ".compiled draws from the rng stream 'dropout'",
    "a lifted function": ".drop draws from the rng stream 'dropout'",
}


@pytest.mark.parametrize("which", CHILDREN)
@pytest.mark.parametrize("how", RAW)
def test_a_raw_transform_over_a_child_that_draws_or_writes_is_refused_with_its_path(how, which):
    class Holder(br.Module):
        net: br.Module

        def __call__(self, x):
            return self.net(x)

    holder = Holder(made(Raw(how, which)))
    call = lambda: holder.apply(X, rng=KEY, mode="train")  # noqa: E731
    assert message(TraceError, lambda: jax.eval_shape(call)) == (
        f"net{CHILDREN[which]} inside a JAX transform that the model's own code starts: it would be"
        " repeated or lost. Use flax.linen.scan, flax.linen.vmap or flax.linen.remat in place of"
        " jax.lax.scan, jax.vmap or jax.checkpoint (flax.linen has cond, while_loop, jit and vjp as"
        " well)"
    )


@pytest.mark.parametrize("which", ["drop", "norm", "own", "kept", "a lifted function"])
@pytest.mark.parametrize("how", RAW)
def test_a_raw_transform_is_welcome_where_nothing_is_drawn_or_written(how, which):
    model = Raw(how, which)
    module = made(model)
    out, after = jax.jit(lambda module: module.apply(X))(module)
    assert same(out, jax.jit(lambda variables: model.apply(variables, X))(module.native()))
    assert same(after, module)


# What a call gives out


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3, name="dense")
        for _ in range(2):
            x = dense(x)
            self.sow("intermediates", "hidden", x)
            self.sow("metrics", "norm", (x**2).sum())
            add = {"init_fn": lambda: 0.0, "reduce_fn": lambda total, one: total + one}
            self.sow("losses", "total", (x**2).sum(), **add)
        return nn.relu(self.perturb("offset", x))


GIVEN_OUT = ["intermediates.hidden", "metrics.norm", "losses.total", "perturbations.offset"]


def test_what_is_sown_or_perturbed_comes_by_capture_and_is_no_state():
    module = made(Sowing())
    assert [join(entry.path) for entry in entries(module)] == [
        "params.dense.bias",
        "params.dense.kernel",
    ]
    for _ in range(3):
        out, module = module.apply(X)
    captured = module.capture(X, paths=[*GIVEN_OUT, "dense*"])
    native, sown = Sowing().apply(module.native(), X, mutable=["intermediates", "metrics", "losses"])
    assert same(out, native)
    assert same(captured["intermediates.hidden"], sown["intermediates"]["hidden"])
    assert same(captured["metrics.norm"], sown["metrics"]["norm"])
    assert same(captured["losses.total"], sown["losses"]["total"])
    assert same(captured["perturbations.offset"], captured["dense#2"])
    assert same(captured["intermediates.hidden"], (captured["dense"], captured["dense#2"]))


def test_what_linens_own_init_has_sown_does_not_grow():
    module = br.from_linen(Sowing(), Sowing().init(KEY, X))
    assert "perturbations" not in module.native()
    assert module.apply(X)[1] is module
    assert same(module.capture(X, paths=GIVEN_OUT), made(Sowing()).capture(X, paths=GIVEN_OUT))


def test_a_perturbation_that_was_made_a_variable_is_added_as_in_linen():
    class Shifted(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.perturb("offset", x, collection="shifts")

    variables = {"shifts": {"offset": jnp.ones((2, 3))}}
    module = br.from_linen(Shifted(), variables)
    assert same(module(X), Shifted().apply(variables, X))
    assert same(module.capture(X, paths=["shifts.offset"])["shifts.offset"], X + 1)


class Average(nn.Module):
    """Keeps its state by sow, which works in Linen."""

    @nn.compact
    def __call__(self, x):
        keep = {"init_fn": lambda: 0.0, "reduce_fn": lambda old, new: 0.9 * old + 0.1 * new}
        self.sow("averages", "mean", x.mean(), **keep)
        return x - self.get_variable("averages", "mean") if self.has_variable("averages", "mean") else x


def test_what_is_sown_and_read_again_is_refused_for_it_would_be_lost():
    text = (
        "{} sows averages.mean and reads it, so that it is state; what is sown is given out by a"
        " call, and gone: keep it in self.variable('averages', 'mean', ...)"
    )
    model = nn.Sequential([nn.Dense(3), Average()])
    assert message(ModelError, lambda: made(model)) == text.format("layers_1")
    given = br.from_linen(Average(), Average().init(KEY, X))
    assert message(ModelError, lambda: given(X)) == text.format("the root module")


class Inside(nn.Module):
    """Sows inside lifted transforms, of which one hands on what is sown."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(Sowing)()(x)
        x = nn.jit(Sowing)()(x)
        return raw_vmap(Sowing(name="raw"), x)


NOT_CAPTURED = (
    "{} runs inside a JAX transform (scan, vmap, checkpoint) that was started during the call"
)


def test_capture_inside_a_transform_gives_what_linen_hands_on_or_says_why_not():
    for module in (made(Inside()), made(Inside())):  # nn.jit traces the second one no more
        for part in ("CheckpointSowing_0", "JitSowing_0"):
            hidden = f"intermediates.{part}.hidden"
            assert len(module.capture(X, paths=[hidden])[hidden]) == 2
            for path in (f"{part}.dense", f"metrics.{part}.norm", f"perturbations.{part}.offset"):
                text = message(TraceError, lambda path=path: module.capture(X, paths=[path]))  # noqa: B023
                assert text.startswith(NOT_CAPTURED.format(path))
        for path in ("raw", "intermediates.raw.hidden", "losses.raw.total"):
            text = message(TraceError, lambda path=path: module.capture(X, paths=[path]))  # noqa: B023
            assert text.startswith(NOT_CAPTURED.format(path))
        assert same(module.capture(X, paths=[""])[""], module(X))
    text = message(PathError, lambda: made(Inside()).capture(X, paths=["nothing"]))
    assert text.startswith("no module at 'nothing' was called")
