"""One of the processes of a run on two hosts: loads, trains, saves and restores what both share."""

import sys
import tracemalloc
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bridge as br

INPUTS, HIDDEN, OUTPUTS, BATCH, STEPS = 12, 16, 4, 20, 3
WIDTH, DEPTH = 1536, 4
ADAM = optax.adamw(1e-2)


def model():
    # A bias before a batch norm has a gradient of rounding errors alone, which Adam makes large.
    layers = nn.Dense(HIDDEN, use_bias=False), nn.BatchNorm(momentum=0.9), nn.Dense(OUTPUTS)
    return br.Sequential(*map(br.from_linen, layers))


def weights():
    """A state_dict as torch names and lays it out."""
    draw = np.random.default_rng(0).standard_normal
    dense = {"0": (HIDDEN, INPUTS), "2": (OUTPUTS, HIDDEN)}
    arrays = {f"{name}.weight": draw(shape) for name, shape in dense.items()}
    arrays |= {"2.bias": draw(OUTPUTS)}
    arrays |= {f"1.{name}": draw(HIDDEN) for name in ("weight", "bias", "running_mean")}
    arrays |= {"1.running_var": np.abs(draw(HIDDEN)) + 1}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def batches():
    draw = np.random.default_rng(1).standard_normal
    return [draw((BATCH, INPUTS)).astype(np.float32) for _ in range(STEPS)]


def loss(module, x):
    out, module = module.apply(x, mode="train")
    return (out**2).mean(), module


@jax.jit
def step(module, optimizer, x):
    (value, module), grads = br.value_and_grad(loss, has_aux=True)(module, x)
    module, optimizer = optimizer.step(grads, module)
    return module, optimizer, value


def rules(mesh):
    """Where the arrays of the model go: the kernels by their outputs or inputs, the rest everywhere."""
    parts = {"0.params.kernel": P(None, "model"), "2.params.kernel": P("model", None)}
    return br.ShardingRules(mesh, {**parts, "*": P()})


def large_weights():
    draw = np.random.default_rng(2).standard_normal
    return {f"{i}.weight": draw((WIDTH, WIDTH)).astype(np.float32) for i in range(DEPTH)}


def load_large(folder, mesh):
    """Asserts that a process holds its part of a large model and, while it loads, one array more."""
    stack = br.Sequential(*(br.from_linen(nn.Dense(WIDTH, use_bias=False)) for _ in range(DEPTH)))
    stack = jax.eval_shape(lambda: stack.init(jax.random.key(0), jnp.ones((1, WIDTH))))
    halves = br.ShardingRules(mesh, {"*": P("data", "model")})
    tracemalloc.start()
    loaded = br.load_state_dict(stack, folder, sharding=halves)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    each = WIDTH * WIDTH * 4
    assert peak <= DEPTH * each / 2 + each, peak / each
    for source, kernel in zip(large_weights().values(), jax.tree.leaves(loaded), strict=True):
        assert sum(shard.data.nbytes for shard in kernel.addressable_shards) == each / 2
        for shard in kernel.addressable_shards:
            np.testing.assert_array_equal(shard.data, source.T[shard.index])


def mesh_of(*shape):
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, ("data", "model"), axis_types=kinds)


def main(process: int, port: str, folder: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh, other = mesh_of(2, 2), mesh_of(1, 4)
    load_large(folder / "large", mesh)
    module = model().init(jax.random.key(0), jnp.ones((BATCH, INPUTS)))
    module = br.load_state_dict(module, folder / "model.safetensors", sharding=rules(mesh))
    kernel = module.at["0.params.kernel"].get()
    held = {shard.data.shape for shard in kernel.addressable_shards}
    assert held == {(INPUTS, HIDDEN // 2)}, held
    optimizer = jax.jit(br.Optimizer(ADAM).init)(module)
    values = []
    for x in batches():
        half = x[process * BATCH // 2 : (process + 1) * BATCH // 2]
        shared = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), half)
        module, optimizer, value = step(module, optimizer, shared)
        values.append(float(value))
    with br.Checkpoints(folder / "run") as run:
        run.save(STEPS, {"module": module, "optimizer": optimizer})
        run.wait()
        like = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(other, leaf.sharding.spec)
            ),
            {"module": module, "optimizer": optimizer},
        )
        restored = run.restore(like)
    assert restored["module"].at["0.params.kernel"].get().sharding.mesh == other
    gathered = multihost_utils.process_allgather(restored, tiled=True)
    if process == 0:
        leaves = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(gathered))}
        np.savez(folder / "result.npz", losses=np.array(values), **leaves)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
