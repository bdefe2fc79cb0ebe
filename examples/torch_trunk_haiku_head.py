"""A torchvision ResNet with a Haiku head in one tree, fine-tuned on digits, and back in PyTorch.

The ResNet is captured, forward and all; its last layer gives way to a Haiku one; one optimizer trains
both, the batch norms keep their statistics, and what comes out is a torch model again that predicts the
same.

    python examples/torch_trunk_haiku_head.py [--epochs 4]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bridge as br

BATCH, CLASSES = 64, 10


def resnet() -> torch.nn.Module:
    """A ResNet of torchvision with one block for each size."""
    # A wheel of torchvision that was built for CUDA lacks these two ops beside a CPU build of torch. No
    # classifier uses them, but the import wants them declared.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def digits() -> tuple[Any, ...]:
    """Train and test images as (count, 3, 16, 16), and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 8 - 1
    images = np.broadcast_to(images.repeat(2, axis=2).repeat(2, axis=3), (len(images), 3, 16, 16))
    return train_test_split(images, labels.astype(np.int32), test_size=0.25, random_state=0)


@jax.jit
def train_step(net: br.Module, optimizer: br.Optimizer, images: Any, labels: Any) -> Any:
    """The net and the optimizer after one batch, and its loss."""

    def loss(net):
        logits, net = net.apply(images, mode="train")
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), net

    (value, net), grads = br.value_and_grad(loss, has_aux=True)(net)
    net, optimizer = optimizer.step(grads, net)
    return net, optimizer, value


@jax.jit
def predict(net: br.Module, images: Any) -> Any:
    """The scores of each class."""
    return net(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    train_images, test_images, train_labels, test_labels = digits()

    start = time.perf_counter()
    model = resnet()
    captured = br.from_torch(model, torch.from_numpy(train_images[:2].copy()))
    print(f"captured {len(model.state_dict())} tensors in {time.perf_counter() - start:.1f} s")

    head = br.from_haiku(hk.Linear)(CLASSES).init(jax.random.key(0), jnp.zeros((1, 512)))
    net = captured.at["fc"].set(head)
    print(net)
    optimizer = br.Optimizer({"fc.*": optax.adam(3e-3), "*": optax.adam(1e-3)}).init(net)

    shuffled = np.random.default_rng(0)
    for epoch in range(1, options.epochs + 1):
        order = shuffled.permutation(len(train_images))
        losses = []
        for first in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[first : first + BATCH]
            batch = train_images[chosen], train_labels[chosen]
            net, optimizer, loss = train_step(net, optimizer, *batch)
            losses.append(loss)
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}")

    scores = np.asarray(predict(net, test_images))
    back = br.to_torch(net, like=model).eval()
    with torch.no_grad():
        theirs = back(torch.from_numpy(test_images.copy())).numpy()
    same = (scores.argmax(1) == theirs.argmax(1)).mean()
    print(f"batches that the batch norms have seen: {int(net.bn1.num_batches_tracked)}")
    print(
        f"largest difference of a score from the exported torch model: {abs(scores - theirs).max():.1e}"
    )
    print(f"same predictions: {100 * same:.1f}%")
    print(f"test accuracy {100 * (scores.argmax(1) == test_labels).mean():.2f}%")


if __name__ == "__main__":
    main()
