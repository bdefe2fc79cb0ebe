"""Which parametrized function runs, and how JAX's caches are kept from remembering its parameters.

JAX keeps what a function under `jax.jit`, `jax.lax.scan` or `jax.checkpoint` was traced to. A function
that calls a layer whose arrays are looked up from here would keep the arrays of its first call. So
every such trace carries a mark that JAX compares: what was traced outside of a parametrized function
is traced anew inside, and where parts are called inside a JAX transform each trace has its own mark.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

_HOST: ContextVar[Any] = ContextVar("bridge.host", default=None)
_mark = jax.make_user_context(None)
_INSIDE = "a parametrized function"


def running() -> Any:
    """The host of the parametrized function whose own code runs now; None where there is none."""
    return _HOST.get()


@contextlib.contextmanager
def hosting(host: Any, isolated: bool) -> Iterator[contextlib.ExitStack]:
    """Makes a host the running one; `renew` on what this gives parts JAX's caches once more."""
    token = _HOST.set(host)
    with contextlib.ExitStack() as marks:
        marks.enter_context(_mark(object() if isolated else _INSIDE))
        try:
            yield marks
        finally:
            _HOST.reset(token)


def renew(marks: contextlib.ExitStack) -> None:
    """Keeps what is traced from here on apart from all that was traced before."""
    marks.enter_context(_mark(object()))


@contextlib.contextmanager
def unhosted() -> Iterator[None]:
    """Code of a module that is called inside a parametrized function: its calls are its own."""
    token = _HOST.set(None)
    try:
        with _mark(None):
            yield
    finally:
        _HOST.reset(token)


class Again(BaseException):
    """Ends a run that has to begin again; no error, so that user code does not catch it.

    `grown` gives the module to begin with, where that is another one than before.
    """

    def __init__(self, run: Any, grown: Any = None) -> None:
        super().__init__("a run of bridge begins again; let this exception pass")
        self.run, self.grown = run, grown
