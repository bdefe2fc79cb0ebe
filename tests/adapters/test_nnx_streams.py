"""Random numbers: the streams that an NNX module has, and the nnx.Rngs that a method takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import DroppedStateError, MissingRngError, TraceError
from bridge.core.paths import fingerprint, join
from bridge.core.tree import entries

nnx = pytest.importorskip("flax.nnx")

KEY = jax.random.key(5)
X = jnp.ones((11, 7))


class Two(nnx.Module):
    """Two dropouts, with streams of their own where they are given some; a call may bring others."""

    def __init__(self, rngs=None):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.second(self.first(x, rngs=rngs), rngs=rngs)


class Own(Two):
    def __call__(self, x):
        return super().__call__(x)


class Noise(nnx.Module):
    def __init__(self):
        self.rngs = nnx.Rngs(dropout=0, noise=1)

    def __call__(self):
        return self.rngs.dropout.uniform(()), self.rngs.noise.uniform(())


class Over(br.Module):
    child: br.Module
    how: Any

    def __call__(self, x):
        return self.how(self.child, x)


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def training(model: Any) -> Any:
    model.train()
    return model


def numbers(module: Any) -> list[Any]:
    data = {join(e.path): e.value for e in entries(module)}
    return [jax.random.key_data(v) if path.endswith("key") else v for path, v in data.items()]


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(numbers(first), numbers(second), strict=True))


# Streams of the module


def test_without_rng_its_own_streams_draw_as_in_nnx_and_advance():
    own, module = training(Own(nnx.Rngs(0, dropout=1))), br.from_nnx(Own(nnx.Rngs(0, dropout=1)))
    run = jax.jit(lambda module: module.apply(X, mode="train"))
    for _ in range(3):
        out, module = run(module)
        assert (out == own(X)).all()
    assert int(module.at["state.rngs.first.rngs.count"].get()) == 3
    assert run._cache_size() == 1


def test_a_call_of_the_module_alone_would_drop_the_advance_of_its_streams():
    module = br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0))).train()
    assert message(DroppedStateError, lambda: module(X)) == (
        "this call updates state.rngs.rngs.count, and calling the module gives only its output: the"
        " update would be lost. Type `out, module = module.apply(...)`"
    )


def test_an_explicit_rng_seeds_each_stream_and_counts_by_its_path_and_leaves_them_as_they_were():
    module = br.from_nnx(Own(nnx.Rngs(dropout=0)))
    out, after = module.apply(X, rng=KEY, mode="train")
    own = training(Own(nnx.Rngs(dropout=0)))
    for name in ("first", "second"):
        stream = getattr(own, name).rngs
        stream.key[...] = KEY
        stream.count[...] = jnp.uint32(fingerprint((name, "rngs")))
    assert (out == own(X)).all()
    assert same(after, module)


def test_the_only_stream_of_a_model_alone_takes_the_key_as_it_is():
    module = br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    own = training(nnx.Dropout(0.5))
    assert (module.apply(X, rng=KEY, mode="train")[0] == own(X, rngs=nnx.Rngs(KEY))).all()


def test_a_named_key_seeds_the_streams_of_that_name_and_others_go_on():
    module = br.from_nnx(Noise())
    own = module.apply()[0]
    (dropout, noise), after = module.apply(rng={"noise": KEY})
    assert dropout == own[0]
    assert noise != own[1]
    assert int(after.at["state.rngs.rngs.dropout.count"].get()) == 1
    assert int(after.at["state.rngs.rngs.noise.count"].get()) == 0


def test_a_default_stream_may_be_meant_by_any_name_so_that_it_is_not_left_to_itself():
    module = br.from_nnx(Own(nnx.Rngs(0)))
    assert message(MissingRngError, lambda: module.apply(X, rng={"dropout": KEY}, mode="train")) == (
        "the root module draws from the stream 'default'; the streams given are 'dropout'. Give it a"
        " key: rng={'default': key, ...}, or \"default\" to serve every stream"
    )
    assert (module.apply(X, rng={"dropout": KEY})[0] == X).all()


def test_forked_streams_are_streams_of_their_own():
    class Forked(nnx.Module):
        def __init__(self, rngs):
            self.one, self.other = rngs.fork(), rngs.fork()

        def __call__(self):
            return jnp.stack([self.one.noise.normal(()), self.other.noise.normal(())])

    own = Forked(nnx.Rngs(noise=3))
    module = br.from_nnx(own)
    for _ in range(2):
        out, module = module.apply()
        assert (out == own()).all()
    first, second = module.apply(rng=KEY)[0]
    assert first != second


def test_a_stream_that_the_model_does_not_have_is_named():
    class Lacking(Noise):
        def __call__(self):
            return self.rngs.other.normal(())

    holder = Over(br.from_nnx(Lacking()), lambda child, x: child())
    for rng in (None, {"other": KEY}):
        assert message(MissingRngError, lambda rng=rng: holder.apply(X, rng=rng)) == (
            "child, __call__: draws from the stream 'other', which the model does not have: make it"
            " with nnx.Rngs(other=...), or with nnx.Rngs(key) to serve every stream; or let its"
            " __call__ take `rngs` and hand it on"
        )


@pytest.mark.parametrize(
    "make", [lambda: Own(nnx.Rngs(0)), Two], ids=["own streams", "rngs of the call"]
)
def test_each_example_of_a_lifted_vmap_and_each_step_of_a_scan_has_a_mask_of_its_own(make):
    module = br.from_nnx(make())
    vmapped = Over(module, lambda child, x: br.vmap(child)(jnp.stack([x, x])))
    scanned = Over(module, lambda child, x: br.scan(lambda c, _: (c, child(x)), 0, None, length=2)[1])
    for over in (vmapped, scanned):
        out, _ = over.apply(X, rng=KEY, mode="train")
        assert not (out[0] == out[1]).all()


def test_its_own_streams_give_each_example_of_a_lifted_vmap_another_mask_without_rng():
    over = Over(br.from_nnx(Own(nnx.Rngs(0))), lambda child, x: br.vmap(child)(jnp.stack([x, x])))
    out, _ = over.apply(X, mode="train")
    assert not (out[0] == out[1]).all()


# The nnx.Rngs of a call


def test_a_method_that_takes_rngs_is_given_the_rng_of_the_call_as_nnx_rngs():
    own, module = training(Two()), br.from_nnx(Two())
    wanted = own(X, rngs=nnx.Rngs(KEY))
    run = jax.jit(lambda module, rng: module.apply(X, rng=rng, mode="train")[0])
    assert (run(module, KEY) == wanted).all()
    assert (run(module, jax.random.PRNGKey(5)) == wanted).all()
    assert (run(module, {"dropout": KEY}) == own(X, rngs=nnx.Rngs(dropout=KEY))).all()
    assert (module.new_state(KEY, mode="train").apply(X)[0] == wanted).all()
    assert (module(X) == X).all()


def test_the_rngs_of_a_call_come_before_the_streams_of_the_module():
    own = training(Two(nnx.Rngs(0)))
    module = br.from_nnx(Two(nnx.Rngs(0)))
    out, after = module.apply(X, rng=KEY, mode="train")
    assert (out == own(X, rngs=nnx.Rngs(KEY))).all()
    assert same(after, module)


def test_streams_of_the_module_and_rngs_of_the_call_never_draw_the_same():
    class Both(nnx.Module):
        def __init__(self):
            self.rngs = nnx.Rngs(0)

        def __call__(self, rngs):
            return self.rngs.normal(()), rngs.normal(())

    first, second = br.from_nnx(Both()).apply(rng=KEY)[0]
    assert first != second


@pytest.mark.parametrize("given", [lambda: nnx.Rngs(KEY), lambda: KEY], ids=["Rngs", "key"])
def test_rngs_that_the_caller_gives_are_handed_on_as_they_are(given):
    own, module = training(Two()), br.from_nnx(Two())
    for call in (
        lambda rngs: module.apply(X, rngs, mode="train", rng=jax.random.key(99)),
        lambda rngs: module.apply(X, rngs=rngs, mode="train"),
    ):
        assert (call(given())[0] == own(X, rngs=given())).all()


def test_a_sequence_hands_the_rng_of_the_call_to_its_parts():
    own = training(nnx.Sequential(nnx.Dropout(0.5), nnx.relu, nnx.Dropout(0.5)))
    out, _ = br.from_nnx(own).apply(X, rng=KEY, mode="train")
    assert (out == own(X, rngs=nnx.Rngs(KEY))).all()


def test_a_draw_without_any_rng_says_where_and_what_to_type():
    holder = Over(br.from_nnx(Two()), lambda child, x: child(x))
    start = "child draws from the stream 'dropout'"
    text = message(MissingRngError, lambda: holder.apply(X, mode="train"))
    assert text.startswith(f"{start}, and no rng was given. Type module.apply(..., rng=key)")
    text = message(MissingRngError, lambda: holder.apply(X, mode="train", rng={"noise": KEY}))
    assert text.startswith(
        f"{start}; the streams given are 'noise'. Give it a key: rng={{'dropout': key"
    )


def test_a_method_that_cannot_do_without_rngs_asks_for_an_rng():
    class Sampler(nnx.Module):
        def __call__(self, rngs):
            return rngs.normal(())

    module = br.from_nnx(Sampler())
    assert module.apply(rng=KEY)[0] == nnx.Rngs(KEY).normal(())
    text = message(MissingRngError, lambda: module.apply())
    assert text.startswith("the root module draws from the stream 'default', and no rng was given")


def test_a_part_without_streams_in_a_method_that_takes_none_says_how_to_make_it():
    text = message(MissingRngError, lambda: br.from_nnx(Own()).apply(X, rng=KEY, mode="train"))
    assert text == (
        "the root module, __call__: draws from the stream 'dropout', which the model does not have:"
        " make it with nnx.Rngs(dropout=...), or with nnx.Rngs(key) to serve every stream; or let its"
        " __call__ take `rngs` and hand it on"
    )


# Raw transforms


def raw_scan(child, x):
    return jax.lax.scan(lambda carry, _: (carry, child(x)), 0, None, 3)[1]


@pytest.mark.parametrize(
    "make", [lambda: Own(nnx.Rngs(0)), Two], ids=["own streams", "rngs of the call"]
)
@pytest.mark.parametrize("rng", [None, KEY], ids=["no rng", "rng"])
def test_a_raw_transform_over_the_module_is_refused_where_it_draws_and_only_there(make, rng):
    over = Over(br.from_nnx(make()), raw_scan)
    assert (over.apply(X, rng=rng)[0] == X).all()
    with pytest.raises((TraceError, MissingRngError)) as caught:
        over.apply(X, rng=rng, mode="train")
    assert str(caught.value).startswith("child ")
    assert isinstance(caught.value, TraceError) or rng is None


INSIDE = {
    "scan": lambda part, x: jax.lax.scan(lambda carry, _: (carry, part(x)), 0, None, 3)[1],
    "vmap": lambda part, x: jax.vmap(part)(x),
    "jit": lambda part, x: jax.jit(lambda x: part(x))(x),
    "checkpoint": lambda part, x: jax.checkpoint(lambda x: part(x))(x),
    "cond": lambda part, x: jax.lax.cond(x.sum() > 0, lambda x: part(x), lambda x: x, x),
    "grad": lambda part, x: jax.grad(lambda x: part(x).sum())(x),
}


@pytest.mark.parametrize("how", INSIDE)
@pytest.mark.parametrize("kind", ["RngCount", "BatchStat"])
def test_a_raw_transform_inside_the_model_is_refused_where_it_draws_or_writes(how, kind):
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.part = (
                nnx.Dropout(0.5, rngs=rngs) if kind == "RngCount" else nnx.BatchNorm(7, rngs=rngs)
            )

        def __call__(self, x):
            return INSIDE[how](self.part, x)

    holder = Over(br.from_nnx(Net()), lambda child, x: child(x))
    assert jnp.isfinite(holder(X)).all()
    assert message(TraceError, lambda: holder.apply(X, mode="train")) == (
        f"child, __call__: Cannot mutate {kind} from a different trace level. A JAX transform inside"
        " the method (jax.lax.scan, jax.vmap, jax.checkpoint, jax.jit) would repeat or lose that; use"
        " nnx.scan, nnx.vmap, nnx.remat or nnx.jit there"
    )
