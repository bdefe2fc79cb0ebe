"""Every timing of the library in one run and one table: what `make bench` does.

    python benchmarks/bench.py [--quick] [--markdown docs/speed.md] [--out out] [name ...]

Each benchmark runs in a process of its own. The table is printed, and written to the folder `out` as
JSON and as a plot; `--markdown` puts it into a file, between its two comment lines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Plot

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.measuring import HEADINGS, Figure, console, described, machine, table

ROOT = Path(__file__).parent.parent
BENCHMARKS = ("dispatch", "tracing", "training", "torch_speed", "importing")
BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench writes -->"


def figures_of(name: str, out: Path, quick: bool) -> list[Figure]:
    """The figures of a benchmark, run as a user runs it alone; none where it fails."""
    file = out / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--json", str(file)]
    subprocess.run([*command, *(["--quick"] if quick else [])], stdout=subprocess.DEVNULL)
    return [Figure(**one) for one in json.loads(file.read_text())] if file.exists() else []


def markdown(figures: list[Figure], where: dict[str, str], quick: bool) -> str:
    """The table of each group, with the machine before them."""
    lines = [described(where) + (" A quick run: fewer rounds." if quick else "")]
    for group, members in groupby(figures, key=lambda figure: figure.group):
        lines += ["", f"### {group}", "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
        lines += [f"| {' | '.join(figure.cells)} |" for figure in members]
    return "\n".join(lines)


def put_into(file: Path, text: str) -> None:
    """Puts a text between the comment lines of a file, in place of what stands there."""
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def plot(figures: list[Figure], file: Path) -> None:
    """A bar for each ratio on a logarithmic axis, with a line where its aim is."""
    shown = Plot(figsize=(9, 0.19 * len(figures) + 1), layout="constrained")
    axes = shown.subplots()
    places = range(len(figures))
    colours = ["tab:red" if figure.missed else "tab:blue" for figure in figures]
    axes.barh(places, [figure.ratio for figure in figures], color=colours)
    aimed = [(figure.aim, place) for figure, place in zip(figures, places, strict=True) if figure.aim]
    axes.plot([aim for aim, _ in aimed], [place for _, place in aimed], "k|", label="aim")
    axes.axvline(1, color="0.5", linewidth=0.8)
    labels = [f"{figure.what} / {figure.against}" for figure in figures]
    axes.set(xscale="log", xlabel="ratio of costs", yticks=places, yticklabels=labels)
    axes.tick_params(axis="y", labelsize=6)
    axes.set_ylim(len(figures), -1)
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # words as words, not as curves
        shown.savefig(file)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds: figures that only look right"
    )
    parser.add_argument("--markdown", type=Path, help="put the table into this file as well")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="the folder for JSON and plot")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    return given


def main() -> None:
    given, out, figures = options(), console(), []
    given.out.mkdir(parents=True, exist_ok=True)
    where, failed = machine(), []
    for name in given.names or BENCHMARKS:
        started = time.monotonic()
        found = figures_of(name, given.out, given.quick)
        failed += [] if found else [name]
        figures += found
        out.print(f"{name}: {len(found)} figures in {time.monotonic() - started:.0f} s")
    out.print(table(figures))
    out.print(described(where))
    written = {"machine": where, "quick": given.quick, "figures": [asdict(one) for one in figures]}
    (given.out / "bench.json").write_text(json.dumps(written, indent=1))
    plot(figures, given.out / "bench.svg")
    if given.markdown:
        put_into(given.markdown, markdown(figures, where, given.quick))
    missed = sum(figure.missed for figure in figures)
    out.print(f"{len(figures)} figures, {missed} above their aims; {given.out / 'bench.json'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
