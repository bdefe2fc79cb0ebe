"""`bridge adapters`: which libraries bridge has adapters for, and which of them are installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from bridge.cli.ending import end
from bridge.cli.rendering import Json, show_json, show_table
from bridge.core.libraries import installed
from bridge.wrapping import ADAPTERS


class Listed(NamedTuple):
    """An adapter; `problem` is why it cannot be used as it is, and what to do."""

    library: str
    adapter: str
    distribution: str | None
    version: str | None
    problem: str | None
    is_added: bool


def adapters(as_json: Json = False) -> None:
    """Lists the libraries that have an adapter.

    Shows their versions, and what to install for those that lack. Ends with 1 where an adapter of
    another package cannot be used as it is.
    """
    found = [*_own(), *_added()]
    if as_json:
        show_json([one._asdict() for one in found])
    else:
        rows = [(one.library, one.adapter, _version(one), one.problem or "") for one in found]
        show_table(("library", "adapter", "installed", "to do"), rows)
    end(not any(one.problem for one in found if one.is_added))


def _own() -> Iterator[Listed]:
    for name, adapter in ADAPTERS.items():
        try:
            version, problem = metadata.version(adapter.distribution), None
        except metadata.PackageNotFoundError:
            version, problem = None, f'pip install "bridge-jax[{adapter.extra}]"'
        yield Listed(name, f"bridge.adapters.{name}", adapter.distribution, version, problem, False)


def _added() -> Iterator[Listed]:
    """The adapters of installed packages, by their entry points."""
    for name, entries in installed().items():
        several = len({entry.value for entry in entries}) > 1
        problem = "keep one: bridge.register_adapter, or uninstall the others" if several else None
        for entry in entries:
            package, version = (entry.dist.name, entry.dist.version) if entry.dist else (None, None)
            yield Listed(name, entry.value, package, version, problem, True)


def _version(one: Listed) -> str:
    return f"{one.distribution} {one.version}" if one.version else "no"
