"""The `bridge` command: what checkpoints hold, and what becomes of them; `docs/command_line.md`."""

from __future__ import annotations

import sys

from bridge.core.errors import MissingLibraryError

LIBRARIES = ("typer", "rich")


def main() -> None:
    """Runs the command of `sys.argv`, and ends the program with its exit code: 0, 1 or 2."""
    try:
        from bridge.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in LIBRARIES:
            raise
        missing = MissingLibraryError(
            'The bridge command needs typer and rich. Install them with: pip install "bridge-jax[cli]"'
        )
        sys.stderr.write(f"{missing}\n")
        raise SystemExit(2) from None
    app()
