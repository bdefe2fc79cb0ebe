"""What becomes a Module by `from_nnx` and what does not, and which form a call must leave it in."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import ModelError, StructureError
from bridge.core.wrapped import Wrapped

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

X = jax.random.normal(jax.random.key(3), (7, 3))


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def linear() -> Any:
    return nnx.Linear(3, 3, rngs=nnx.Rngs(0))


class Changing(nnx.Module):
    """A method changes the form of the model."""

    calls = 0

    def __init__(self, how=None):
        self.part, self.other, self.kept = linear(), linear(), nnx.Cache(X)
        self.shared = self.part
        self.how = how

    def __call__(self, x):
        self.how(self, x)
        return x


def set_metadata(model: Any, x: Any) -> None:
    model.part.kernel.set_metadata(calls=1)


CHANGES = {
    "a new Variable": (
        lambda model, x: setattr(model.part, "late", nnx.Cache(x)),
        "state.cache.part.late: made by the call",
    ),
    "a Variable gone": (
        lambda model, x: delattr(model, "kept"),
        "state.cache.kept: gone after the call",
    ),
    "an attribute": (
        lambda model, x: setattr(model, "calls", model.calls + 1),
        "calls: is no Variable and was assigned",
    ),
    "an attribute of a part": (
        lambda model, x: setattr(model.part, "in_features", 5),
        "part.in_features: is no Variable and was assigned",
    ),
    "an array": (
        lambda model, x: setattr(model, "last", nnx.data(x)),
        "state.arrays.last: made by the call",
    ),
    "another part": (
        lambda model, x: setattr(model, "other", nnx.Dropout(0.5)),
        "other: is another part",
    ),
    "metadata": (set_metadata, "params.part.kernel: its metadata were assigned"),
    "a part shared no longer": (
        lambda model, x: setattr(model, "shared", linear()),
        "params.shared.kernel: made by the call",
    ),
    "another part shared": (
        lambda model, x: setattr(model, "shared", model.other),
        "its parts are shared in another way",
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_call_that_changes_the_form_of_the_model_is_refused_with_its_path(how):
    change, line = CHANGES[how]
    module = br.from_nnx(Changing(change))
    text = message(StructureError, lambda: module.apply(X))
    assert text.startswith("the root module is another NNX module after the call than before:\n")
    assert f"  {line}\n" in text
    assert text.endswith(
        "\nMake each Variable in __init__, and keep in Variables what changes from call to call"
    )
    assert len(jax.tree.leaves(module)) == 5


def test_native_is_a_new_module_in_the_modules_mode():
    module = br.from_nnx(nnx.Sequential(nnx.Dropout(0.5), nnx.BatchNorm(3, rngs=nnx.Rngs(0))))
    assert module.native() is not module.native()
    assert module.native().layers[0].deterministic
    assert not module.train().native().layers[1].use_running_average


def test_native_has_the_very_structure_of_what_was_wrapped():
    own = nnx.Sequential(linear(), nnx.relu, nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    module = br.from_nnx(own)
    for mode in ("train", "eval"):
        getattr(own, mode)()
        assert nnx.graphdef(module.with_mode(mode).native()) == nnx.graphdef(own)


def test_methods_are_called_by_name():
    embed = br.from_nnx(nnx.Embed(11, 3, rngs=nnx.Rngs(0)))
    assert embed.attend(X).shape == (7, 11)
    assert (embed.apply(X, method="attend")[0] == embed.native().attend(X)).all()
    assert message(AttributeError, lambda: embed.decode) == (
        "the wrapped Embed has no method 'decode'; its arrays are read by path:"
        " module.at['params...'].get()"
    )


REFUSED = {
    "a class": (
        lambda: nnx.Linear,
        "from_nnx was given the class Linear; make it first: from_nnx(Linear(..., rngs=nnx.Rngs(0)))",
    ),
    "a Linen module": (
        lambda: nn.Dense(5),
        "from_nnx takes a flax.nnx.Module; it was given a Dense; wrap it with bridge.wrap(model)",
    ),
    "a bridge module": (
        lambda: br.from_nnx(linear()),
        "from_nnx was given a NnxModule, which is a bridge.Module already",
    ),
    "an nnx.Rngs": (
        lambda: nnx.Rngs(0),
        "from_nnx takes a flax.nnx.Module; it was given a Rngs",
    ),
    "a number": (lambda: 3, "from_nnx takes a flax.nnx.Module; it was given a int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_nnx_module_is_refused_with_the_fix(case):
    make, text = REFUSED[case]
    assert message(ModelError, lambda: br.from_nnx(make())) == text


@pytest.mark.parametrize("make", [lambda: nn.Dense(5), linear], ids=["linen", "nnx"])
def test_wrap_finds_the_adapter_of_each_half_of_flax(make):
    module = br.wrap(make())
    assert isinstance(module, Wrapped)
    assert br.wrap(module) is module


def test_a_module_without_arrays_or_attributes_is_a_module():
    class Bare(nnx.Module):
        def __call__(self, x):
            return jnp.sin(x)

    module = br.from_nnx(Bare())
    assert jax.tree.leaves(module) == []
    assert (module(X) == jnp.sin(X)).all()
