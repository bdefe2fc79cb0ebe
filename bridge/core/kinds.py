"""What a field of a Module is: declared by its annotation, never inferred from its value."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax

from bridge.core.errors import FieldError

KindName = Literal["parameter", "state", "key", "child", "static"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a leaf is for, and the collection that a state belongs to."""

    name: KindName
    collection: str | None = None


PARAMETER = Kind("parameter")
KEY = Kind("key")
CHILD = Kind("child")
STATIC = Kind("static")
BY_FIRST_KEY = "*"

Parameter = Annotated[jax.Array, PARAMETER]
"""Annotation of what is trained: an array, a `ParamInit`, or a tree of them."""
State = Annotated[jax.Array, Kind("state", "state")]
"""Annotation of what is carried from call to call and never trained."""
Key = Annotated[jax.Array, KEY]
"""Annotation of random keys that a module carries."""


def collection(name: str) -> Kind:
    """The marker of a state field with a collection name of its own.

    >>> import jax, bridge as br
    >>> from typing import Annotated
    >>> class Cache(br.Module):
    ...     entries: Annotated[jax.Array, br.collection("cache")]
    """
    return Kind("state", name)


@dataclasses.dataclass(frozen=True)
class Field:
    """A declared field: its name, its kind, and how to make its default (None: it has none)."""

    name: str
    kind: Kind
    default: collections.abc.Callable[[], Any] | None


class Unresolved:
    """Stands for an annotation whose names do not exist when the class is first used."""


def fields_of(cls: type, node_type: type) -> tuple[Field, ...]:
    """The fields of a Module class, ancestors first; raises FieldError on a mixed container."""
    found: dict[str, Field] = {}
    for owner in reversed(cls.__mro__):
        if owner is node_type or not issubclass(owner, node_type):
            continue
        scope = {**owner.__dict__["_scope"], **vars(owner)}
        for field_name, annotation in inspect.get_annotations(owner).items():
            hint = _resolve(annotation, scope)
            if typing.get_origin(hint) is ClassVar or hint is ClassVar:
                continue
            kind = _kind_of(hint, node_type, f"{cls.__name__}.{field_name}")
            default = owner.__dict__.get("_defaults", {}).get(field_name)
            found[field_name] = Field(field_name, kind, default)
    return tuple(found.values())


def default_factory(value: Any) -> collections.abc.Callable[[], Any] | None:
    """How to make a field's default from what stands in the class body."""
    if not isinstance(value, dataclasses.Field):
        return lambda: value
    if value.default_factory is not dataclasses.MISSING:
        return value.default_factory
    if value.default is not dataclasses.MISSING:
        return lambda: value.default
    return None


def _resolve(annotation: Any, scope: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(scope))
    except (NameError, AttributeError, SyntaxError, TypeError):
        return Unresolved


def _kind_of(hint: Any, node_type: type, where: str) -> Kind:
    kinds = set(_kinds_in(hint, node_type)) - {STATIC}
    if len(kinds) > 1:
        names = " and ".join(sorted(kind.name for kind in kinds))
        raise FieldError(
            f"{where} mixes {names} in one annotation; a field has one kind: declare two fields"
        )
    return kinds.pop() if kinds else STATIC


def _kinds_in(hint: Any, node_type: type) -> collections.abc.Iterator[Kind]:
    if isinstance(hint, Kind):
        yield hint
    elif isinstance(hint, str):
        yield STATIC
    elif typing.get_origin(hint) is Annotated:
        own = [extra for extra in hint.__metadata__ if isinstance(extra, Kind)]
        yield from own[-1:] or _kinds_in(hint.__origin__, node_type)
    elif hint is Unresolved:
        yield STATIC
    elif isinstance(hint, type) and not typing.get_args(hint):
        yield CHILD if issubclass(hint, node_type) else STATIC
    elif typing.get_origin(hint) not in (collections.abc.Callable, Literal, type):
        for argument in typing.get_args(hint):
            yield from _kinds_in(argument, node_type)
