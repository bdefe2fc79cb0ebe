"""What happens at 70 billion parameters and on 256 hosts, without the numbers themselves.

    python benchmarks/scale.py [--only planning growth restoring shards loading] [--markdown FILE]

Models of that size are made by `jax.eval_shape`. Checkpoints of that size are sparse files: their
headers are real, their bytes a hole. So all that is done for each leaf and not for each byte runs as it
would there: building, matching, checking, printing, and what each host has to read, from the geometry
of a mesh of 2048 host devices. What is done for each byte and each slice is timed on a checkpoint that
fits on this machine. Each row comes from a process of its own. All of it takes some minutes and 2 GB of
memory.

With --markdown the tables of a page are written anew, each between its marks; the text stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parent.parent))
import bridge as br
import bridge.core.fitting as fitting
import bridge.core.paths as paths
import bridge.core.storage as storage
import bridge.core.tensorfile as tensorfile
import bridge.weights.plans as plans
from benchmarks import scale_models as models
from benchmarks.scale_files import BF16, PAGE, boxes, pages, runs, write_sparse
from bridge.core.manifest import Manifest
from bridge.core.narrowing import narrowed
from bridge.weights.following import followed
from bridge.weights.sources import open_source
from bridge.weights.targets import targets_of

DISTRIBUTIONS = ("jax", "flax", "dm-haiku", "equinox", "orbax-checkpoint")
HOSTS, DEVICES = 256, 8  # of each host
FORMS = {"one by one": models.LLAMA, "stacked": models.LLAMA, "experts": models.EXPERTS}
# Where the two axes of a matrix go, outputs (or the vocabulary) and inputs; all else is everywhere.
LAYOUTS: Mapping[str, tuple[Any, Any]] = {
    "outputs over hosts, inputs over devices": ("host", "device"),
    "inputs over hosts, outputs over devices": ("device", "host"),
    "outputs over devices, every host alike": ("device", None),
}
Row = Mapping[str, Any]
RAW = "raw"  # the numbers of a row, which are for other tables


def clocked(act: Callable[[], Any]) -> tuple[float, Any]:
    """How many seconds of CPU something takes, and what it gives."""
    started = time.process_time()
    result = act()
    return time.process_time() - started, result


def peak(act: Callable[[], Any]) -> int:
    """How many bytes something allocates at most."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Planning: all that is done before a byte is read


def planning(library: str, form: str) -> Row:
    """What each step takes for a model of 70 billion parameters or more, in seconds."""
    sizes = FORMS[form]
    native, made = models.LIBRARIES[library](sizes, form == "stacked")
    own, _ = clocked(lambda: jax.eval_shape(native))
    build, module = clocked(lambda: jax.eval_shape(made))
    leaves = jax.tree.leaves(module)
    with tempfile.TemporaryDirectory() as folder:
        index = write_sparse(Path(folder), models.shapes(sizes))
        header, source = clocked(lambda: open_source(index))
    seconds, match = clocked(lambda: br.match(module, source))
    memory = peak(lambda: br.match(module, source))
    saved, _ = clocked(lambda: plans.parsed(plans.text_of(match)))
    again, _ = clocked(lambda: followed(match, targets_of(module), source))
    shown, _ = clocked(lambda: (repr(module), module.summary(), str(match)))
    flat, _ = clocked(lambda: jax.tree.unflatten(*reversed(jax.tree.flatten(module))))
    return {
        "model": f"{library}, {form}",
        "leaves": len(leaves),
        "parameters": f"{sum(math.prod(leaf.shape) for leaf in leaves) / 1e9:.1f} B",
        "eval_shape of the library's init": f"{own:.1f} s",
        "of the Module's": f"{build:.1f} s",
        "headers": f"{header:.2f} s",
        "match": f"{seconds:.2f} s",
        "its memory": f"{memory / 1e6:.1f} MB",
        "arrays with a pair": len({pair.path for pair in match.pairs}),
        "plan to text and back": f"{saved:.2f} s",
        "plan checked": f"{again:.2f} s",
        "repr, summary, table": f"{shown:.2f} s",
        "flatten and unflatten": f"{flat * 1e3:.1f} ms",
    }


# Growth: whether what is done for each leaf stays the same


def foreign(key: str) -> str:
    """A key of which no word says to which layer it belongs."""
    for known, strange in (("gate", "alpha"), ("up", "beta"), ("down", "gamma"), ("q_proj", "delta")):
        key = key.replace(known, strange)
    return key


