"""`bridge verify` and `bridge doctor`: whether a model computes what a torch model does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bridge.cli.ending import end
from bridge.cli.factories import ModuleFactory, model_of, module_of
from bridge.cli.matching import Rename, renaming
from bridge.cli.progress import working
from bridge.cli.rendering import Json, show, show_json
from bridge.core.filing import os_errors
from bridge.doctor import Report
from bridge.doctor import verify as verify_models
from bridge.weights.report import Match

PICTURES = (".png", ".svg")
_SHAPE = re.compile(r"(?P<shape>\d+(x\d+)*)(:(?P<below>\d+))?")
_SEED = 0

TorchFactory = Annotated[
    str,
    typer.Argument(metavar="TORCH_MODULE:FACTORY", help="A function that makes a torch model, or one."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="INPUT",
        help="What the torch model takes, one after the other: 2x5 for random numbers of this shape,"
        " 2x7:100 for integers below 100, or module:factory for an array, or a tuple of all.",
    ),
]
Plan = Annotated[Path | None, typer.Option(help="The plan that `bridge match --save` wrote.")]
Tolerance = Annotated[float, typer.Option(min=0.0, help="The relative distance that still passes.")]
Markdown = Annotated[Path | None, typer.Option(help="A file for the report as Markdown.")]
Plot = Annotated[Path | None, typer.Option(help="A .png or .svg file for the distances by depth.")]


def verify(
    factory: ModuleFactory,
    torch_factory: TorchFactory,
    inputs: Inputs = None,
    plan: Plan = None,
    rename: Rename = None,
    tolerance: Tolerance = 1e-5,
    as_json: Json = False,
) -> None:
    """Compares a model with a torch model.

    Both run on the same inputs, in eval mode. Ends with 1 where their outputs differ.
    """
    report = _report(factory, torch_factory, inputs, plan, rename, tolerance, as_json)
    if as_json:
        show_json(report.to_json())
    else:
        show(report.verdict)
    end(report.passed)


def doctor(
    factory: ModuleFactory,
    torch_factory: TorchFactory,
    inputs: Inputs = None,
    plan: Plan = None,
    rename: Rename = None,
    tolerance: Tolerance = 1e-5,
    markdown: Markdown = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Tells where a model parts from a torch model, and why.

    Both run on the same inputs, in eval mode. Ends with 1 where their outputs differ.
    """
    if plot is not None and plot.suffix not in PICTURES:
        raise typer.BadParameter(f"a plot is a {' or '.join(PICTURES)} file; {str(plot)!r} is none")
    report = _report(factory, torch_factory, inputs, plan, rename, tolerance, as_json)
    if as_json:
        show_json(report.to_json())
    else:
        show(str(report))
    if markdown is not None:
        with os_errors("written", markdown):
            markdown.write_text(report.to_markdown(), encoding="utf-8")
    if plot is not None:
        with os_errors("written", plot):
            report.plot(plot)
    end(report.passed)


def _report(
    factory: str,
    torch_factory: str,
    inputs: Sequence[str] | None,
    plan: Path | None,
    rename: Sequence[str] | None,
    tolerance: float,
    quiet: bool,
) -> Report:
    if not inputs:
        raise typer.BadParameter("the models need something to run on: give --input, such as 2x5")
    if plan is not None and rename:
        raise typer.BadParameter("a plan says where everything goes: leave --rename out")
    names = renaming(rename)
    by = Match.load(plan) if plan is not None else None
    with working(f"comparing {factory} and {torch_factory}", quiet):
        given = [array for spec in inputs for array in _input(spec)]
        module, model = module_of(factory), model_of(torch_factory)
        return verify_models(module, model, *given, plan=by, rename=names, tolerance=tolerance)


def _input(spec: str) -> tuple[Any, ...]:
    """What an entry of `--input` says; raises ModelError for a factory that is none."""
    found = _SHAPE.fullmatch(spec)
    if found is None:
        made = model_of(spec)
        return made if isinstance(made, tuple) else (made,)
    shape = tuple(map(int, found["shape"].split("x")))
    random = np.random.default_rng(_SEED)
    if found["below"] is None:
        return (random.standard_normal(shape, dtype=np.float32),)
    return (random.integers(int(found["below"]), size=shape, dtype=np.int32),)
