"""The state of optimizers from torch into optax and back, along the plan that the weights took."""

from bridge.weights.optimizers.carrying import load_optimizer_state as load_optimizer_state
from bridge.weights.optimizers.carrying import optimizer_state_dict as optimizer_state_dict
