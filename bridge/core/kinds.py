"""What a field of a Module is: declared by its annotation, never inferred from its value."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
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


class Inline(enum.Enum):
    """The marker of a field whose name is no part of a path: its keys stand in the node's own place."""

    INLINE = "inline"


INLINE = Inline.INLINE

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
class Declared:
    """What a class body says of a field beside its annotation (`default` None: it has none)."""

    default: Callable[[], Any] | None = None
    init: bool = True
    kw_only: bool = False

    @classmethod
    def of(cls, value: Any) -> Declared:
        """The reading of a plain default or of a `dataclasses.field`."""
        if not isinstance(value, dataclasses.Field):
            return cls(lambda: value)
        default: Callable[[], Any] | None = None
        if value.default_factory is not dataclasses.MISSING:
            default = value.default_factory
        elif value.default is not dataclasses.MISSING:
            default = functools.partial(getattr, value, "default")
        return cls(default, value.init, value.kw_only is True)


@dataclasses.dataclass(frozen=True)
class Field:
    """A declared field: its name, its kind, and what the class body says of it.

    `unreadable` is the annotation where it names what does not exist: such a field is static. An
    `inline` field is a dict whose keys are segments of paths, without the field's name before them.
    """

    name: str
    kind: Kind
    declared: Declared
    unreadable: str | None
    inline: bool = False

    @property
    def prefix(self) -> tuple[str, ...]:
        """What the paths of the field's arrays and modules begin with, below the node."""
        return () if self.inline else (self.name,)


class Unresolved:
    """Stands for an annotation whose names do not exist when the class is first used."""


def fields_of(cls: type, node_type: type) -> tuple[Field, ...]:
    """The fields of a Module class, ancestors first; raises FieldError on a mixed container."""
    found: dict[str, Field] = {}
    for owner in reversed(cls.__mro__):
        if owner is node_type or not issubclass(owner, node_type):
            continue
        scope = {owner.__name__: owner, **owner.__dict__["_scope"], **vars(owner)}
        for name, annotation in inspect.get_annotations(owner).items():
            hint = _resolve(annotation, scope)
            if typing.get_origin(hint) is ClassVar or hint is ClassVar:
                continue
            kind = _kind_of(hint, node_type, scope, f"{cls.__name__}.{name}")
            declared = owner.__dict__["_declared"].get(name, Declared())
            unreadable = annotation if hint is Unresolved else None
            inline = INLINE in getattr(hint, "__metadata__", ())
            found[name] = Field(name, kind, declared, unreadable, inline)
    return tuple(found.values())


def _resolve(annotation: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(scope))
    except (NameError, AttributeError, SyntaxError, TypeError):
        return Unresolved


def _kind_of(hint: Any, node_type: type, scope: Mapping[str, Any], where: str) -> Kind:
    kinds = set(_kinds_in(hint, node_type, scope)) - {STATIC}
    if len(kinds) > 1:
        names = " and ".join(sorted(kind.name for kind in kinds))
        raise FieldError(
            f"{where} mixes {names} in one annotation; a field has one kind: declare two fields"
        )
    return kinds.pop() if kinds else STATIC


def _kinds_in(hint: Any, node_type: type, scope: Mapping[str, Any]) -> Iterator[Kind]:
    hint = _resolve(hint, scope)
    origin = typing.get_origin(hint)
    if isinstance(hint, Kind):
        yield hint
    elif origin is Annotated:
        own = [extra for extra in hint.__metadata__ if isinstance(extra, Kind)]
        yield from own[-1:] or _kinds_in(hint.__origin__, node_type, scope)
    elif isinstance(hint, typing.TypeVar):
        yield from _kinds_in(hint.__bound__, node_type, scope)
    elif isinstance(origin or hint, type) and issubclass(origin or hint, node_type):
        yield CHILD
    elif origin not in (Callable, Literal, type):
        for argument in typing.get_args(hint):
            yield from _kinds_in(argument, node_type, scope)
