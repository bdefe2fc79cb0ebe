"""How each ATen op is computed in JAX: one table for each family of ops."""
