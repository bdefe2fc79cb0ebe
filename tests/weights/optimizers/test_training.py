"""Training goes on in JAX where torch stopped, and in torch where JAX did: step by step the same."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
import bridge.core.paths as paths

torch = pytest.importorskip("torch")

LIBRARIES = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox"}
BATCH, WIDTH, CHANNELS, FEATURES, CLASSES = 11, 7, 3, 5, 2
BEFORE, STEPS = 7, 10
random = np.random.default_rng(0)
IMAGES = random.normal(size=(BATCH, CHANNELS, WIDTH, WIDTH)).astype(np.float32)
WANTED = random.normal(size=(BATCH, CLASSES)).astype(np.float32)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(CHANNELS, FEATURES, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(FEATURES)
        self.head = torch.nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def linen():
    import flax.linen as nn

    class Twin(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(FEATURES, (3, 3), padding=1, use_bias=False)(x)
            x = nn.BatchNorm(not train, momentum=0.9)(x)
            return nn.Dense(CLASSES)(nn.relu(x).mean((1, 2)))

    return br.from_linen(Twin())


def nnx():
    from flax import nnx

    class Twin(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(CHANNELS, FEATURES, (3, 3), padding=1, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(FEATURES, momentum=0.9, rngs=rngs)
            self.head = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    return br.from_nnx(Twin(nnx.Rngs(0)))


def haiku():
    import haiku as hk

    def twin(x, is_training=False):
        x = hk.Conv2D(FEATURES, 3, padding=(1, 1), with_bias=False)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        return hk.Linear(CLASSES)(jax.nn.relu(x).mean((1, 2)))

    return br.from_haiku(twin)


def equinox():
    import equinox as eqx

    class Twin(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(CHANNELS, FEATURES, 3, padding=1, use_bias=False, key=key)
            self.norm = eqx.nn.BatchNorm(FEATURES, "batch", momentum=0.9, mode="batch")
            self.head = eqx.nn.Linear(FEATURES, CLASSES, key=key)

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return self.head(jax.nn.relu(x).mean((1, 2))), state

    return br.from_equinox(eqx.nn.make_with_state(Twin)(jax.random.key(0)), vmap=True)


def inputs(library):
    return IMAGES if library == "equinox" else np.moveaxis(IMAGES, 1, -1)


@functools.cache
def module_of(library):
    pytest.importorskip(LIBRARIES[library])
    make = {"linen": linen, "nnx": nnx, "haiku": haiku, "equinox": equinox}[library]
    return make().init(jax.random.key(0), inputs(library)).train()


@functools.cache
def gradient(library):
    """The loss of a module in training, the module after it, and its gradient."""

    def loss(module):
        out, module = module.apply(inputs(library))
        return jnp.mean((out - WANTED) ** 2), module

    return jax.jit(br.value_and_grad(loss, has_aux=True))


def torch_step(model, optimizer):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(torch.from_numpy(IMAGES)), torch.from_numpy(WANTED))
    loss.backward()
    optimizer.step()
    return loss.item()


def amsgrad(rate):
    # torch's maximum is that of the second moments before they are corrected, optax.amsgrad's after.
    return optax.chain(
        optax.scale_by_amsgrad(bias_correction_nu=False),
        optax.scale_by_schedule(lambda count: jnp.sqrt(1 - 0.999 ** (count + 1))),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "adam": (lambda p: torch.optim.Adam(p, 0.01), lambda: optax.adam(0.01)),
    "adamw": (
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        lambda: optax.adamw(0.01, weight_decay=0.1),
    ),
    "adam with l2": (
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.01)),
    ),
    "amsgrad": (lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), lambda: amsgrad(0.01)),
    "sgd": (lambda p: torch.optim.SGD(p, 0.1), lambda: optax.sgd(0.1)),
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda: optax.sgd(0.1, 0.9)),
    "nesterov": (
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
        lambda: optax.sgd(0.1, 0.9, nesterov=True),
    ),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, 0.001, momentum=0.9, centered=True),
        lambda: optax.chain(
            optax.scale_by_stddev(0.99, 1e-8, eps_in_sqrt=False),
            optax.trace(0.9),
            optax.scale_by_learning_rate(0.001),
        ),
    ),
}


@functools.cache
def trained_states(kind):
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[kind][0](model.named_parameters())
    for _ in range(BEFORE):
        torch_step(model, optimizer)
    return model.state_dict(), optimizer.state_dict()


def trained(kind):
    """A torch model and its optimizer after some steps."""
    weights, state = trained_states(kind)
    model = Net()
    optimizer = OPTIMIZERS[kind][0](model.named_parameters())
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    return model, optimizer


def weights_in(module, model):
    return br.load_state_dict(module, model, strict=False)


def weights_out(module, plan, model):
    """Puts the weights of a module into a torch model, whose buffers do not count in training."""
    for pair in plan.pairs:
        if pair.key in dict(model.named_parameters()):
            array = np.zeros(pair.translation.source_shape, np.float32)
            value = np.asarray(module.at[paths.join(pair.path)].get())
            pair.translation.inverse().put(value, array)
            with torch.no_grad():
                model.get_parameter(pair.key).copy_(torch.from_numpy(array))


def assert_same_steps(library, module, optimizer, model, theirs):
    """Both train on, their losses and, in the end, their parameters equal."""
    for _ in range(STEPS):
        (loss, module), grads = gradient(library)(module)
        module, optimizer = optimizer.step(grads, module)
        assert float(loss) == pytest.approx(torch_step(model, theirs), rel=1e-5)
    expected = weights_in(module, model).parameters()
    for ours, wanted in zip(*map(jax.tree.leaves, (module.parameters(), expected)), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)


LIKE_TORCH = [
    (library, kind)
    for library in LIBRARIES
    for kind in OPTIMIZERS
    if library == "haiku" or kind in ("adam", "adamw", "amsgrad", "momentum", "nesterov")
]


@pytest.mark.parametrize(("library", "kind"), LIKE_TORCH)
def test_ten_further_steps_are_torchs(library, kind):
    model, theirs = trained(kind)
    module = weights_in(module_of(library), model)
    optimizer = br.Optimizer(OPTIMIZERS[kind][1]()).init(module)
    optimizer = br.load_optimizer_state(optimizer, theirs, br.match(module, model))
    assert_same_steps(library, module, optimizer, model, theirs)


@pytest.mark.parametrize(("library", "kind"), LIKE_TORCH)
def test_ten_further_steps_in_torch_are_those_of_jax(library, kind):
    module = module_of(library)
    optimizer = br.Optimizer(OPTIMIZERS[kind][1]()).init(module)
    for _ in range(BEFORE):
        (_, module), grads = gradient(library)(module)
        module, optimizer = optimizer.step(grads, module)
    model = Net()
    theirs = OPTIMIZERS[kind][0](model.named_parameters())
    plan = br.match(module, model)
    weights_out(module, plan, model)
    theirs.load_state_dict(br.optimizer_state_dict(optimizer, plan, theirs))
    assert_same_steps(library, module, optimizer, model, theirs)
