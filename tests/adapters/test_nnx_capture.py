"""What `capture` hears of an NNX model, and that nothing it sows stays in it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import ModelError, TraceError

nnx = pytest.importorskip("flax.nnx")

X = jax.random.normal(jax.random.key(3), (7, 3))


def linear() -> Any:
    return nnx.Linear(3, 3, rngs=nnx.Rngs(0))


class Sowing(nnx.Module):
    """It sows by type and by name, once reduced, and perturbs."""

    def __init__(self):
        self.linear = linear()

    def __call__(self, x):
        x = self.linear(x)
        self.sow(nnx.Intermediate, "hidden", x)
        self.sow(nnx.Intermediate, "hidden", 2 * x)
        self.sow("losses", "l2", (x**2).sum(), lambda before, value: before + value, lambda: 0.0)
        return self.perturb("shift", x)


class Around(nnx.Module):
    """Runs a part by a function of the part and the input."""

    def __init__(self, part, how):
        self.part, self.how = part, how

    def __call__(self, x):
        return self.how(self.part, x)


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def shapes(captured: dict[str, Any]) -> dict[str, Any]:
    return {path: jax.tree.map(jnp.shape, value) for path, value in captured.items()}


def test_parts_are_captured_by_path_and_a_second_call_by_number():
    module = br.from_nnx(Around(nnx.List([linear()]), lambda layers, x: layers[0](layers[0](x))))
    captured = module.capture(X, paths=["part.0"])
    assert list(captured) == ["part.0", "part.0#2"]
    assert (captured["part.0#2"] == module(X)).all()


def test_what_is_sown_comes_by_capture_under_its_collection():
    module = br.from_nnx(Around(Sowing(), lambda part, x: part(x)))
    captured = module.capture(X, paths=["*"])
    out = module.native().part.linear(X)
    assert shapes(captured) == {
        "part.linear": (7, 3),
        "part": (7, 3),
        "intermediates.part.hidden": ((7, 3), (7, 3)),
        "losses.part.l2": (),
        "perturbations.part.shift": (7, 3),
        "": (7, 3),
    }
    assert (captured["intermediates.part.hidden"][1] == 2 * out).all()
    assert captured["losses.part.l2"] == (out**2).sum()
    assert not captured["perturbations.part.shift"].any()
    assert (captured["part"] == out).all()


def test_what_is_sown_never_stays_and_costs_no_compilation():
    module = br.from_nnx(Sowing())
    run = jax.jit(lambda module: module.apply(X))
    for _ in range(3):
        _, module = run(module)
    assert run._cache_size() == 1
    assert len(jax.tree.leaves(module)) == 2
    assert module.apply(X)[1] is module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NNX, about sow outside of nnx.capture
def test_what_a_model_has_sown_before_it_is_wrapped_is_left_behind():
    own = Sowing()
    own(X[:2])
    del own.l2
    module = br.from_nnx(own)
    assert (module(X) == own.linear(X)).all()
    assert len(jax.tree.leaves(module)) == 2


def test_an_intermediate_that_a_call_assigns_is_captured_and_does_not_stay():
    class Assigning(nnx.Module):
        def __init__(self):
            self.linear = linear()

        def __call__(self, x):
            self.hidden = nnx.Intermediate(self.linear(x))
            return -self.hidden

    own = Assigning()
    own(X[:2])
    module = br.from_nnx(own)
    assert (module(X) == own(X)).all()
    captured = module.capture(X, paths=["intermediates.*"])
    assert (captured["intermediates.hidden"] == -module(X)).all()
    assert (
        jax.jit(lambda module: module.apply(X))(module)[1]
        .native()
        .__dict__.keys()
        .isdisjoint({"hidden"})
    )


def test_an_intermediate_that_a_call_expects_to_be_there_is_refused():
    class Expecting(nnx.Module):
        def __init__(self):
            self.hidden = nnx.Intermediate(jnp.zeros((7, 3)))

        def __call__(self, x):
            self.hidden[...] = self.hidden[...] + x
            return self.hidden[...]

    assert message(ModelError, lambda: br.from_nnx(Expecting())(X)) == (
        "the root module, __call__: hidden is an nnx.Intermediate, and no call keeps one: what is"
        " assigned there goes to module.capture. Make it a Variable of another type to keep it, or"
        " assign a new nnx.Intermediate there"
    )


def test_a_model_that_captures_its_own_parts_hears_them_and_so_does_capture():
    def captured(part, x):
        out, found = nnx.capture(part, nnx.Intermediate)(x)
        return out + found["hidden"].get_value()[0]

    module = br.from_nnx(Around(Sowing(), captured))
    assert (module(X) == 2 * module.native().part.linear(X)).all()
    assert "intermediates.part.hidden" in module.capture(X, paths=["*"])
    assert module.apply(X)[1] is module


HEARD = {
    "nnx.remat": (lambda part, x: nnx.remat(lambda part, x: part(x))(part, x), (7, 3)),
    "nnx.jit": (lambda part, x: nnx.jit(lambda part, x: part(x))(part, x), (7, 3)),
    "nnx.vmap over parts": (
        lambda part, x: nnx.vmap(lambda part, x: part(x), in_axes=(0, None))(part, x),
        (5, 7, 3),
    ),
    "nnx.scan over parts": (
        lambda part, x: nnx.scan(lambda part, x: part(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
            part, x
        ),
        (5, 7, 3),
    ),
}


@pytest.mark.parametrize("how", HEARD)
def test_parts_inside_transforms_of_nnx_are_heard(how):
    run, shape = HEARD[how]
    stacked = nnx.split_rngs(splits=5)(nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs)))
    part = stacked(nnx.Rngs(0)) if len(shape) == 3 else linear()
    module = br.from_nnx(Around(part, run))
    captured = jax.jit(lambda module: module.capture(X, paths=["part"]))(module)
    assert captured["part"].shape == shape
    assert module.apply(X)[1] is module


UNHEARD = {
    "jax.vmap": lambda part, x: jax.vmap(part)(x),
    "nnx.vmap of one part": lambda part, x: nnx.vmap(lambda p, x: p(x), in_axes=(None, 0))(part, x),
}


@pytest.mark.parametrize("how", UNHEARD)
def test_parts_that_cannot_be_heard_are_an_error_of_capture_alone(how):
    module = br.from_nnx(Around(linear(), UNHEARD[how]))
    assert jnp.allclose(module(X), module.native().part(X), atol=1e-6)
    assert message(TraceError, lambda: module.capture(X, paths=["part"])) == (
        "the root module, __call__: a part runs inside a transform where its output cannot be captured:"
        " one of JAX, or an nnx.vmap or nnx.scan that has the same part for every step; return it"
    )
