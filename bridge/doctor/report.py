"""What `verify` gives: how far two models are, where they part, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge.core.errors import MissingLibraryError
from bridge.weights.report import table

HEADLINE = ("", "place", "torch", "distance", "")


@dataclass(frozen=True)
class Finding:
    """Something that sets two models apart: its cause by name, where, and a sentence.

    `source` says how it was found: "settings" of layers, "arrays", "program" or "numbers".
    """

    cause: str
    where: str
    told: str
    source: str


@dataclass(frozen=True)
class Place:
    """The relative L2 distance of what enters a layer, or of the output, whose `key` is empty."""

    path: str
    key: str
    distance: float


@dataclass(frozen=True)
class Report:
    """How far a Module is from a torch model on the same inputs, as `bridge.verify` finds it; print it.

    `distance` is the relative L2 distance of the outputs, `largest` the largest difference of a number.
    `places` are the values that enter the layers, in the order of the program; `parted` is the number
    of the first one that is not the same in both, None where there is none or where the torch model
    could not be captured.

    >>> import bridge as br
    >>> report = br.Report(distance=3e-7, largest=1e-6, tolerance=1e-5)
    >>> report.passed, report.verdict
    (True, 'The outputs are the same: relative distance 3.0e-07.')
    """

    distance: float
    largest: float
    tolerance: float
    places: tuple[Place, ...] = ()
    parted: int | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the outputs are as near as the tolerance asks for."""
        return self.distance <= self.tolerance

    @property
    def verdict(self) -> str:
        """The report in one sentence."""
        if self.passed:
            return f"The outputs are the same: relative distance {self.distance:.1e}."
        return f"The outputs differ: relative distance {self.distance:.1e}, largest {self.largest:.1e}."

    def to_json(self) -> dict[str, Any]:
        """The report as numbers, strings, lists and dicts."""
        return {"passed": self.passed, "verdict": self.verdict, **asdict(self)}

    def to_markdown(self) -> str:
        """The report as a page in Markdown."""
        rows = [HEADLINE, tuple("---" for _ in HEADLINE), *self._rows()]
        lines = [f"**{self.verdict}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
        found = [f"- **{one.cause}**, {one.where}: {one.told}" for one in self.findings]
        found += [f"- {note}" for note in self.notes]
        return "\n".join([*lines, *([""] if found else []), *found]) + "\n"

    def plot(self, path: str | Path) -> None:
        """Writes the distances by depth as a picture, .png or .svg; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingLibraryError(
                "a plot needs matplotlib, which is not installed. Install it with:"
                ' pip install "bridge-jax[viz]"'
            ) from error

        figure = Figure(figsize=(8, 1.5 + 0.22 * len(self.places)), layout="constrained")
        axes = figure.subplots()
        shown = [max(place.distance, 1e-9) for place in self.places]
        axes.plot(shown, range(len(shown)), "o-", color="C0")
        axes.axvline(self.tolerance, color="C7", linestyle="--", label="tolerance")
        if self.parted is not None:
            axes.plot(shown[self.parted], self.parted, "o", color="C3", markersize=10, label="parted")
        axes.set(xscale="log", xlabel="relative L2 distance", title=self.verdict)
        axes.set_yticks(range(len(shown)), [place.key or "output" for place in self.places])
        axes.invert_yaxis()
        axes.legend()
        figure.savefig(path)

    def __str__(self) -> str:
        lines = [self.verdict]
        if self.places:
            lines += ["", *table([HEADLINE, *self._rows()])]
        if self.findings:
            lines += ["", *(f"{one.cause}, {one.where}: {one.told}" for one in self.findings)]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def _rows(self) -> Sequence[tuple[str, ...]]:
        return [
            (
                str(number),
                place.path or "output",
                place.key,
                f"{place.distance:.1e}",
                "<- the first that differs" if number == self.parted else "",
            )
            for number, place in enumerate(self.places)
        ]
