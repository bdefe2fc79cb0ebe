"""Ten steps of training a small convnet in torch and in bridge: each step gives the same."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br

torch = pytest.importorskip("torch")
nn = torch.nn

STEPS, CLASSES = 10, 7
OPTIMIZERS = {
    "sgd": (
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
        lambda: optax.sgd(0.05, momentum=0.9),
    ),
    "adamw": (
        lambda params: torch.optim.AdamW(params, lr=3e-3, weight_decay=0.01),
        lambda: optax.adamw(3e-3, weight_decay=0.01),
    ),
}


def convnet():
    """No bias before a batch norm: its gradient is rounding alone, which Adam would scale to a step."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 11, 3, padding=1, bias=False),
        nn.BatchNorm2d(11),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(11, CLASSES),
    )


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(13, 3, 9, 11, generator=generator)
        yield images, torch.randint(0, CLASSES, (13,), generator=generator)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_give_the_losses_weights_and_statistics_of_torch(name):
    of_torch, of_optax = OPTIMIZERS[name]
    model = convnet()
    module = br.from_torch(copy.deepcopy(model), torch.zeros(2, 3, 9, 11), mode="train")
    theirs = of_torch(model.parameters())
    ours = br.Optimizer(of_optax()).init(module)

    @jax.jit
    def step(module, optimizer, images, labels):
        def loss(module):
            logits, after = module.apply(images, mode="train")
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

        (value, module), grads = br.value_and_grad(loss, has_aux=True)(module)
        return *optimizer.step(grads, module), value

    first = None
    for images, labels in batches():
        theirs.zero_grad()
        expected = nn.functional.cross_entropy(model(images), labels)
        expected.backward()
        theirs.step()
        module, ours, value = step(
            module, ours, jnp.asarray(images.numpy()), jnp.asarray(labels.numpy())
        )
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
        held = br.state_dict(module)
        for path, tensor in model.state_dict().items():
            np.testing.assert_allclose(held[path], tensor.numpy(), rtol=1e-5, atol=1e-5, err_msg=path)
        first = value if first is None else first
    assert float(value) != float(first)
    assert int(module.at["1.num_batches_tracked"].get()) == STEPS
