"""How the benchmarks measure, and what they say: one ratio of two costs in each line of one table.

Two sides run in turns in one process, and a ratio is the median of the pairs; a machine that is slow
for a second is slow for both. CPU time is the figure, as it hardly follows what else the machine does.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

S, T = TypeVar("S"), TypeVar("T")

# What the ratios depend on, beside the Python and the machine.
DISTRIBUTIONS = (
    *("jax", "jaxlib", "numpy", "optax", "flax", "dm-haiku", "equinox"),
    *("torch", "transformers", "safetensors"),
)
# One side of a pair runs at least this long at a stretch, in seconds of CPU.
STRETCH = 0.01


@dataclass(frozen=True)
class Figure:
    """The cost of `what` as a ratio to that of `against`; the aim is at most `aim`, if it has one."""

    group: str
    what: str
    against: str
    ratio: float
    aim: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the ratio, as it is printed, is above its aim."""
        return self.aim is not None and round(self.ratio, 2) > self.aim

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """A line of the table: what, against, ratio, aim, and a mark where that is missed."""
        aim = "" if self.aim is None else f"{self.aim:.2f}"
        return self.what, self.against, f"{self.ratio:.2f}", aim, "missed" if self.missed else ""


HEADINGS = ("what", "against", "ratio", "aim", "")


def seconds(operation: Callable[[], Any], calls: int = 1) -> float:
    """The CPU time that some calls take, of all threads of this process."""
    started = time.process_time()
    for _ in range(calls):
        operation()
    return time.process_time() - started


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> float:
    """The median ratio of the CPU time of two operations, which take turns; each has run before."""
    for operation in (ours, theirs):
        operation()
    calls = max(1, round(STRETCH / max(seconds(theirs), 1e-6)))
    pairs = in_turns(ours, theirs, rounds, lambda operation: seconds(operation, calls))
    return statistics.median(our / their for our, their in pairs)


def in_turns(ours: S, theirs: S, rounds: int, measure: Callable[[S], T]) -> list[tuple[T, T]]:
    """What `measure` gives for two sides in each round, ours first; each side begins in turn.

    Garbage of one side is collected before the other runs, and what was there before is not searched.
    """
    gc.collect()
    gc.freeze()
    found = []
    for number in range(rounds):
        measured = {}
        for side in (0, 1) if number % 2 else (1, 0):
            gc.collect()
            measured[side] = measure((ours, theirs)[side])
        found.append((measured[0], measured[1]))
    gc.unfreeze()
    return found


def machine() -> dict[str, str]:
    """The processor, the cores, the versions and the day, by name."""
    with open("/proc/cpuinfo") as opened:
        models = [line.partition(":")[2].strip() for line in opened if line.startswith("model name")]
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": str(date.today()),
        "processor": (models or [platform.processor()])[0],
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **found,
    }


def described(found: dict[str, str]) -> str:
    """The machine in one sentence."""
    names = ("date", "processor", "cores", "load")
    versions = ", ".join(f"{name} {found[name]}" for name in found if name not in names)
    return (
        f"{found['date']}: {found['processor']}, {found['cores']} cores, load {found['load']} at the"
        f" beginning; {versions}."
    )


def table(figures: Iterable[Figure]) -> Table:
    """The figures for a terminal, a section for each group."""
    shown = Table(*HEADINGS, box=None, pad_edge=False)
    group = None
    for figure in figures:
        if figure.group != group:
            shown.add_section()
            shown.add_row(f"[bold]{figure.group}[/bold]")
            group = figure.group
        shown.add_row(*figure.cells, style="red" if figure.missed else None)
    return shown


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes on its command line."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="fewer rounds: figures that only look right")
    made.add_argument("--json", type=Path, help="write the figures to this file as well")
    return made


def console() -> Console:
    """Where the figures are printed: wide enough for a line of the table, in a file too."""
    return Console(highlight=False, soft_wrap=True, width=max(Console().width, 110))


def report(figures: Iterator[Figure], file: Path | None) -> None:
    """Prints the figures as they come, and writes them to a file if one is given."""
    out, found = console(), []
    out.print(described(machine()))
    for figure in figures:
        found.append(figure)
        what, against, *cells = figure.cells
        out.print(f"{figure.group}: {what} / {against}: {' '.join(cells)}".rstrip())
    out.print(table(found))
    if file is not None:
        file.write_text(json.dumps([asdict(figure) for figure in found]))
