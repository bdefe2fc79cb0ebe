"""Loads PyTorch weights straight to their places on a mesh of devices, and fine-tunes there.

A sentence encoder in Linen is split over eight devices, here eight of the CPU: its matrices over two,
as Megatron-LM splits them, its batch over four. Each device is given its part of a matrix as it is
read, the transposition included; then the encoder learns to tell two kinds of sentences apart, is kept
by Orbax and comes back on another mesh.

    python examples/over_a_mesh.py
"""

import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table
from sentence_encoders import linen
from sentence_encoders.checkpoint import find_checkpoint
from sentence_encoders.sentences import sentence_vectors, tokenize

import bridge as br

WEATHER = ["It rains all day.", "The sun is out.", "A storm comes in.", "Snow fell at night."]
MUSIC = ["She plays the cello.", "The choir sings.", "He tunes a guitar.", "A drum is loud."]
STEPS, TOLERANCE = 8, 1e-4
SPLIT = {
    "*.query.*": P(None, "model"),  # the heads
    "*.key.*": P(None, "model"),
    "*.value.*": P(None, "model"),
    "*.out.kernel": P("model"),
    "*.Dense_0.kernel": P(None, "model"),
    "*.Dense_1.kernel": P("model"),
    "*.tokens.embedding": P("model"),
    "*": P(),
}
BIASES = {f"*.{name}.bias": P("model") for name in ("query", "key", "value", "Dense_0")}

console = Console(highlight=False)


class Classifier(br.Module):
    encoder: br.Module
    head: br.Module

    def __call__(self, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
        hidden, _ = self.encoder(token_ids, mask)
        return self.head(sentence_vectors(hidden, mask))


@jax.jit
def step(
    module: Classifier, optimizer: br.Optimizer, token_ids: jax.Array, mask: jax.Array, kinds: jax.Array
) -> tuple[Classifier, br.Optimizer, jax.Array]:
    """Returns module and optimizer after one step, and the loss before it."""

    def loss(module: Classifier) -> jax.Array:
        scores = module(token_ids, mask)
        return optax.softmax_cross_entropy_with_integer_labels(scores, kinds).mean()

    value, grads = br.value_and_grad(loss)(module)
    return *optimizer.step(grads, module), value


def mesh_of(data: int, model: int) -> Mesh:
    """Returns a mesh of so many devices by so many; XLA chooses what the rules leave open."""
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def trained(module: Classifier, *batch: jax.Array) -> tuple[Classifier, list[float]]:
    """Returns the module after the steps, and their losses."""
    # The biases of keys have gradients of rounding errors alone, which a smaller eps would make large.
    optimizer, losses = jax.jit(br.Optimizer(optax.adam(1e-4, eps=1e-6)).init)(module), []
    for _ in range(STEPS):
        module, optimizer, value = step(module, optimizer, *batch)
        losses.append(float(value))
    return module, losses


def held(module: br.Module) -> int:
    """Returns the bytes of a module that its first device holds."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(module))


def main() -> None:
    """Loads, trains, saves and restores over a mesh, and compares with one device."""
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")
    checkpoint = find_checkpoint()
    token_ids, mask = tokenize(checkpoint.tokenizer, [*WEATHER, *MUSIC])
    kinds = np.repeat([0, 1], [len(WEATHER), len(MUSIC)])
    encoder = br.from_linen(linen.build(checkpoint.config))
    # Shapes alone: nothing is made that the weights take the place of.
    encoder = jax.eval_shape(lambda: encoder.init(jax.random.key(0), token_ids, mask))

    rules = br.ShardingRules(mesh_of(4, 2), {**BIASES, **SPLIT})
    head = br.from_linen(nn.Dense(2)).init(jax.random.key(0), jnp.ones((1, 384)))

    def classifier(sharding: br.ShardingRules | None) -> Classifier:
        loaded = br.load_state_dict(encoder, checkpoint.weights, sharding=sharding)
        return Classifier(loaded, jax.device_put(head, sharding and NamedSharding(sharding.mesh, P())))

    split = NamedSharding(rules.mesh, P("data"))
    whole, losses = trained(classifier(None), token_ids, mask, kinds)
    module = classifier(rules)
    on_mesh, values = trained(module, *jax.device_put((token_ids, mask, kinds), split))

    table = Table("", "one device", "each of eight")
    table.add_row("weights", *(f"{held(one.encoder) / 2**20:.1f} MiB" for one in (whole, module)))
    table.add_row("loss, first step", f"{losses[0]:.5f}", f"{values[0]:.5f}")
    table.add_row(f"loss, step {STEPS}", f"{losses[-1]:.5f}", f"{values[-1]:.5f}")
    console.print(table)

    other = br.ShardingRules(mesh_of(1, 4), {**BIASES, **SPLIT, "*.tokens.embedding": P(None, "model")})
    with tempfile.TemporaryDirectory() as folder, br.Checkpoints(folder) as run:
        run.save(STEPS, on_mesh.encoder)
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            encoder,
            other.of(encoder),
        )
        restored = run.restore(like)
    console.print(f"Restored on four devices: {held(restored) / 2**20:.1f} MiB on each")

    pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(whole.encoder), strict=True)
    difference = max(float(np.abs(np.asarray(ours) - np.asarray(one)).max()) for ours, one in pairs)
    console.print(f"Largest difference to one device: {difference:.1e} (at most {TOLERANCE:.0e})")
    if not (difference <= TOLERANCE and values[-1] < values[0]):  # NaN fails too
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
