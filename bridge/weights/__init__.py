"""Weights of PyTorch in any Module: where they come from, what belongs where, and loading them."""

from bridge.weights.exporting import state_dict as state_dict
from bridge.weights.loading import load_state_dict as load_state_dict
from bridge.weights.matching import match as match
from bridge.weights.optimizers import load_optimizer_state as load_optimizer_state
from bridge.weights.optimizers import optimizer_state_dict as optimizer_state_dict
from bridge.weights.report import Match as Match
from bridge.weights.saving import save_state_dict as save_state_dict
