"""What loading a checkpoint costs: CPU and wall time against reading its bytes, and the peak of memory.

    python benchmarks/import.py [--megabytes 512] [--rounds 5] [--folder /tmp]

The checkpoint is a stack of square Linear layers, made up: in float32 and bfloat16, as one .safetensors
file, as four with an index, and as a .pt file. "same" loads it into Equinox, which has torch's layout,
"turned" into Linen, which has every matrix transposed. 1.0 is the time to read the cached file into
memory that was touched before, and the size of the checkpoint. Each figure comes from a process of its
own: the first load gives the peak, the least of the others the time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, SHARDS = 2048, 4
FORMS = ("one file", "sharded", ".pt")
LAYOUTS = ("same", "turned")
DTYPES = {"float32": 4, "bfloat16": 2}
# A host that takes freed pages back would be measured instead: keep memory in the process.
MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}


def write(folder, dtype, layers):
    """The files of a checkpoint by form."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = {}
    for number in range(layers):
        state[f"layers.{number}.weight"] = torch.randn(WIDTH, WIDTH).to(getattr(torch, dtype))
        state[f"layers.{number}.bias"] = torch.randn(WIDTH).to(getattr(torch, dtype))
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pt")
    index, keys = {}, list(state)
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = keys[shard * len(keys) // SHARDS : (shard + 1) * len(keys) // SHARDS]
        index |= dict.fromkeys(part, name)
        save_file({key: state[key] for key in part}, folder / name)
    content = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def files_of(folder, form):
    if form == "sharded":
        return sorted(folder.glob("model-*.safetensors"))
    return [folder / ("model.pt" if form == ".pt" else "model.safetensors")]


def equinox_model(layers, dtype):
    import equinox as eqx
    import jax

    class Stack(eqx.Module):
        layers: list

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    key = jax.random.key(0)
    return Stack([eqx.nn.Linear(WIDTH, WIDTH, dtype=dtype, key=key) for _ in range(layers)])


def equinox_stack(layers, dtype):
    import jax

    import bridge as br

    return jax.eval_shape(lambda: br.from_equinox(equinox_model(layers, dtype)))


def linen_stack(layers, dtype):
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    import bridge as br

    class Stack(nn.Module):
        def setup(self):
            self.layers = [nn.Dense(WIDTH, param_dtype=dtype) for _ in range(layers)]

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    x = jnp.ones((1, WIDTH), dtype)
    return jax.eval_shape(lambda: br.from_linen(Stack()).init(jax.random.key(0), x))


def by_reading(folder, form, layout, dtype, layers):
    """Reads the files into memory that was touched before."""
    files = files_of(folder, form)
    size = max(file.stat().st_size for file in files)
    buffer = memoryview(bytearray(b"\1") * size)

    def load():
        for file in files:
            with open(file, "rb", buffering=0) as opened:
                at = 0
                while count := opened.readinto(buffer[at:]):
                    at += count

    return load


def by_bridge(folder, form, layout, dtype, layers):
    import jax.numpy as jnp

    import bridge as br

    stack = equinox_stack if layout == "same" else linen_stack
    module = stack(layers, jnp.dtype(dtype))
    index = folder / "model.safetensors.index.json"
    source = index if form == "sharded" else files_of(folder, form)[0]
    return lambda: br.load_state_dict(module, source)


def by_safetensors(folder, form, layout, dtype, layers):
    import jax.numpy as jnp
    from safetensors.flax import load_file

    def load():
        loaded = {}
        for file in files_of(folder, form):
            loaded |= load_file(file)
        return (
            loaded if layout == "same" else {key: jnp.transpose(loaded.pop(key)) for key in [*loaded]}
        )

    return load


def by_torch(folder, form, layout, dtype, layers):
    import jax.numpy as jnp
    import ml_dtypes
    import torch

    def array(tensor):
        if dtype == "bfloat16":
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def load():
        state = torch.load(files_of(folder, form)[0], weights_only=True)
        turned = layout == "turned"
        return {key: jnp.asarray(array(one).T if turned else array(one)) for key, one in state.items()}

    return load


def by_statedict2pytree(folder, form, layout, dtype, layers):
    import jax.numpy as jnp
    import torch
    from statedict2pytree import autoconvert

    model = equinox_model(layers, jnp.dtype(dtype))
    file = files_of(folder, form)[0]
    return lambda: autoconvert(model, torch.load(file, weights_only=True))


METHODS = {
    "read": (by_reading, FORMS, ("same",)),
    "bridge": (by_bridge, FORMS, LAYOUTS),
    "safetensors.flax": (by_safetensors, ("one file", "sharded"), LAYOUTS),
    "torch.load, numpy": (by_torch, (".pt",), LAYOUTS),
}
if importlib.util.find_spec("statedict2pytree"):  # it takes no bfloat16, and has no Linen
    METHODS["statedict2pytree"] = (by_statedict2pytree, (".pt",), ("same",))


def measure(method, folder, form, layout, dtype, layers, rounds):
    """CPU and wall seconds of the quickest load, and the peak of memory of the first."""
    import jax

    load = METHODS[method][0](Path(folder), form, layout, dtype, layers)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    times = []
    for number in range(rounds + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(load()))
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
        if number == 0:
            peak = memory("VmHWM") - before
    return {"cpu": min(t[0] for t in times[1:]), "wall": min(t[1] for t in times[1:]), "peak": peak}


def memory(name):
    """Bytes of memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def apart(*arguments):
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, env=os.environ | MEMORY, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the checkpoints are written, and removed again")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    given = options()
    if given.measure:
        print(json.dumps(measure(*json.loads(given.measure))))
        return
    import jax

    print(f"python {platform.python_version()}, jax {jax.__version__}, {platform.machine()}")
    print(f"{given.megabytes} MB, the least of {given.rounds} loads; reading the file = 1")
    print(f"{'dtype':9} {'form':9} {'layout':7} {'by':18} {'CPU':>6} {'wall':>6} {'peak':>6}")
    for dtype, bytes_each in DTYPES.items():
        layers = max(SHARDS, given.megabytes * 2**20 // (WIDTH * WIDTH * bytes_each))
        size = layers * (WIDTH + 1) * WIDTH * bytes_each
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            write(Path(folder), dtype, layers)
            for form in FORMS:
                read = apart("read", folder, form, "same", dtype, layers, given.rounds)
                for method, (_, forms, layouts) in METHODS.items():
                    if method == "statedict2pytree" and dtype == "bfloat16":
                        continue
                    for layout in layouts if form in forms and method != "read" else ():
                        found = apart(method, folder, form, layout, dtype, layers, given.rounds)
                        ratios = [found["cpu"] / read["cpu"], found["wall"] / read["wall"]]
                        figures = "".join(f" {one:6.2f}" for one in (*ratios, found["peak"] / size))
                        print(f"{dtype:9} {form:9} {layout:7} {method:18}{figures}", flush=True)


if __name__ == "__main__":
    main()
