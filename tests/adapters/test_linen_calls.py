"""How a call reaches a Linen model: the train flag in each spelling, and its random streams."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import MissingRngError, ModelError

nn = pytest.importorskip("flax.linen")

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 13))


def made(module: Any, *args: Any, **kwargs: Any) -> Any:
    return br.from_linen(module).init(KEY, *(args or (X,)), **kwargs)


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def drops(out: Any) -> bool:
    return bool((out == 0).any())


def follows_the_mode(module: Any, **options: Any) -> bool:
    """Whether a model with dropout drops while it trains, and only then."""
    training, _ = module.apply(X, rng=KEY, mode="train", **options)
    return drops(training) and not drops(module.apply(X, **options)[0])


# The train flag

SPELLINGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}


def net(spelling: str, call: str = "", attribute: str = "") -> Any:
    """A model with dropout whose flag is spelled so, in its call, as its attribute, or both."""
    told = "self." + spelling if attribute else spelling
    if call and attribute:
        told = f"nn.merge_param({spelling!r}, self.{spelling}, {spelling})"
    off = told if not SPELLINGS[spelling] else f"not {told}"
    lines = [
        "class Net(nn.Module):",
        *([f"    {spelling}: bool | None{attribute}"] if attribute else []),
        "    @nn.compact",
        f"    def __call__(self, x{call and f', {spelling}{call}'}):",
        f"        return nn.Dropout(0.5, deterministic={off})(x)",
    ]
    names: dict[str, Any] = {"nn": nn}
    exec("\n".join(lines), names)
    return names["Net"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_mode_is_the_flag_of_the_call_in_each_spelling(spelling):
    assert follows_the_mode(made(net(spelling, call=": bool")()))
    assert follows_the_mode(made(net(spelling, call=": bool = True")()))
    assert follows_the_mode(made(net(spelling, call="=None", attribute=" = None")()))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_mode_rules_a_flag_that_is_an_attribute_alone(spelling):
    cls = net(spelling, attribute=" = None")
    for value in (True, False, None):
        assert follows_the_mode(made(cls(**{spelling: value})))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_attribute_that_the_call_could_say_as_well_is_the_users(spelling):
    cls = net(spelling, call="=None", attribute=" = None")
    off, on = not SPELLINGS[spelling], SPELLINGS[spelling]
    assert not drops(made(cls(**{spelling: off})).apply(X, mode="train")[0])
    assert drops(made(cls(**{spelling: on})).apply(X, rng=KEY)[0])


def test_a_flag_in_the_call_goes_before_the_mode():
    module = made(net("deterministic", call="=None", attribute=" = None")())
    assert not drops(module.apply(X, deterministic=True, mode="train")[0])
    assert not drops(module.apply(X, True, mode="train")[0])
    assert drops(module.apply(X, False, rng=KEY)[0])


class Pair(nn.Module):
    """Two parts, which may be one."""

    first: Any
    second: Any

    @nn.compact
    def __call__(self, x):
        parts = [part() if isinstance(part, functools.partial) else part for part in self.pairs()]
        return parts[1](parts[0](x))

    @nn.nowrap
    def pairs(self):
        return self.first, self.second


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=not self.train)(nn.Dense(11)(x))


DEEP = [
    Pair(nn.Sequential([nn.Dense(13), Block(True)]), nn.relu),
    Pair(nn.relu, functools.partial(Block, train=True)),
]


@pytest.mark.parametrize("pair", DEEP)
def test_the_mode_rules_attributes_deep_among_attributes(pair):
    module = made(pair)
    assert module(X).shape == module.apply(X, rng=KEY, mode="train")[0].shape == (7, 11)
    text = message(MissingRngError, lambda: module.apply(X, mode="train"))
    assert text.startswith("the root module draws from the stream 'dropout'")


def test_a_part_in_two_places_is_one_in_each_mode_and_two_alike_are_two():
    block, x = Block(train=True), jnp.ones((7, 11))
    shared, apart = made(Pair(block, block), x), made(Pair(Block(True), Block(True)), x)
    assert list(shared.native()["params"]) == ["first"]
    assert list(apart.native()["params"]) == ["first", "second"]
    assert shared(x).shape == apart(x).shape == (7, 11)
    assert shared.apply(x, rng=KEY, mode="train")[0].shape == (7, 11)


def test_a_flag_that_lifted_transforms_want_static_goes_by_position():
    class Branching(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=False)(x) if train else x

    for lift in (nn.remat, nn.jit):
        assert follows_the_mode(made(lift(Branching, static_argnums=(2,))()))


def test_a_parameter_of_that_name_with_another_default_is_no_flag():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, inference: str = "exact"):
            assert isinstance(inference, str)
            return nn.Dense(3)(x)

    assert made(Odd())(X).shape == (7, 3)


MERGED = net("deterministic", call="=None", attribute=" = None")
TWICE = {
    "by position and by name": (
        lambda: made(MERGED()).apply(X, True, deterministic=False),
        "the root module: 'deterministic' is given twice, by position and by name; give it once, or"
        " leave it to the mode: apply(..., mode='train')",
    ),
    "by the attribute and by the call": (
        lambda: made(MERGED(deterministic=True)).apply(X, deterministic=True),
        "the root module (Net): 'deterministic' is given twice, by the attribute of that name and by"
        " the call; leave one of them out",
    ),
    "in a part": (
        lambda: made(Pair(nn.relu, nn.BatchNorm())),
        "second (BatchNorm): 'use_running_average' is given neither by the attribute of that name nor"
        " by the call. The mode says it to the model's own call: take it there as an argument, and hand"
        " it on",
    ),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_flag_given_twice_or_not_at_all_says_where(case):
    call, text = TWICE[case]
    assert message(ModelError, call) == text


# Random streams


class Noise(nn.Module):
    streams: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        return [jax.random.normal(self.make_rng(stream), (3,)) for stream in self.streams]


def test_named_streams_go_to_linen_by_name():
    module = made(Noise(("noise", "dropout")))
    keys = {"noise": jax.random.key(7), "dropout": jax.random.key(11)}
    out, _ = module.apply(X, rng=keys)
    np.testing.assert_array_equal(out, module.model.value.apply({}, X, rngs=keys))


@pytest.mark.parametrize("streams", [("noise",), ("dropout",), ("params",), ("a", "b", "dropout", "a")])
def test_one_key_serves_every_stream_as_in_linen_and_no_two_draws_are_alike(streams):
    module = made(Noise(streams))
    out, _ = module.apply(X, rng=KEY)
    np.testing.assert_array_equal(out, module.model.value.apply({}, X, rngs=KEY))
    assert len({float(one[0]) for one in out}) == len(streams)


def test_default_serves_what_is_not_named():
    module = made(Noise(("noise", "latent", "dropout")))
    keys = {"noise": jax.random.key(7), "dropout": jax.random.key(11), "default": KEY}
    out, _ = module.apply(X, rng=keys)
    own = module.model.value.apply({}, X, rngs={**keys, "latent": KEY})
    np.testing.assert_array_equal(out, own)


def test_a_missing_stream_is_named_with_those_that_were_given():
    module = made(Noise(("dropout", "noise")))
    assert message(MissingRngError, lambda: module.apply(X, rng={"dropout": KEY})) == (
        "the root module draws from the stream 'noise'; the streams given are 'dropout'. Give it a"
        " key: rng={'noise': key, ...}, or \"default\" to serve every stream"
    )
    assert message(MissingRngError, lambda: module.apply(X)).startswith(
        "the root module draws from the stream 'dropout', and no rng was given. Type"
    )


class Latent(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Dropout(0.5, deterministic=False)(x)
        draws = [jax.random.normal(self.make_rng(stream), ()) for stream in ("latent", "noise")]
        return x, jnp.stack(draws)


class Scanned(nn.Module):
    splits: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        return nn.scan(Latent, split_rngs=dict.fromkeys(self.splits, True), length=3)()(x, None)


def test_one_key_serves_every_stream_that_a_lifted_transform_splits():
    module = made(Scanned(("params", "dropout", "latent", "noise")))
    _, draws = module.apply(X, rng=KEY)[0]
    assert len(set(draws.flatten().tolist())) == 6
    keys = {"dropout": KEY, "latent": jax.random.key(7), "noise": jax.random.key(11)}
    out, _ = module.apply(X, rng=keys)
    own = module.model.value.apply({}, X, rngs=keys)
    jax.tree.map(np.testing.assert_array_equal, out, own)


def test_a_stream_that_a_lifted_transform_keeps_back_is_no_repeated_one():
    module = made(Scanned(("params", "dropout", "noise")))
    for rng in (KEY, {"dropout": KEY, "latent": KEY, "noise": KEY}):
        assert message(MissingRngError, lambda rng=rng: module.apply(X, rng=rng)) == (
            "ScanLatent_0 draws from the stream 'latent', which the lifted transform around it keeps"
            " back; name it there: split_rngs={'latent': True, ...}"
        )
