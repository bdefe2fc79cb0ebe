"""The tables of NNX projects: written from a plan, and a plan made of one."""

import enum
import re

import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.notation import read
from bridge.weights.report import Match, Pair
from bridge.weights.transforms import transform_of, translation_of


def plan(*pairs, **fields):
    """A plan with these pairs of key, path, and the axes of both sides."""
    made = (Pair(key, tuple(path.split(".")), read(*sides), "") for key, path, *sides in pairs)
    empty = {"unused": {}, "left_over": {}, "differences": (), "problems": ()}
    return Match(tuple(made), {}, **{**empty, **fields})


def matrix(key, path):
    return key, path, "out=7 in=5", "in=5 out=7"


def vector(key, path):
    return key, path, "out=7", "out=7"


TURNED, SAME = ((1, 0), None, False), (None, None, False)


@pytest.mark.parametrize(
    ("pairs", "table"),
    [
        (
            [matrix(f"layers.{n}.fc.weight", f"params.layers.{n}.fc.kernel") for n in range(12)],
            {r"layers\.([0-9]+)\.fc\.weight": (r"layers.\1.fc.kernel", TURNED)},
        ),
        (  # the numbers of a path may stand anywhere, in any order, and those of a key in another one
            [
                matrix(f"h.{one}.mlp.{two}.weight", f"params.mlp_{two}.Block_{one}.kernel")
                for one in range(3)
                for two in range(2)
            ],
            {r"h\.([0-9]+)\.mlp\.([0-9]+)\.weight": (r"mlp_\2.Block_\1.kernel", TURNED)},
        ),
        (  # what does not count alike is a line each
            [vector(f"net.{2 * n}.bias", f"params.Dense_{n}.bias") for n in range(2)],
            {
                r"net\.0\.bias": ("Dense_0.bias", SAME),
                r"net\.2\.bias": ("Dense_1.bias", SAME),
            },
        ),
        (  # one kind of layer for some numbers, another kind for the others
            [
                matrix("net.0.weight", "params.layers.0.kernel"),
                vector("net.1.weight", "params.layers.1.scale"),
                matrix("net.3.weight", "params.layers.3.kernel"),
            ],
            {
                r"net\.(0|3)\.weight": (r"layers.\1.kernel", TURNED),
                r"net\.1\.weight": ("layers.1.scale", SAME),
            },
        ),
        (  # two arrays that only their collections tell apart
            [vector("mean", "params.norm.mean"), vector("running", "state.norm.mean")],
            {"mean": ("params.norm.mean", SAME), "running": ("state.norm.mean", SAME)},
        ),
    ],
)
def test_the_table_of_a_plan(pairs, table):
    assert plan(*pairs).to_table() == table


def test_signs_that_mean_something_else_in_a_table_are_escaped():
    pair = Pair("a-b.c+.weight", ("params", "v1.5", "scale"), read("out=5", "out=5"), "")
    ((regex, (template, _)),) = Match((pair,), {}, {}, {}, (), ()).to_table().items()
    assert re.fullmatch(regex, pair.key).expand(template) == "v1\\.5.scale"


def test_every_key_is_led_where_the_plan_leads_it():
    pairs = [
        matrix(f"enc.{a}.mix.{b}.weight", f"params.enc.{a}.{'mix' if b else 'first'}.{b}.kernel")
        for a in (0, 1, 10)
        for b in (0, 1, 2)
    ]
    table = plan(*pairs).to_table()
    for key, path, *_ in pairs:
        found = [m.expand(t) for regex, (t, _) in table.items() if (m := re.fullmatch(regex, key))]
        assert found == [path.removeprefix("params.")]
    assert len(table) == 2


