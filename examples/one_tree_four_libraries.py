"""One tree of four libraries, trained by one optimizer on handwritten digits.

The stem is Flax Linen, the core dm-haiku with BatchNorm, the block Flax NNX with dropout, the head
Equinox, and what holds them is a bridge.Module with a Parameter and a State of its own. One key, one
Optax optimizer, one compiled train step and one compiled eval step serve them all. Half way the run is
saved, loaded into a freshly built model, and goes on.

    python examples/one_tree_four_libraries.py [--epochs 20] [--out out]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bridge as br

BATCH = 50
EPOCHS = 20
# Made once: two optimizers of the same transformation are one compilation.
TRANSFORM = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(3e-3, EPOCHS * 28, alpha=0.01), weight_decay=1e-3),
)


class Stem(nn.Module):
    """Linen: a convolution over the 8 x 8 image."""

    features: int

    @nn.compact
    def __call__(self, image):
        return nn.relu(nn.Conv(self.features, (3, 3))(image))


def core(image, is_training):
    """Haiku: a strided convolution with BatchNorm, whose statistics are state."""
    image = hk.Conv2D(48, 3, stride=2, with_bias=False)(image)
    image = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(image, is_training)
    return hk.Flatten()(jax.nn.relu(image))


class Block(nnx.Module):
    """NNX: a dense layer with dropout."""

    def __init__(self, inputs, outputs, rngs):
        self.dense = nnx.Linear(inputs, outputs, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.dense(x)))


class Classifier(br.Module):
    """The whole: four children of four libraries, one parameter and one state of its own."""

    stem: br.Module
    core: br.Module
    block: br.Module
    head: br.Module
    temperature: br.Parameter
    images_seen: br.State

    def __init__(self, seed):
        self.stem = br.from_linen(Stem(24))
        self.core = br.from_haiku(core)
        self.block = br.from_nnx(Block(4 * 4 * 48, 64, rngs=nnx.Rngs(seed)))
        self.head = br.from_equinox(eqx.nn.Linear(64, 10, key=jax.random.key(seed)), vmap=True)
        self.temperature = br.ParamInit((), jax.nn.initializers.ones)
        self.images_seen = 0

    def __call__(self, image):
        if self.training:
            self.images_seen = self.images_seen + image.shape[0]
        return self.head(self.block(self.core(self.stem(image)))) * self.temperature


def digits():
    """Images (n, 8, 8, 1) in 0..1 and labels, for training and for testing."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype(np.float32)
    return train_test_split(images, data.target, test_size=0.2, random_state=0, stratify=data.target)


def loss_of(model, images, labels, key):
    logits, model = model.apply(images, rng=key, mode="train")
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), model


@jax.jit
def train_step(model, optimizer, images, labels, key):
    (loss, model), grads = br.value_and_grad(loss_of, has_aux=True)(model, images, labels, key)
    model, optimizer = optimizer.step(grads, model)
    return model, optimizer, loss


@jax.jit
def accuracy(model, images, labels):
    logits, _ = model.apply(images, mode="eval")
    return (logits.argmax(-1) == labels).mean()


def train_epoch(model, optimizer, key, images, labels):
    """The model, optimizer and key after one pass over the data, and its mean loss."""
    key, shuffled = jax.random.split(key)
    order = np.asarray(jax.random.permutation(shuffled, len(images)))
    losses = []
    for start in range(0, len(images) - BATCH + 1, BATCH):
        key, step_key = jax.random.split(key)
        batch = order[start : start + BATCH]
        model, optimizer, loss = train_step(model, optimizer, images[batch], labels[batch], step_key)
        losses.append(loss)
    return model, optimizer, key, float(jnp.stack(losses).mean())


def build(seed, sample):
    """A new model and its optimizer."""
    model = Classifier(seed).init(jax.random.key(seed), sample)
    return model, br.Optimizer(TRANSFORM).init(model)


def draw(history, file):
    """Writes the curves of loss and accuracy as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [loss for loss, _ in history], marker="o")
    left.set(xlabel="epoch", ylabel="train loss", yscale="log", title="loss")
    right.plot(epochs, [100 * correct for _, correct in history], marker="o", color="tab:green")
    right.axhline(97, color="gray", linestyle=":")
    right.set(xlabel="epoch", ylabel="test accuracy, %", title="accuracy")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(epochs=EPOCHS, out="out"):
    """The test accuracy after training."""
    started = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    train_images, test_images, train_labels, test_labels = digits()
    model, optimizer = build(0, train_images[:BATCH])
    key = jax.random.key(1)
    print(model)
    print(model.summary().splitlines()[-1], flush=True)

    history = []
    for epoch in range(1, epochs + 1):
        model, optimizer, key, loss = train_epoch(model, optimizer, key, train_images, train_labels)
        correct = float(accuracy(model, test_images, test_labels))
        history.append((loss, correct))
        seconds = time.perf_counter() - started
        print(f"epoch {epoch:2}  loss {loss:.4f}  test {correct:.2%}  {seconds:5.1f} s", flush=True)
        if epoch == epochs // 2:
            checkpoint = folder / "one_tree.safetensors"
            br.save(checkpoint, {"model": model, "optimizer": optimizer, "key": key})
            fresh_model, fresh_optimizer = build(7, train_images[:BATCH])
            like = {"model": fresh_model, "optimizer": fresh_optimizer, "key": jax.random.key(7)}
            loaded = br.load(checkpoint, like)
            model, optimizer, key = loaded["model"], loaded["optimizer"], loaded["key"]
            print(f"          saved, loaded into a new model: {checkpoint}", flush=True)

    picture = folder / "one_tree_four_libraries.png"
    draw(history, picture)
    compiled = train_step._cache_size(), accuracy._cache_size()
    print(f"compiled {compiled[0]} train step and {compiled[1]} eval step")
    print(f"{model.images_seen} images seen, counted by the model's own State")
    print(f"curves in {picture}")
    print(f"test accuracy {history[-1][1]:.2%} in {time.perf_counter() - started:.1f} s")
    return history[-1][1], compiled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", default="out", help="folder for the picture and the checkpoint")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.out)
