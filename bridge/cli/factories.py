"""Models that the command line names: `module:factory`, imported from the folder that it runs in."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import bridge.core.paths as paths
from bridge.core.errors import ModelError
from bridge.core.libraries import library_of
from bridge.core.module import Module
from bridge.wrapping import wrap

ModuleFactory = Annotated[
    str,
    typer.Argument(metavar="MODULE:FACTORY", help="A function that makes a model, or a model."),
]


def module_of(name: str) -> Module:
    """The Module that a factory makes, or that its model is wrapped as; see `model_of`."""
    module = wrap(model_of(name))
    if not isinstance(module, Module):
        raise ModelError(f"{name} is {module!r}; a model was wanted: make one in a function")
    return module


def model_of(name: str) -> Any:
    """What a factory makes: `name` is "module:factory", and the factory a function or a model itself.

    What it prints goes to stderr. Raises ModelError where it is not there, or raises.
    """
    module, _, attributes = name.partition(":")
    if not module or not attributes:
        raise ModelError(f"{name!r} names no factory; type module:factory, such as zoo.nets:resnet")
    with contextlib.redirect_stdout(sys.stderr):
        found = _imported(name, module)
        for attribute in attributes.split("."):
            if not hasattr(found, attribute):
                names = [one for one in dir(found) if not one.startswith("_")]
                raise ModelError(
                    f"{name}: there is no {attribute!r} in it; {paths.nearest(attribute, names)}"
                )
            found = getattr(found, attribute)
        if isinstance(found, Module) or (not isinstance(found, type) and library_of(found)):
            return found
        if not callable(found):
            raise ModelError(f"{name} is {found!r}; a model, or a function that makes one, was wanted")
        with _told(name):
            return found()


def _imported(name: str, module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with _told(name):
            return importlib.import_module(module)
    except ModelError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name == module:
            raise ModelError(
                f"{name}: there is no module {module!r} in {here} or among what is installed"
            ) from None
        raise


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever a user's own code raises, as a ModelError that says how to see where."""
    try:
        yield
    except Exception as error:
        module, _, attribute = name.partition(":")
        raise ModelError(
            f"{name} raised {type(error).__name__}: {error}\nTo see where, type: python -c"
            f' "import {module}; {module}.{attribute}()"'
        ) from error
