"""Layers of torch's database of modules in each library: built there, loaded from torch, and called.

    python benchmarks/layers.py [class ...] [--library NAME ...] [--markdown FILE]

Every case of module_db with parameters, in eval mode, and in train mode too where it keeps running
statistics: the layer of the library is built from the settings of torch's, `bridge.load_state_dict`
loads torch's weights, away from their first values, and the outputs are compared. All of it takes five
minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from bridge.core.errors import BridgeError
from tests.weights.kinds.cases import LIBRARIES
from tests.weights.module_db import TOLERANCE, LayerCase, NotBuilt, layer_cases

EQUAL, REFUSED, NOT_BUILT, WRONG = "equal", "refused", "not built", "WRONG"
DISTRIBUTIONS = ("torch", "jax", "flax", "dm-haiku", "equinox")


@dataclass
class Entry:
    """What was found of a class of torch's in a library: how many cases, and why some are not equal."""

    library: str
    cls: str
    said: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    far: float = 0.0

    def check(self, case: LayerCase) -> None:
        """Adds what a case gives."""
        said, reason = EQUAL, ""
        try:
            far = case.checked(self.library)
            self.far = max(self.far, far)
            if not far <= TOLERANCE:
                said, reason = WRONG, f"{case.name}: {far:.0e} away"
        except NotBuilt as error:
            said, reason = NOT_BUILT, str(error)
        except BridgeError as error:
            said, reason = REFUSED, brief(str(error))
        except Exception as error:  # noqa: BLE001 - a table shows what failed
            said, reason = WRONG, f"{case.name}: {type(error).__name__}: {error}"
        self.said[said] += 1
        if reason:
            self.reasons[reason] += 1


def brief(error: str) -> str:
    """The first thing that is wrong, without the place and without what to do about it."""
    line = error.splitlines()[1].strip()
    line = re.sub(r"^.*cannot be loaded: ", "", line)
    line = re.sub(r"^\S*?(bias|running_mean|weight)(_[ih]h\S*)?: missing; \S+ wants .*", r"\1", line)
    if line in ("bias", "running_mean", "weight"):
        return f"torch's has no {line}, and the library's always has one"
    line = re.sub(r"^bias_hh\S*: left over: \S+ (.*); type strict.*", r"it \1", line)
    return line.split("; ")[0]


def run(names: list[str], libraries: Iterable[str]) -> list[Entry]:
    """What each library gives for the named classes of torch's, or all."""
    cases: dict[str, list[LayerCase]] = {}
    for case in layer_cases():
        if not names or case.cls in names:
            cases.setdefault(case.cls, []).append(case)
    entries = []
    for library in libraries:
        for cls, several in cases.items():
            entry = Entry(library, cls)
            for case in several:
                entry.check(case)
            tell(entry)
            entries.append(entry)
            jax.clear_caches()
    return entries


def tell(entry: Entry) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in entry.said.items())
    print(f"{entry.library}  {entry.cls}  {counts}  {entry.far:.0e}")
    for reason, count in entry.reasons.items():
        print(f"    {count} {reason}")
    sys.stdout.flush()


def summary(entries: list[Entry], library: str) -> str:
    """What a library gives, in one sentence."""
    said = sum((one.said for one in entries if one.library == library), Counter[str]())
    built = said.total() - said[NOT_BUILT]
    return (
        f"{library}: {said[EQUAL]} of {built} cases load and give what torch gives, {said[REFUSED]} are"
        f" refused with the reason, {said[WRONG]} are wrong; for {said[NOT_BUILT]} more it has no such"
        f" layer."
    )


def markdown(entries: list[Entry]) -> str:
    """The counts by library and class, and why what is not equal is not."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS)
    libraries = list(dict.fromkeys(one.library for one in entries))
    farthest = max((one.far for one in entries), default=0.0)
    lines = [
        "# Torch's database of layers in each library",
        "",
        f"By `benchmarks/layers.py`, {date.today()}: {versions}, Python {platform.python_version()}."
        f" Equal is a relative distance below {TOLERANCE:.0e}; the largest is {farthest:.0e}.",
        "",
        *(f"- {summary(entries, library)}" for library in libraries),
    ]
    for library in libraries:
        lines += [
            "",
            f"## {library}",
            "",
            "| torch.nn | cases | equal | refused | not built | why |",
            "|---|---|---|---|---|---|",
        ]
        for one in entries:
            if one.library == library:
                counts = (one.said.total(), one.said[EQUAL], one.said[REFUSED], one.said[NOT_BUILT])
                why = "<br>".join(f"{count}: {reason}" for reason, count in one.reasons.items())
                cells = " | ".join(map(str, counts))
                lines.append(f"| {one.cls} | {cells} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--library", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    entries = run(options.names, options.library)
    for library in options.library:
        print(summary(entries, library))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(markdown(entries))
    if any(one.said[WRONG] for one in entries):
        sys.exit(1)


if __name__ == "__main__":
    main()