def test_what_a_table_cannot_say_is_named():
    cannot = plan(
        ("a", "x", "(1of3 out=2) in=5", "in=5 out=2"),
        ("b", "y", "-time=5", "time=5"),
        ("c", "z", "out=2", "out[0:2]of5"),
        ("d", "z", "out=3", "out[2:5]of5"),
        ("e", "u", "out=5", "out=5"),
        ("e", "v", "out=5", "out=5"),
        ("f", "w", "(a=2 b=3) c=5", "(b=3 a=2) c=5"),
        ("g", "fine", "out=5", "out=5"),
        problems=("h: missing",),
    )
    offset = Pair("i", ("n",), read("out=5", "out=5"), "", 1.0)
    with pytest.raises(br.BridgeError) as caught:
        Match((*cannot.pairs, offset), {}, {}, {}, (), cannot.problems).to_table()
    assert str(caught.value) == (
        "a table cannot say this; save the plan instead:\n"
        "  h: missing\n"
        "  a -> x: it is a part of an array\n"
        "  b -> y: an axis runs backwards\n"
        "  c -> z: 2 arrays of the source are there\n"
        "  d -> z: 2 arrays of the source are there\n"
        "  e -> u: it goes to 2 places\n"
        "  e -> v: it goes to 2 places\n"
        "  f -> w: it is reshaped, transposed and reshaped again\n"
        "  i -> n: +1 is added to it"
    )


def by_hand(array, transform):
    """What NNX projects do with a transform."""
    permute, reshape, first = transform
    if first and reshape is not None:
        array = array.reshape(reshape)
    array = array if permute is None else array.transpose(permute)
    return array if first or reshape is None else array.reshape(reshape)


TRANSFORMS = [
    ("out=7 in=5", "in=5 out=7", ((1, 0), None, False)),
    ("out=7 in=3 s1=2 s2=5", "s1=2 s2=5 in=3 out=7", ((2, 3, 1, 0), None, False)),
    ("(h=2 d=3) in=5", "in=5 h=2 d=3", ((1, 0), (5, 2, 3), False)),
    ("out=5 (h=2 d=3)", "h=2 d=3 out=5", ((1, 0), (2, 3, 5), False)),
    ("h=2 d=3 in=5", "in=5 (h=2 d=3)", ((2, 0, 1), (5, 6), False)),
    ("(h=2 d=3) in=5", "d=3 in=5 h=2", ((1, 2, 0), (2, 3, 5), True)),
    ("features=5", "1 1 features=5", (None, (1, 1, 5), False)),
    ("out=5 1", "out=5", (None, (5,), False)),
    ("out=5 1 in=3", "in=3 out=5", ((2, 0, 1), (3, 5), False)),
    ("", "", SAME),
]


@pytest.mark.parametrize(("source", "target", "transform"), TRANSFORMS)
def test_transforms_are_translations(source, target, transform):
    turned = read(source, target)
    array = np.arange(int(np.prod(turned.source_shape))).reshape(turned.source_shape)
    assert transform_of(turned) == transform
    np.testing.assert_array_equal(by_hand(array, transform), turned(array))
    back = translation_of(transform, array.shape)
    np.testing.assert_array_equal(back(array), turned(array))
    np.testing.assert_array_equal(back.inverse()(back(array)), array)


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        ((1, 0), "(1, 0) is no transform; (permute, reshape, reshape_first) is one"),
        (((0, 0), None, False), "(0, 0) is no order of 2 axes"),
        (((1, 0), (4, -1), False), "an array of shape (6, 5) cannot be reshaped to (4, -1)"),
        ((None, (-1, -1), True), "an array of shape (6, 5) cannot be reshaped to (-1, -1)"),
        (
            (None, (10, 3), True),
            "a plan cannot say a reshape from (6, 5) to (10, 3): an axis is cut within",
        ),
    ],
)
def test_what_is_no_transform(transform, text):
    with pytest.raises(br.BridgeError) as caught:
        translation_of(transform, (6, 5))
    assert str(caught.value) == text


class Transform(enum.Enum):
    """The transforms of a project, as such projects write them."""

    NONE = None
    LINEAR = ((1, 0), None, False)
    HEADS = ((1, 0), (5, 2, -1), False)


