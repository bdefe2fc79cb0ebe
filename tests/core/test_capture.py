"""capture: intermediate outputs by path."""

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import PathError, TraceError

X = jnp.arange(3.0)


class Add(br.Module):
    amount: int

    def __call__(self, x):
        return x + self.amount

    def twice(self, x):
        return self(self(x))


class Net(br.Module):
    parts: list[br.Module]
    order: tuple = ()

    def __call__(self, x):
        for index in self.order or range(len(self.parts)):
            x = self.parts[index](x)
        return x

    def backwards(self, x):
        for part in reversed(self.parts):
            x = part(x)
        return x


def net(order=()):
    return Net([Add(1), Net([Add(10), jnp.negative]), Add(100)], order)


def firsts(outputs):
    return {path: int(out[0]) for path, out in outputs.items()}


@pytest.mark.parametrize(
    ("paths", "outputs"),
    [
        (["parts.0"], {"parts.0": 1}),
        (["parts.1.parts.1", "parts.0"], {"parts.0": 1, "parts.1.parts.1": -11}),
        (["parts.?"], {"parts.0": 1, "parts.1": -11, "parts.2": 89}),
        (["parts.1.*"], {"parts.1.parts.0": 11, "parts.1.parts.1": -11}),
    ],
)
@pytest.mark.parametrize("call", [lambda f: f, jax.jit])
def test_outputs_by_path(paths, outputs, call):
    assert firsts(call(lambda m, x: m.capture(x, paths=paths))(net(), X)) == outputs


def test_later_calls_are_numbered():
    outputs = net((0, 0, 2, 0)).capture(X, paths=["parts.0", "parts.2"])
    assert firsts(outputs) == {"parts.0": 1, "parts.0#2": 2, "parts.2": 102, "parts.0#3": 103}


def test_a_shared_module_is_captured_at_its_first_place():
    add = Add(1)
    module = Net([add, add])
    assert firsts(module.capture(X, paths=["parts.1"])) == {"parts.0": 1, "parts.0#2": 2}


def test_other_methods_rng_and_mode():
    assert firsts(net().capture(X, paths=["parts.2"], method="backwards")) == {"parts.2": 100}

    class Noise(br.Module):
        def __call__(self, x):
            return x + (jax.random.normal(self.rng) if self.training else 7)

    module = Net([Noise()])
    assert firsts(module.capture(X, paths=["parts.0"])) == {"parts.0": 7}
    key = jax.random.key(0)
    noisy = module.capture(X, paths=["parts.0"], rng=key, mode="train")
    assert noisy["parts.0"].tolist() == module.apply(X, rng=key, mode="train")[0].tolist()


def test_a_method_that_calls_another_is_captured_once():
    assert firsts(
        Net([Add(1)]).capture(X, paths=["parts.0"], method=lambda m, x: m.parts[0].twice(x))
    ) == {"parts.0": 2}


def test_a_module_that_is_not_called(refuses):
    with refuses(
        PathError,
        "no module at 'parts.2' was called; the nearest are 'parts.1', 'parts.0', 'parts.1.parts.1'",
    ):
        net((0, 1)).capture(X, paths=["parts.0", "parts.2"])


@pytest.mark.parametrize(
    "transform",
    [
        lambda part, x: jax.vmap(part)(x),
        lambda part, x: jax.lax.scan(lambda c, _: (part(c), None), x, None, length=2)[0],
        lambda part, x: br.vmap(part)(x),
    ],
)
def test_what_runs_inside_a_transform_is_not_captured(transform, refuses):
    class Runs(br.Module):
        part: br.Module

        def __call__(self, x):
            return transform(self.part, x)

    module = Runs(Add(1))
    with refuses(
        TraceError,
        "part runs inside a JAX transform (scan, vmap, checkpoint) that was started during the call,"
        " where its output cannot be captured; return it instead",
    ):
        module.capture(X, paths=["part"])
