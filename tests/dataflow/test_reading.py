"""What arrays are to a program: their roles, their axes, and what feeds what."""

import jax
import jax.numpy as jnp
import pytest

from bridge.dataflow.axes import dim, matched, parts_of, reshaped, same
from bridge.dataflow.flow import layout
from bridge.dataflow.reading import read


def flow(function, *shapes, inputs=((2, 7),)):
    """The flow of `function(*arrays, *inputs)`, the arrays under "a", "b", ..."""
    arrays = {(chr(97 + i),): jnp.ones(shape) for i, shape in enumerate(shapes)}
    values = [jnp.ones(shape) for shape in inputs]
    closed = jax.make_jaxpr(function)(*arrays.values(), *values)
    return read(closed, arrays, [f"input {i}" for i in range(len(values))])


def told(found):
    """Each block's uses: the array, its role, the labels of its dimensions."""
    return [
        [
            (use.array.path[0], use.role, [" ".join(f.label for f in d) for d in layout(use)])
            for use in block.uses
        ]
        for block in found.blocks
    ]


def batch_norm(mean, var, scale, bias, x):
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias


def folded_norm(mean, var, scale, bias, x):
    return x * (scale * jax.lax.rsqrt(var + 1e-5)) + bias - mean


CONVOLVED = ("NHWC", "HWIO", "NHWC")
CASES = {
    "a matrix": (lambda w, x: x @ w, [(7, 5)], [[("a", "matrix", ["contracted", "free"])]]),
    "a turned matrix": (lambda w, x: x @ w.T, [(5, 7)], [[("a", "matrix", ["free", "contracted"])]]),
    "an einsum": (
        lambda w, x: jnp.einsum("bd,hdf->bhf", x, w),
        [(2, 7, 5)],
        [[("a", "matrix", ["free", "contracted", "free"])]],
    ),
    "a bias joins its matrix": (
        lambda w, b, x: x @ w + b,
        [(7, 5), (5,)],
        [[("a", "matrix", ["contracted", "free"]), ("b", "shift", [""])]],
    ),
    "a bias after a sum": (
        lambda w, b, x: x + x @ w + b,
        [(7, 7), (7,)],
        [[("a", "matrix", ["contracted", "free"]), ("b", "shift", [""])]],
    ),
    "a kernel": (
        lambda w, x: jax.lax.conv_general_dilated(
            x.reshape(2, 7, 1, 1), w, (1, 1), "SAME", dimension_numbers=CONVOLVED
        ),
        [(3, 1, 1, 5)],
        [[("a", "kernel", ["spatial 0", "", "", "free"])]],
    ),
    "a table": (
        lambda w, x: jnp.take(w, x.astype(int), axis=0),
        [(11, 5)],
        [[("a", "table", ["looked up", "free"])]],
    ),
    "running statistics": (
        batch_norm,
        [(7,)] * 4,
        [
            [
                ("a", "centre", [""]),
                ("b", "variance", [""]),
                ("c", "scale", [""]),
                ("d", "shift", [""]),
            ]
        ],
    ),
    "folded statistics": (
        folded_norm,
        [(7,)] * 4,
        [
            [
                ("c", "scale", [""]),
                ("b", "variance", [""]),
                ("d", "shift", [""]),
                ("a", "centre", [""]),
            ]
        ],
    ),
    "rows of a table by fixed places": (
        lambda w, x: x + w[jnp.arange(1, 3)],
        [(11, 7)],
        [[("a", "shift", ["looked up", ""])]],
    ),
    "flattened": (
        lambda w, x: x.reshape(1, 14) @ w,
        [(14, 5)],
        [[("a", "matrix", ["contracted contracted", "free"])]],
    ),
    "layers that a scan runs over": (
        lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0],
        [(3, 7, 7)],
        [[("a", "matrix", ["", "contracted", "free"])]] * 3,
    ),
    "a loop": (
        lambda w, x: jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h), jnp.zeros(7), x)[0],
        [(7, 7)],
        [[("a", "matrix", ["contracted", "free"])]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_op_that_meets_an_array_says_what_it_is(case):
    function, shapes, wanted = CASES[case]
    assert told(flow(function, *shapes)) == wanted


def test_a_kernel_that_is_flipped_runs_backwards():
    def convolved(w, x):
        kernel = jnp.flip(w, 2).transpose(2, 1, 0)
        return jax.lax.conv_general_dilated(
            x[..., None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    (block,) = flow(convolved, (5, 1, 3)).blocks
    free, one, spatial = layout(block.uses[0])
    assert one == ()
    assert [(free[0].label, free[0].backwards)] == [("free", False)]
    assert [(spatial[0].label, spatial[0].backwards)] == [("spatial 0", True)]


def test_parts_of_a_packed_array_are_told_by_the_cuts_behind_it():
    def packed(w, out, x):
        q, k, v = jnp.split(x @ w, 3, axis=-1)
        return jax.nn.softmax(q @ k.T) @ v @ out

    found = flow(packed, (7, 15), (5, 3))
    feeds = {(cut[1:], bool(feed.ops)) for feed in found.blocks[1].feeders for cut in feed.cuts}
    assert feeds == {((0, 5), True), ((5, 10), True), ((10, 15), False)}


def test_what_feeds_a_value_that_a_loop_carries():
    def recurrent(inner, outer, x):
        def step(h, x):
            return jnp.tanh(h @ inner + x @ outer), None

        return jax.lax.scan(step, jnp.zeros(7), x)[0]

    found = flow(recurrent, (7, 7), (7, 7))
    inner = next(block for block in found.blocks if block.uses[0].array.path == ("a",))
    assert inner in {feed.origin for feed in inner.feeders}
    assert {feed.origin.title for feed in found.output.feeders} == {"matrix"}


def test_axes_are_taken_apart_where_a_reshape_does():
    (whole,) = [dim(30)]
    dims = reshaped([whole], [30], [3, 2, 5])
    assert [axis.size for axis in parts_of(whole)] == [3, 2, 5]
    assert [parts_of(d)[0].one for d in dims] == [axis.one for axis in parts_of(whole)]
    assert [len(parts_of(d)) for d in reshaped([dim(6), dim(5)], [6, 5], [5, 6])] == [1, 1]


def test_two_dimensions_are_matched_part_by_part():
    one, two = (*dim(2), *dim(15)), (*dim(6), *dim(5))
    assert [(a.size, b.size) for a, b in matched(one, two)] == [(2, 2), (3, 3), (5, 5)]
    same(one, two)
    assert [axis.one for axis in parts_of(one)] == [axis.one for axis in parts_of(two)]
    assert matched(dim(4), dim(6)) == []
