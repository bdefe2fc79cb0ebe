"""Torch's programs in JAX: what was captured of a torch model, and how each op is computed."""
