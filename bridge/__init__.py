"""One immutable Module for models of Flax Linen, Flax NNX, dm-haiku, Equinox and PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from bridge.building import Builder as Builder
from bridge.checkpointing import Checkpoints as Checkpoints
from bridge.core.batching import batched as batched
from bridge.core.editing import tie as tie
from bridge.core.errors import BridgeError as BridgeError
from bridge.core.errors import MissingLibraryError as MissingLibraryError
from bridge.core.gradients import grad as grad
from bridge.core.gradients import value_and_grad as value_and_grad
from bridge.core.kinds import Key as Key
from bridge.core.kinds import Parameter as Parameter
from bridge.core.kinds import State as State
from bridge.core.kinds import collection as collection
from bridge.core.leaves import LAZY as LAZY
from bridge.core.leaves import ParamInit as ParamInit
from bridge.core.lifted import remat as remat
from bridge.core.lifted import scan as scan
from bridge.core.lifted import vmap as vmap
from bridge.core.materializing import materialized as materialized
from bridge.core.module import Function as Function
from bridge.core.module import Module as Module
from bridge.core.module import plain as plain
from bridge.core.optimizer import Optimizer as Optimizer
from bridge.core.parametrized import current_module as current_module
from bridge.core.parametrized import parameter as parameter
from bridge.core.parametrized import parametrized as parametrized
from bridge.core.partition import merge as merge
from bridge.core.partition import partition as partition
from bridge.core.plain_tree import from_tree as from_tree
from bridge.core.plain_tree import to_tree as to_tree
from bridge.core.precision import with_policy as with_policy
from bridge.core.regularizing import l2 as l2
from bridge.core.regularizing import regularized as regularized
from bridge.core.reparametrizing import reparametrized as reparametrized
from bridge.core.sequential import Sequential as Sequential
from bridge.core.sharding import ShardingRules as ShardingRules
from bridge.core.transplanting import transplant as transplant
from bridge.registering import register_adapter as register_adapter
from bridge.storing import load as load
from bridge.storing import save as save
from bridge.wrapping import from_equinox as from_equinox
from bridge.wrapping import from_haiku as from_haiku
from bridge.wrapping import from_linen as from_linen
from bridge.wrapping import from_nnx as from_nnx
from bridge.wrapping import from_torch as from_torch
from bridge.wrapping import to_equinox as to_equinox
from bridge.wrapping import to_haiku as to_haiku
from bridge.wrapping import to_linen as to_linen
from bridge.wrapping import to_nnx as to_nnx
from bridge.wrapping import to_torch as to_torch
from bridge.wrapping import wrap as wrap

if TYPE_CHECKING:
    from bridge.doctor import Report as Report
    from bridge.doctor import verify as verify
    from bridge.weights import Match as Match
    from bridge.weights import load_optimizer_state as load_optimizer_state
    from bridge.weights import load_state_dict as load_state_dict
    from bridge.weights import match as match
    from bridge.weights import optimizer_state_dict as optimizer_state_dict
    from bridge.weights import save_state_dict as save_state_dict
    from bridge.weights import state_dict as state_dict

# What is loaded when it is first used: it would be half of what `import bridge` takes.
_LATER = {
    "bridge.doctor": ("Report", "verify"),
    "bridge.weights": (
        "Match",
        "load_state_dict",
        "load_optimizer_state",
        "match",
        "optimizer_state_dict",
        "save_state_dict",
        "state_dict",
    ),
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *(name for names in _LATER.values() for name in names)]
