"""`bridge match`: which array of a file goes where in a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import bridge.weights.plans as plans
from bridge.cli.candidates import candidates
from bridge.cli.ending import end
from bridge.cli.factories import ModuleFactory, module_of
from bridge.cli.inspecting import File
from bridge.cli.progress import working
from bridge.cli.rendering import Json, show, show_json, show_table, tell
from bridge.core.errors import listed
from bridge.weights.matching import match as match_weights
from bridge.weights.report import HEADLINE, Match
from bridge.weights.sources import open_source
from bridge.weights.tensors import Source

Rename = Annotated[
    list[str] | None,
    typer.Option(metavar="A=B", help="A name in the file and one in the model; may be repeated."),
]
Save = Annotated[Path | None, typer.Option(help="A file to write the plan to, as JSON.")]

# The sentences of a plan say what to type in Python.
_SPELLED = "On the command line rename={a: b} is --rename a=b, and strict=False is convert --no-strict."


def match(
    file: File, factory: ModuleFactory, rename: Rename = None, save: Save = None, as_json: Json = False
) -> None:
    """Shows which array of a file goes where in a model.

    Ends with 1 where the two do not fit, and tells what is wrong, what is nearest, and what to type.
    """
    pairs = renaming(rename)
    source = open_source(file)
    with working(f"matching {file}", as_json):
        module = module_of(factory)
        plan = match_weights(module, source, pairs)
    if as_json:
        show_json({"complete": plan.complete, **json.loads(plans.text_of(plan))})
    else:
        show_table(HEADLINE, (pair.row() for pair in plan.pairs))
        show("\n".join(["", *plan.remarks()]))
    if save is not None:
        plan.save(save)
    if not plan.complete:
        tell(complaints(plan, module, source))
    end(plan.complete)


def renaming(entries: Sequence[str] | None) -> Mapping[Any, str]:
    """The entries of `--rename`: raises typer.BadParameter for one that is none."""
    pairs = [entry.partition("=") for entry in entries or ()]
    for name, sign, other in pairs:
        if not (name and sign and other):
            raise typer.BadParameter(
                f"{name + sign + other!r} pairs no names; type --rename encoder.fc=params.Dense_0"
            )
    return {name: other for name, _, other in pairs}


def complaints(plan: Match, module: Any, source: Source, strict: bool = True) -> str:
    """All that stands against loading by a plan, and what is nearest to all that has no partner."""
    found = plan.complaints(strict)
    near = candidates(plan, module, source)
    told = [f"{len(found)} problem{'s' if len(found) != 1 else ''}:", listed(found)]
    told += ["Without a partner:", listed(near)] if near else []
    return "\n".join([*told, _SPELLED])
