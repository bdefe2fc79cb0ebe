"""What loading a checkpoint costs: against reading its bytes, and against other ways to load it.

    python benchmarks/importing.py [--quick] [--megabytes 512] [--folder /tmp]

Loads are measured in processes of their own, in turns with reading the cached file into memory that was
touched before: the first load gives the peak of memory, the others the CPU time. Whole processes are
measured from start to end, as a user starts them, with their imports and the abstract model that the
weights are for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import loaders, measuring
from benchmarks.loaders import BYTES, FORMS, METHODS, STACKS, Checkpoint
from benchmarks.measuring import Figure

# A host that takes freed pages back would be measured instead: keep memory in the process.
MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}
PT = {"kept": 0.5, "turned": 3.2}
AIMS = {
    ".safetensors": {"kept": 1.3, "turned": 3.2},
    "sharded": {"kept": 1.3, "turned": 3.2},
    ".pt": PT,
}
PEAK = 1.05
# As whole processes, where every matrix is turned.
WHOLE = {"safetensors.flax": (".safetensors", 0.6), "torch.load, numpy": (".pt", 0.45)}


def reading(files: list[Path]) -> loaders.Load:
    """A function that reads files into memory that was touched before."""
    buffer = memoryview(bytearray(b"\1") * max(file.stat().st_size for file in files))

    def read():
        for file in files:
            with open(file, "rb", buffering=0) as opened:
                at = 0
                while count := opened.readinto(buffer[at:]):
                    at += count

    return read


def measure(method: str, checkpoint: Checkpoint, rounds: int) -> dict[str, float]:
    """The CPU time of a load as a ratio to reading, and its peak of memory as one to the result."""
    import jax

    build = METHODS[method].build(checkpoint)

    def load():
        return jax.block_until_ready(jax.tree.leaves(build()))

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    size = sum(array.nbytes for array in load())
    peak = (memory("VmHWM") - before) / size
    return {"cpu": measuring.ratio(load, reading(checkpoint.files), rounds), "peak": peak}


def memory(name: str) -> int:
    """Bytes of memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def once(method: str, checkpoint: Checkpoint) -> None:
    """Loads and does nothing else: what a whole process is."""
    import jax

    jax.block_until_ready(jax.tree.leaves(METHODS[method].build(checkpoint)()))


def apart(what: str, method: str, checkpoint: Checkpoint, rounds: int = 0) -> str:
    """What a process of its own prints that measures a method, or loads once."""
    given = json.dumps([what, method, {**asdict(checkpoint), "folder": str(checkpoint.folder)}, rounds])
    command = [sys.executable, __file__, "--apart", given]
    environment = os.environ | (MEMORY if what == "measure" else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed on {checkpoint}:\n{done.stderr}")
    return done.stdout.splitlines()[-1] if what == "measure" else ""


def run_apart(what: str, method: str, fields: dict[str, Any], rounds: int) -> None:
    checkpoint = Checkpoint(**{**fields, "folder": Path(fields["folder"])})
    if what == "measure":
        print(json.dumps(measure(method, checkpoint, rounds)))
    else:
        once(method, checkpoint)


def whole(method: str, checkpoint: Checkpoint) -> tuple[float, float]:
    """The wall and the CPU seconds of a process that loads a checkpoint, from start to end."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    apart("once", method, checkpoint)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def of_loads(checkpoint: Checkpoint, rounds: int) -> Iterator[Figure]:
    """A load by bridge, then the same by what else can load the checkpoint."""
    found = {
        name: json.loads(apart("measure", name, checkpoint, rounds))
        for name, method in METHODS.items()
        if method.loads(checkpoint)
    }
    what = f"{checkpoint.dtype}, {checkpoint.form}, {checkpoint.layout}"
    ours = found.pop("bridge")
    aim = AIMS[checkpoint.form].get(checkpoint.layout)
    yield Figure("import", what, "reading the file", ours["cpu"], aim)
    yield Figure("import", f"{what}, peak memory", "the result", ours["peak"], PEAK)
    for name, theirs in found.items():
        yield Figure("import", what, name, ours["cpu"] / theirs["cpu"])
        yield Figure("import", f"{what}, peak memory", name, ours["peak"] / theirs["peak"])


def of_processes(checkpoint: Checkpoint, rounds: int) -> Iterator[Figure]:
    """Whole processes in turns, by bridge and by the others."""
    for rival, (form, aim) in WHOLE.items():
        given = replace(checkpoint, form=form)
        pairs = measuring.in_turns(
            "bridge", rival, rounds, lambda name, given=given: whole(name, given)
        )
        what = f"{given.dtype}, {form}, {given.layout}, whole process"
        wall, cpu = (statistics.median(our[n] / their[n] for our, their in pairs) for n in (0, 1))
        yield Figure("import", f"{what}, wall time", rival, wall, aim)
        yield Figure("import", what, rival, cpu)


def figures(quick: bool = False, megabytes: int = 512, folder: Path | None = None) -> Iterator[Figure]:
    """Each dtype, form and layout; then whole processes; then a BERT of transformers."""
    rounds, starts = (3, 1) if quick else (5, 3)
    megabytes = min(megabytes, 128) if quick else megabytes
    for dtype in BYTES:
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            stack = Checkpoint.of(Path(inside), dtype, megabytes, ".safetensors", "turned")
            loaders.write(stack)
            for form in FORMS:
                for layout in STACKS:
                    yield from of_loads(replace(stack, form=form, layout=layout), rounds)
            yield from of_processes(stack, starts)
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            bert = Checkpoint.of(Path(inside), dtype, megabytes, ".safetensors", "bert")
            loaders.write(bert)
            yield from of_loads(bert, min(rounds, 3))


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written, and removed")
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.apart:
        run_apart(*json.loads(given.apart))
        return
    measuring.report(figures(given.quick, given.megabytes, given.folder), given.json)


if __name__ == "__main__":
    main()
