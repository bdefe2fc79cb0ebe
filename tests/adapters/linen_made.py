"""What the tests of Linen models share: a model initialised, trees compared, the text of an error."""

from typing import Any

import jax
import numpy as np
import pytest

import bridge as br

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (2, 3))


def made(module: Any, *args: Any, **kwargs: Any) -> Any:
    return br.from_linen(module).init(KEY, *(args or (X,)), **kwargs)


def same(first: Any, second: Any) -> bool:
    """Whether two trees are the same bit for bit."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)
