"""The commands of `bridge`."""

from __future__ import annotations

import typer

from bridge.cli.converting import convert
from bridge.cli.diffing import diff
from bridge.cli.ending import Commands
from bridge.cli.inspecting import inspect
from bridge.cli.listing import adapters
from bridge.cli.matching import match
from bridge.cli.verifying import doctor, verify

app = typer.Typer(
    cls=Commands,
    help="Weights of PyTorch in models of JAX: what files hold, what fits where, and why not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (inspect, match, convert, diff, verify, doctor, adapters):
    app.command()(command)
