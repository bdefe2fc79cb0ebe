"""The errors of bridge: each says where, what came, what was wanted and what to type."""

from __future__ import annotations

from collections.abc import Sequence


class BridgeError(Exception):
    """Parent of every error that bridge raises on purpose."""


class FieldError(BridgeError, TypeError):
    """A field was not declared, not set, or holds what its kind does not allow."""


class ImmutableError(BridgeError, AttributeError):
    """A Module was assigned to outside `__init__` and outside `apply`."""


class UninitialisedError(BridgeError, ValueError):
    """Something was called or read whose parameters do not exist yet."""


class DroppedStateError(BridgeError, ValueError):
    """A call without a second result would have lost a state update."""


class MissingRngError(BridgeError, ValueError):
    """A draw found no key for its stream."""


class TraceError(BridgeError, RuntimeError):
    """A module was drawn from or written to under another JAX trace than its own."""


class SharingError(BridgeError, ValueError):
    """A shared module or a tied array was used without its owner."""


class PathError(BridgeError, LookupError):
    """A path or pattern selects nothing, or not what was asked for."""


class StructureError(BridgeError, ValueError):
    """Two trees that must agree do not."""


class CheckpointError(BridgeError, ValueError):
    """A tree cannot be saved, or a saved file does not fit what it is loaded into."""


class WeightsError(BridgeError, ValueError):
    """A source of weights does not fit a Module, or is ambiguous."""


class WeightsWarning(UserWarning):
    """Weights were loaded as they are, and are probably not what was meant."""


class ModelError(BridgeError, TypeError):
    """A model of another library is not what its adapter can wrap."""


class LoweringError(BridgeError, ValueError):
    """A captured torch program holds what JAX cannot compute, or is called with what does not fit."""


class AdapterError(BridgeError, TypeError):
    """An adapter that was added for another library is none, or not the only one."""


class MissingLibraryError(BridgeError, ImportError):
    """An adapter's library is not installed."""


def listed(problems: Sequence[str]) -> str:
    """One line a problem, indented, to stand below the headline of an error."""
    return "\n".join(f"  {problem}" for problem in problems)
