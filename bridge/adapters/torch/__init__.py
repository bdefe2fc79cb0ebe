"""PyTorch: how its layers are kept; nothing here imports torch before it is needed."""
