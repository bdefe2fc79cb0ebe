"""repr and summary, as texts."""

import textwrap

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.leaves import Leaves


class Dense(br.Module):
    w: br.Parameter
    b: br.Parameter | None

    def __init__(self, n_in, n_out, bias=True):
        self.w = br.ParamInit((n_in, n_out), jax.nn.initializers.zeros)
        self.b = br.ParamInit((n_out,), jax.nn.initializers.zeros, jnp.bfloat16) if bias else None

    def extra_repr(self):
        return f"width={self.w.shape[1]}"


class Long(br.Module):
    size: int

    def extra_repr(self):
        return f"size={self.size},\nkind='long'"


class Net(br.Module):
    stem: br.Module
    layers: list[br.Module]
    table: dict[str, br.Module]
    steps: br.State
    noise: br.Key

    def extra_repr(self):
        return "two lines\nof extra"


def net():
    dense = Dense(3, 5)
    return Net(Long(3), [dense, jax.nn.relu, dense], {"v1.5": Dense(5, 7, False)}, 0, jax.random.key(0))


def text(block):
    return textwrap.dedent(block).strip("\n")


def test_repr_before_init():
    assert repr(net()) == text("""
        Net uninit (
          two lines
          of extra
          (stem): Long(
            size=3,
            kind='long'
          )
          (layers.0): Dense uninit (width=5)
          (layers.1): Function(relu)
          (layers.2): -> layers.0
          (table.v1\\.5): Dense uninit (width=7)
        )
    """)


def test_repr_after_init():
    assert repr(net().init(jax.random.key(0))) == text("""
        Net(
          two lines
          of extra
          (stem): Long(
            size=3,
            kind='long'
          )
          (layers.0): Dense(width=5)
          (layers.1): Function(relu)
          (layers.2): -> layers.0
          (table.v1\\.5): Dense(width=7)
        )
    """)


def test_repr_of_a_part_that_is_shared_with_a_place_outside():
    class Pair(br.Module):
        first: br.Module
        second: br.Module

    dense = Dense(3, 5)
    inner = Pair(dense, Pair(jnp.sin, dense)).second
    assert repr(inner) == text("""
        Pair(
          (first): Function(sin)
          (second): -> shared with a place outside
        )
    """)
    assert repr(inner.second) == "2 up, then first"


@pytest.mark.parametrize(
    "shown",
    [
        lambda m: jax.tree.map(jnp.shape, m),
        lambda m: jax.tree.map(lambda leaf: None, m),
        lambda m: jax.eval_shape(lambda: m),
        lambda m: m.train().new_state(jax.random.key(1)).freeze(),
    ],
)
def test_repr_of_anything_that_jax_puts_there(shown):
    class Pair(br.Module):
        first: br.Module
        scale: br.Parameter

    assert repr(shown(Pair(jnp.sin, 1.0))) == "Pair(\n  (first): Function(sin)\n)"


def test_summary():
    module = net().init(jax.random.key(0)).freeze("table.*")
    assert module.summary() == text(r"""
        path             kind               dtype     shape   size
        ---------------  -----------------  --------  ------  ----
        Net
        ├── steps        state              int32     ()         1
        ├── noise        key                key<fry>  ()         1
        ├── stem         Long
        ├── layers.0     Dense
        │   ├── w        parameter          float32   (3, 5)    15
        │   └── b        parameter          bfloat16  (5,)       5
        ├── layers.1     Function
        ├── layers.2     -> layers.0
        └── table.v1\.5  Dense
            └── w        parameter, frozen  float32   (5, 7)    35
        20 trained, 35 frozen, 2 state; 222 bytes
    """)


def test_summary_of_what_is_tied_or_still_to_be_made():
    class Inner(br.Module):
        w: br.Parameter

    class Outer(br.Module):
        first: br.Module
        second: br.Module

    def late():
        return Inner(br.ParamInit((3, 5), jax.nn.initializers.zeros))

    module = br.tie(Outer(late(), late()), "second.w", "first.w")
    assert module.summary() == text("""
        path        kind               dtype    shape            size
        ----------  -----------------  -------  ---------------  ----
        Outer
        ├── first   Inner
        │   └── w   parameter, uninit  float32  (3, 5)             15
        └── second  Inner
            └── w   parameter                   tied to first.w
        15 trained; 60 bytes
    """)


def test_summary_of_a_wrapped_model_has_its_whole_paths_and_of_an_empty_one_no_rows():
    class Held(br.Module):
        params: br.Parameter

    held = Held(Leaves.of({"block/linear": {"w": jnp.ones((3, 5))}}))
    assert held.summary() == text("""
        path                       kind       dtype    shape   size
        -------------------------  ---------  -------  ------  ----
        Held
        └── params.block/linear.w  parameter  float32  (3, 5)    15
        15 trained; 60 bytes
    """)
    assert br.Function(abs).summary() == text("""
        path  kind  dtype  shape  size
        ----  ----  -----  -----  ----
        Function
        0 trained; 0 bytes
    """)
