"""A torch model written down: its parts, its tensors, and its forward op by op."""