def growth(layers: int) -> Row:
    """What a leaf costs in a model with a hundred experts in each of so many layers."""
    sizes = dataclasses.replace(models.EXPERTS, layers=layers)
    module = models.abstract("equinox", sizes)
    count = len(jax.tree.leaves(module))
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(write_sparse(Path(folder), models.shapes(sizes)))
        strange = dataclasses.replace(
            source, tensors={foreign(key): tensor for key, tensor in source.tensors.items()}
        )
    steps: dict[str, Callable[[], Any]] = {
        "match": lambda: br.match(module, source),
        "match of names that tell nothing": lambda: br.match(module, strange),
        "plan to text and back": lambda: plans.parsed(plans.text_of(match)),
        "plan checked": lambda: followed(match, targets_of(module), source),
        "summary": module.summary,
        "restore checked": lambda: checked(module),
    }
    match = br.match(module, source)
    found = {name: f"{clocked(act)[0] / count * 1e6:.0f} µs" for name, act in steps.items()}
    memory = peak(lambda: br.match(module, source)) / count / 1e3
    return {"leaves": count, **found, "memory of the match": f"{memory:.1f} kB"}


def checked(module: Any) -> str:
    """What is looked at before an abstract tree is restored from a checkpoint that fits it."""
    leaves, _ = storage.flat(module)
    stored = {paths.join(place): leaf for place, leaf in leaves.items()}
    return fitting.misfits(stored, Manifest.of(module, {}), module, leaves, ())


# Restoring: as many leaves, of a few numbers each, through real files


def restoring(layers: int, experts: int) -> Row:
    """What saving and restoring so many leaves takes, apart from their bytes."""
    sizes = models.Sizes(layers, 8, 4, 2, 8, 16, experts)
    like = models.abstract("equinox", sizes)
    module = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    module = jax.device_put(module)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tree.safetensors"
        with br.Checkpoints(Path(folder) / "run") as run:
            kept, _ = clocked(lambda: (run.save(0, module), run.wait()))
            back, _ = clocked(lambda: run.restore(like))
        saved, _ = clocked(lambda: br.save(file, module))
        loaded, _ = clocked(lambda: br.load(file, like))
    return {
        "leaves": len(jax.tree.leaves(like)),
        "Checkpoints: save": f"{kept:.1f} s",
        "restore an abstract tree": f"{back:.1f} s",
        "of that, the check": f"{clocked(lambda: checked(like))[0]:.2f} s",
        "bridge.save": f"{saved:.2f} s",
        "bridge.load": f"{loaded:.2f} s",
    }


# Shards: what each of the hosts reads


def specs(layout: str, path: str) -> P:
    """Where the axes of an array of the Linen model go."""
    outputs, inputs = LAYOUTS[layout]
    if path.endswith("kernel"):
        return P(inputs, outputs)
    return P(outputs, inputs) if path.endswith("embedding") else P()


def shards(layout: str) -> Row:
    """What the first host, and all of them, read of a checkpoint of 70 billion parameters."""
    jax.config.update("jax_num_cpu_devices", HOSTS * DEVICES)
    devices = np.array(jax.devices()).reshape(HOSTS, DEVICES)
    mesh = jax.sharding.Mesh(devices, ("host", "device"))
    module = models.abstract("linen", models.LLAMA)
    with tempfile.TemporaryDirectory() as folder:
        match = br.match(module, write_sparse(Path(folder), models.shapes(models.LLAMA)))
        starts = {}
        for file in Path(folder).glob("*.safetensors"):
            with file.open("rb") as opened:
                tensors = tensorfile.read_header(opened).tensors
            starts |= {key: tensor.start for key, tensor in tensors.items()}
    slices = rows = held = touched = 0
    for pair in match.pairs:
        sharding = NamedSharding(mesh, specs(layout, paths.join(pair.path)))
        parts = boxes(sharding, pair.translation.target_shape, devices[0])
        taken = [runs(part) for part in (narrowed(pair.translation, box) for box in parts) if part]
        slices += len(taken)
        rows += sum(len(begins) for begins, _ in taken)
        held += sum(len(begins) * length for begins, length in taken) * BF16.itemsize
        at = np.concatenate([begins for begins, _ in taken]) * BF16.itemsize + starts[pair.key]
        touched += pages(at, taken[0][1] * BF16.itemsize) * PAGE
    return {
        "layout": layout,
        "arrays": len(match.pairs),
        "slices of a host": f"{slices:,}",
        "bytes of them": f"{held / 1e9:.2f} GB",
        "rows in the files": f"{rows:,}",
        "each": f"{held / rows / 1e3:,.2f} kB",
        "pages touched": f"{touched / 1e9:.2f} GB",
        "all hosts": f"{touched * HOSTS / 1e12:.2f} TB",
        RAW: {"slices": slices, "bytes": held},
    }


# Loading: what a slice and a byte cost


LOADED = {
    "slices": models.Sizes(layers=80, hidden=64, heads=8, kv_heads=8, ffn=64, vocab=64),
    "bytes": models.Sizes(layers=3, hidden=2048, heads=16, kv_heads=8, ffn=5632, vocab=8000),
}


