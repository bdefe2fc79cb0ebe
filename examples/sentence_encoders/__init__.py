"""One BERT sentence encoder, written natively four times, and what the four need around them.

`linen`, `nnx`, `haiku` and `equinox` import no part of bridge: each is what a user of that library
writes anyway. `checkpoint` finds the PyTorch weights, `sentences` turns text into arrays and hidden
states into sentence vectors.
"""
