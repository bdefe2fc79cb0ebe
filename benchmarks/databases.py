"""Torch's own databases of modules and ops, each sample of them captured and held against torch.

    python benchmarks/databases.py [name ...] [--samples N] [--json FILE] [--again] [--markdown FILE]

module_db: every case of a module that is no loss, in eval and in train mode: outputs, gradients of
parameters and inputs, buffers. op_db: up to N samples of each entry (float32, or integers where an op
takes no floats): outputs and gradients. What draws random numbers is compared in shape and dtype alone.
All of it takes an hour or two; with `--json` each entry is written as it is done, and a run that was
stopped goes on from there. Names (add, nn.Linear-train, "fft.*", op_db) choose entries; with `--again`
those that the file holds run once more.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import itertools
import json
import logging
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from bridge.core.errors import BridgeError
from tests.lowering.databases import TOLERANCE, NoCase, module_cases, op_cases, op_entries, op_name

# What a refusal says, and what kind of refusal it is; the first one that fits.
KINDS = {
    "no row in JAX": "no row",
    "sparse": "sparse tensors",
    "x64 alone": "64 bits",
    "64 bits": "64 bits",
    "data-dependent": "data-dependent",
    "data dependent": "data-dependent",
    "DataDependent": "data-dependent",
    "depends on values": "data-dependent",
    "the data say": "data-dependent",
    "for sizes with": "a batch of one",
    "for 2 alone": "a batch of one",
    "cannot capture": "torch.export fails",
}
# Where torch is the one that is wrong, or where rounding is all that there is to compare.
EXPLAINED = {
    "as_strided_scatter": "torch's gradient goes to the elements that were overwritten, which no longer"
    " matter, and is zero at the others; here it is the other way round",
    "logcumsumexp": "torch's float32 gradient is 5e-4 from its own in float64, the one here 5e-8",
    "native_layer_norm": "a norm over one element: the gradient is zero, and what is left of it here is"
    " 1e-5 between terms of 1e2",
    "nn.functional.layer_norm": "a norm over one element, as for native_layer_norm",
}


@dataclass
class Entry:
    """What was found of an entry of a database: how many of its samples passed, and why others did not.

    `refused` and `differs` are reasons with their numbers, `absent` those of samples that cannot be
    compared; `far` is the largest distance by what was compared.
    """

    database: str
    name: str
    samples: int = 0
    passed: int = 0
    far: dict[str, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    differs: dict[str, int] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)

    def check(self, cases: Iterable[Any]) -> Entry:
        """The entry with what its cases give."""
        for case in cases:
            self.samples += 1
            try:
                self._compare(case)
            except NoCase as error:
                _count(self.absent, _line(error))
            except BridgeError as error:
                _count(self.refused, _line(error))
            except Exception as error:  # noqa: BLE001 - a table shows what failed
                _count(self.differs, f"{case.name}: {_line(error)}")
        return self

    def _compare(self, case: Any) -> None:
        far = case.checked()
        self.far = {name: max(value, self.far.get(name, 0.0)) for name, value in far.items()}
        wrong = [f"{name} {value:.0e} away" for name, value in far.items() if not value < TOLERANCE]
        if wrong:
            _count(self.differs, f"{case.name}: {', '.join(wrong)}")
        else:
            self.passed += 1

    @property
    def said(self) -> str:
        if self.differs:
            return "differs, explained" if self.name in EXPLAINED else "DIFFERS"
        if self.refused:
            return "passes in part" if self.passed else "is refused"
        return "passes" if self.passed else "cannot be compared"

    @property
    def reasons(self) -> dict[str, int]:
        explained = {EXPLAINED[self.name]: 1} if self.differs and self.name in EXPLAINED else {}
        return self.differs | explained | self.refused | self.absent

    @property
    def family(self) -> str:
        """The module, or the namespace of an op."""
        if self.database == "module_db":
            return self.name.rpartition("-")[2]
        head = self.name.partition(".")[0]
        return head if head in ("fft", "linalg", "masked", "nn", "signal", "special") else "torch"


def _count(reasons: dict[str, int], reason: str) -> None:
    reasons[reason] = reasons.get(reason, 0) + 1


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"


def brief(reason: str) -> str:
    """A reason for a table: without places in files, and what to do about it."""
    text = re.sub(r'in the root module \(File "[^"]*"[^)]*\)|the root module[,:]? ', "", reason)
    text = re.split(r" Add one for each| Exception raised from|; type | Capture the model", text)[0]
    return text.strip(" ,")[:200].replace("|", "\\|")


def every_case(samples: int) -> Iterator[tuple[Entry, Iterable[Any]]]:
    """Each entry of both databases, with its cases."""
    modules = itertools.groupby(module_cases(), lambda case: case.name.rpartition("-")[0])
    for name, cases in modules:
        yield Entry("module_db", name), cases
    for info in op_entries():
        yield Entry("op_db", op_name(info)), op_cases(info, samples)


def read(file: Path | None) -> dict[tuple[str, str], Entry]:
    """The entries that a file holds; of two with one name the later one."""
    lines = file.read_text().splitlines() if file and file.exists() else []
    entries = [Entry(**json.loads(line)) for line in lines]
    return {(one.database, one.name): one for one in entries}


def run(names: list[str], samples: int, file: Path | None, again: bool) -> list[Entry]:
    """The named entries, or all, and those that the file holds."""
    done = read(file)
    for entry, cases in every_case(samples):
        place = entry.database, entry.name
        named = any(fnmatch.fnmatchcase(one, name) for name in names or "*" for one in place)
        if named and (again or place not in done):
            done[place] = entry.check(cases)
            tell(entry)
            if file:
                with file.open("a") as out:
                    out.write(json.dumps(asdict(entry)) + "\n")
            jax.clear_caches()
    return list(done.values())


def tell(entry: Entry) -> None:
    far = "  ".join(f"{name} {value:.0e}" for name, value in entry.far.items())
    print(f"{entry.database}  {entry.name}  {entry.passed}/{entry.samples} {entry.said}  {far}")
    for reason, count in entry.reasons.items():
        print(f"    {count} {reason}")
    sys.stdout.flush()


def kind(entry: Entry) -> str:
    """What kind of refusal an entry met first."""
    reason = next(iter(entry.refused))
    return next((name for part, name in KINDS.items() if part in reason), "others")


def summary(entries: list[Entry]) -> str:
    """What passes, in one sentence per database."""
    modules = [one for one in entries if one.database == "module_db"]
    told = []
    for mode in ("eval", "train"):
        chosen = [one for one in modules if one.family == mode]
        passed, samples = sum(one.passed for one in chosen), sum(one.samples for one in chosen)
        told.append(f"{passed} of {samples} cases pass in {mode}")
    ops = [one for one in entries if one.database == "op_db"]
    said = Counter(one.said for one in ops)
    ran = len(ops) - said["cannot be compared"]
    kinds = Counter(kind(one) for one in ops if one.said == "is refused")
    why = f" ({', '.join(f'{name}: {count}' for name, count in kinds.most_common())})" if kinds else ""
    return (
        f"module_db: {', '.join(told)}.\n"
        f"op_db: {said['passes']} of {ran} entries pass, {said['passes in part']} pass in part,"
        f" {said['is refused']} are refused{why}, {said['DIFFERS']} differ,"
        f" {said['differs, explained']} more for a reason that is none of bridge's;"
        f" {said['cannot be compared']} others cannot be compared here.\n"
        f"{sum(one.passed for one in ops)} samples of op_db pass."
    )


def markdown(entries: list[Entry]) -> str:
    """The counts by family, and what does not pass with its reason."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "jax"))
    versions += f", Python {platform.python_version()}"
    columns = (
        "passes",
        "passes in part",
        "is refused",
        "differs, explained",
        "DIFFERS",
        "cannot be compared",
    )
    lines = [
        "# Torch's databases of modules and ops",
        "",
        f"By `benchmarks/databases.py`, {date.today()}: {versions}.",
        "",
        *summary(entries).splitlines(),
        "",
        f"| entries of | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for family in sorted({(one.database, one.family) for one in entries}):
        said = Counter(one.said for one in entries if (one.database, one.family) == family)
        lines.append(f"| {' '.join(family)} | {' | '.join(str(said[name]) for name in columns)} |")
    lines += ["", "| entry | | why |", "|---|---|---|"]
    for one in entries:
        if one.said != "passes":
            why = "<br>".join(dict.fromkeys(map(brief, one.reasons)))
            lines.append(f"| {one.name} | {one.said}, {one.passed} of {one.samples} pass | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # torch.export says a great deal
    entries = run(options.names, options.samples, options.json, options.again)
    print(summary(entries))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(markdown(entries))


if __name__ == "__main__":
    main()
