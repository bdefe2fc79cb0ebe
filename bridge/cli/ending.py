"""How a command ends: 0 where all is well, 1 where it found problems, 2 where it could not begin."""

from __future__ import annotations

import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from bridge.cli.rendering import tell
from bridge.core.errors import BridgeError, WeightsWarning

PROBLEMS, UNREADABLE = 1, 2


class Commands(TyperGroup):
    """The commands, whose errors and warnings are sentences on stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; what bridge raises ends it with 2."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", WeightsWarning)
            warnings.showwarning = _tell_warning
            try:
                return super().invoke(ctx)
            except BridgeError as error:
                tell(str(error))
                raise typer.Exit(UNREADABLE) from None


def found_problems(sentences: str) -> typer.Exit:
    """Tells problems on stderr; what comes back is to be raised."""
    tell(sentences)
    return typer.Exit(PROBLEMS)


def end(is_well: bool) -> None:
    """Ends the command with 0 where all is well, else with 1."""
    if not is_well:
        raise typer.Exit(PROBLEMS)


def _tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    tell(f"warning: {message}")