def loading(layout: str, size: str) -> Row:
    """What loading onto the eight devices of one host takes, hosts left aside."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, DEVICES), ("host", "device"))
    sizes = LOADED[size]
    module = models.abstract("linen", sizes)
    state = {key: np.ones(shape, BF16) for key, shape in models.shapes(sizes)}

    def sharding(path: str) -> NamedSharding:
        return NamedSharding(mesh, specs(layout, path))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        br.save_state_dict(state, file)
        match = br.match(module, file)

        def load() -> Any:
            return jax.block_until_ready(
                br.load_state_dict(module, file, plan=match, sharding=sharding)
            )

        loaded = load()
        times = []
        for _ in range(3):
            times.append(clocked(load)[0])
    leaves = jax.tree.leaves(loaded)
    count = sum(len({str(shard.index) for shard in leaf.addressable_shards}) for leaf in leaves)
    held = sum(leaf.nbytes for leaf in leaves)
    cpu = min(times)
    return {
        "layout": layout,
        "leaves": len(leaves),
        "slices": f"{count:,}",
        "bytes": f"{held / 1e9:.2f} GB",
        "seconds": f"{cpu:.2f} s",
        "for a slice": f"{cpu / count * 1e6:.0f} µs" if size == "slices" else "",
        "for a gigabyte": f"{cpu / held * 1e9:.2f} s" if size == "bytes" else "",
        RAW: {size: cpu / {"slices": count, "bytes": held}[size]},
    }


def hosts(layout: str, rows: Sequence[Row]) -> Row:
    """What a host has to do, computed from the rows that say how much it is and what each costs."""
    counted, *costs = (row[RAW] for row in rows if row["layout"] == layout)
    seconds = {name: counted[name] * cost for one in costs for name, cost in one.items()}
    return {
        "layout": layout,
        "for its slices": f"{seconds['slices']:.1f} s",
        "for its bytes": f"{seconds['bytes']:.1f} s",
        "together": f"{sum(seconds.values()):.1f} s",
    }


TABLES: Mapping[str, tuple[Callable[..., Row], Sequence[tuple[Any, ...]]]] = {
    "planning": (
        planning,
        [
            *((library, form) for form in ("one by one", "stacked") for library in models.LIBRARIES),
            ("linen", "experts"),
            ("equinox", "experts"),
        ],
    ),
    "growth": (growth, [(10,), (20,), (40,), (80,)]),
    "restoring": (restoring, [(80, 0), (80, 10), (80, 25)]),
    "shards": (shards, [(layout,) for layout in LAYOUTS]),
    "loading": (loading, [(layout, size) for size in LOADED for layout in [*LAYOUTS][:2]]),
}


def apart(table: str, arguments: Sequence[Any]) -> Row:
    """A row of a table from a process of its own."""
    command = [sys.executable, __file__, "--row", json.dumps([table, arguments])]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def written(rows: Sequence[Row]) -> str:
    """Rows as a table of Markdown."""
    names = [name for name in rows[0] if name != RAW]
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    head, *rest = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(names), *rest])


def replaced(text: str, name: str, content: str) -> str:
    """A page with what stands between the marks of a name written anew."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    if not found.search(text):
        sys.exit(f"the page has no place for {name}: {marks[0]} and {marks[1]}")
    return found.sub(lambda _: f"{marks[0]}\n{content}\n{marks[1]}", text)


def machine() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS)
    return (
        f"By `benchmarks/scale.py`, {date.today()}: {versions}, Python {platform.python_version()},"
        f" {os.cpu_count()} CPU cores."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*TABLES], default=[*TABLES])
    parser.add_argument("--markdown", type=Path, help="the page whose tables are written anew")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        table, arguments = json.loads(options.row)
        print(json.dumps(TABLES[table][0](*arguments)))
        return
    found: dict[str, list[Row]] = {}
    for table in options.only:
        found[table] = []
        for arguments in TABLES[table][1]:
            found[table].append(apart(table, arguments))
            tell(table, found[table][-1])
    if {"shards", "loading"} <= found.keys():
        timed = dict.fromkeys(row["layout"] for row in found["loading"])
        found["hosts"] = [hosts(layout, [*found["shards"], *found["loading"]]) for layout in timed]
        for row in found["hosts"]:
            tell("hosts", row)
    if options.markdown:
        text = replaced(options.markdown.read_text(), "machine", machine())
        for table, rows in found.items():
            text = replaced(text, table, written(rows))
        options.markdown.write_text(text)


def tell(table: str, row: Row) -> None:
    values = (f"{name}: {value}" for name, value in row.items() if name != RAW)
    print(table, *values, sep="\n    ", flush=True)


if __name__ == "__main__":
    main()
