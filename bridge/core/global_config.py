"""Values that a module says to everything below it: a read-only mapping, part of the treedef."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.core.errors import ImmutableError, PathError
from bridge.core.spec import settle, thaw, token


class GlobalConfig(dict[str, Any]):
    """Static values by name, read-only and compared by value; see `Module.with_global_config`.

    Reading a name that is not there raises PathError, which says what is; `get` and `in` are those of
    any dict.
    """

    __slots__ = ("token",)

    token: Any

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({name: settle(value) for name, value in values.items()})
        self.token = tuple(
            (name, token(self[name], f"the global config's {name!r}")) for name in sorted(self)
        )

    def below(self, parent: GlobalConfig | None) -> GlobalConfig:
        """What is read below a parent: this config, with all that the parent says over it."""
        return self if parent is None else GlobalConfig({**self, **parent})

    def __missing__(self, name: str) -> Any:
        known = f"it has {', '.join(map(repr, self))}" if self else "it is empty"
        raise PathError(
            f"the global config has no {name!r}; {known}. Type"
            f" module = module.with_global_config({name}=...) for this module or for one above it"
        )

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        raise ImmutableError(
            "a global config is read-only; type module = module.with_global_config(name=value, ...)"
        )

    __setitem__ = __delitem__ = clear = pop = popitem = _refuse
    setdefault = update = __ior__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return GlobalConfig, ({name: thaw(value) for name, value in self.items()},)
