"""Fine-tuning in each library: the last layer replaced, the rest frozen, and only that one trained.

A wrapped Linen, NNX, Haiku or Equinox model is one part of a tree: what is to be replaced is a part of
its own, so the model is its trunk and its head. In a captured torch model each layer is such a part.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import bridge as br
import bridge.core.paths as paths
from bridge.core.tree import entries
from tests.adapters.subjects import SUBJECTS, subject_of

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (7, 5))
LABELS = jnp.arange(7) % 2


class Classifier(br.Module):
    trunk: br.Module
    head: br.Module

    def __call__(self, x):
        return self.head(self.trunk(x))


def linear(library, classes):
    """A last layer in the library's own terms."""
    if library == "linen":
        import flax.linen as nn

        return br.from_linen(nn.Dense(classes))
    if library == "nnx":
        from flax import nnx

        return br.from_nnx(nnx.Linear(5, classes, rngs=nnx.Rngs(classes)))
    if library == "haiku":
        from bridge.adapters import haiku

        return haiku.linear(5, classes)
    if library == "equinox":
        import equinox as eqx

        return br.from_equinox(eqx.nn.Linear(5, classes, key=KEY), vmap=True)
    if library == "torch":
        import torch

        from tests.adapters.subject_torch import made

        return made(lambda: torch.nn.Linear(5, classes), 7, 5)
    from tests.adapters.subject_sprig import example

    return br.wrap(example().sprig.Chain((example().sprig.Dense(classes),)))


@jax.jit
def step(module, optimizer, x):
    def loss(module):
        out, after = module.apply(x, rng=KEY, mode="train")
        return optax.softmax_cross_entropy_with_integer_labels(out, LABELS).mean(), after

    (value, module), grads = br.value_and_grad(loss, has_aux=True)(module)
    return *optimizer.step(grads, module), value


def net_of(library):
    """A net of three classes, and the paths of its trunk and of its last layer."""
    if library != "torch":
        net = Classifier(subject_of(library).block(), linear(library, 3))
        return jax.jit(net.init)(KEY, X), "trunk", "head"
    import torch

    from tests.adapters.subject_torch import made

    def model():
        body = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU())
        return torch.nn.Sequential(body, torch.nn.Linear(5, 3))

    return made(model, 7, 5), "0", "1"


def arrays(module, below=""):
    return {path: e.value for e in entries(module) if (path := paths.join(e.path)).startswith(below)}


def same(one, other):
    return one.keys() == other.keys() and all((other[path] == one[path]).all() for path in one)


@pytest.mark.parametrize("library", SUBJECTS)
def test_the_last_layer_is_replaced_and_trained_and_the_rest_is_frozen(library):
    subject_of(library)  # skips where the library is not installed
    net, trunk, head = net_of(library)
    tuned = net.at[head].set(linear(library, 2)).init(jax.random.key(2), X)
    names = arrays(net).keys()
    assert arrays(tuned).keys() == names
    assert same(arrays(tuned, trunk), arrays(net, trunk))

    # Frozen are the parameters; eval mode holds the averages of the trunk as well.
    module = tuned.freeze(trunk).at[trunk].apply(lambda part: part.eval())
    optimizer, losses = br.Optimizer(optax.adam(0.1)).init(module), []
    for _ in range(20):
        module, optimizer, loss = step(module, optimizer, X)
        losses.append(float(loss))

    assert losses[-1] < 0.9 * losses[0]
    assert same(arrays(module, trunk), arrays(net, trunk))
    assert arrays(module).keys() == names
    after, before = arrays(module, head), arrays(tuned, head)
    assert len(after) == 2
    assert all((after[path] != before[path]).all() for path in after)