def model(nnx):
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(5, 5, rngs=rngs) for _ in range(3)]
    attention = nnx.LinearGeneral(5, (2, 3), use_bias=False, rngs=rngs)
    return br.from_nnx(nnx.Dict(layers=nnx.List(layers), attention=attention))


def source():
    random = np.random.default_rng(0)
    shapes = {"q.weight": (6, 5)}
    for number in range(3):
        shapes |= {f"h.{number}.weight": (5, 5), f"h.{number}.bias": (5,)}
    return {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


TABLE = {
    r"h\.([0-9]+)\.weight": (r"layers.\1.kernel", Transform.LINEAR),
    r"h\.([0-9]+)\.bias": (r"layers.\1.bias", Transform.NONE),
    r"q\.weight": (r"params.attention.kernel", Transform.HEADS),
}


def test_a_table_of_a_project_loads_its_checkpoint():
    nnx = pytest.importorskip("flax.nnx")
    module, weights = model(nnx), source()
    match = br.Match.from_table(TABLE, module, weights)
    assert match.complete, str(match)
    loaded = br.load_state_dict(module, weights, plan=match)
    for number in range(3):
        kernel = loaded.at[f"params.layers.{number}.kernel"].get()
        np.testing.assert_array_equal(kernel, weights[f"h.{number}.weight"].T)
    heads = loaded.at["params.attention.kernel"].get()
    np.testing.assert_array_equal(heads, weights["q.weight"].T.reshape(5, 2, 3))
    assert match.to_table() == {
        r"q\.weight": ("attention.kernel", ((1, 0), (5, 2, 3), False)),
        r"h\.([0-9]+)\.weight": (r"layers.\1.kernel", TURNED),
        r"h\.([0-9]+)\.bias": (r"layers.\1.bias", SAME),
    }
    exported = br.state_dict(loaded, like=match)
    assert {key: array.tobytes() for key, array in exported.items()} == {
        key: array.tobytes() for key, array in weights.items()
    }


def test_what_a_table_leaves_open_is_told_at_once():
    nnx = pytest.importorskip("flax.nnx")
    weights = {**source(), "extra": np.ones(3, np.float32), "bn.num_batches_tracked": np.ones((), int)}
    table = {
        **TABLE,
        r"h\.([0-9]+)\.bias": (r"layers.\1.scale", None),
        r"h\.0\..*": (r"layers.0.bias", None),
    }
    match = br.Match.from_table(table, model(nnx), weights)
    assert match.unused.keys() == {"bn.num_batches_tracked"}
    assert match.complaints() == [
        "h.0.weight: 'h\\\\.([0-9]+)\\\\.weight' and 'h\\\\.0\\\\..*' match it, and say different"
        " things",
        "h.0.bias: 'h\\\\.([0-9]+)\\\\.bias' and 'h\\\\.0\\\\..*' match it, and say different things",
        "h.1.bias: the table leads it to 'layers.1.scale', which is not in the Module; the nearest are"
        " 'layers.1.bias', 'layers.1.kernel', 'layers.2.bias'",
        "h.2.bias: the table leads it to 'layers.2.scale', which is not in the Module; the nearest are"
        " 'layers.2.bias', 'layers.2.kernel', 'layers.1.bias'",
        "params.layers.0.kernel: the plan leaves it without weights",
        "params.layers.0.bias: the plan leaves it without weights",
        "params.layers.1.bias: the plan leaves it without weights",
        "params.layers.2.bias: the plan leaves it without weights",
        "extra: left over: no line of the table matches it",
    ]


@pytest.mark.parametrize("line", [3, ("a", "b", "c"), (r"\2", None)])
def test_what_is_no_line_of_a_table(line):
    class Scale(br.Module):
        a: br.Parameter

    with pytest.raises(br.BridgeError, match=r"'\(a\)': .* is no line of a table, regex: \(template"):
        br.Match.from_table({"(a)": line}, Scale(jnp.ones(3)), {"a": np.ones(3, np.float32)})
