"""Weights of PyTorch in any Module: where they come from, what belongs where, and loading them."""

from bridge.weights.exporting import state_dict as state_dict
from bridge.weights.loading import load_state_dict as load_state_dict
from bridge.weights.matching import match as match
