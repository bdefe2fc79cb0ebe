"""What a plan pairs, by which evidence, and what it refuses."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import WeightsError
from bridge.core.layers import Layer, Slot
from bridge.core.leaves import Leaves
from bridge.core.opaque import Opaque
from bridge.core.wrapped import Wrapped


class Stub(Wrapped):
    """A model of no library: arrays by path, and the layers that they belong to."""


def linears(**sizes):
    """A module with a linear layer under each name, kept as (in out), with biases."""
    tree, layers = {}, []
    for name, (inputs, outputs) in sizes.items():
        tree[name] = {"kernel": np.zeros((inputs, outputs), np.float32)}
        tree[name]["bias"] = np.zeros(outputs, np.float32)
        slots = (
            Slot("weight", ("params", name, "kernel"), "in out"),
            Slot("bias", ("params", name, "bias"), "out"),
        )
        layers.append(Layer((name,), "linear", slots))
    return Stub(Opaque(None), Leaves.of(tree), Leaves.of({}), tuple(layers))


def weights(**sizes):
    """A state_dict with a linear layer under each name; `__` stands for a dot."""
    arrays = {}
    for name, (inputs, outputs) in sizes.items():
        prefix = name.replace("__", ".")
        arrays[f"{prefix}.weight"] = np.ones((outputs, inputs), np.float32)
        arrays[f"{prefix}.bias"] = np.ones(outputs, np.float32)
    return arrays


def pairs(match):
    """Which layer of the source goes to which of the module, by the weights."""
    found = {
        pair.path[1]: pair.key.removesuffix(".weight") for pair in match.pairs if "kernel" in pair.path
    }
    return found if not match.problems else match.problems


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ({"q_proj": (7, 7), "k_proj": (7, 7)}, {"self__key": (7, 7), "self__query": (7, 7)},
         {"q_proj": "self.query", "k_proj": "self.key"}),
        ({"Dense_0": (7, 7), "Dense_1": (7, 7), "Dense_2": (7, 7)},
         {"net__0": (7, 7), "net__2": (7, 7), "net__4": (7, 7)},
         {"Dense_0": "net.0", "Dense_1": "net.2", "Dense_2": "net.4"}),
        ({"a": (3, 5), "b": (5, 7)}, {"x": (5, 7), "y": (3, 5)}, {"a": "y", "b": "x"}),
        ({"query": (7, 7), "attn_linear": (7, 7)},
         {"q": (7, 7), "attention__output__dense": (7, 7)},
         {"query": "q", "attn_linear": "attention.output.dense"}),
        ({"h10_up": (7, 7), "h2_up": (7, 7), "h10_down": (7, 7), "h2_down": (7, 7)},
         {f"layer__{i}__{name}": (7, 7) for i in (2, 10) for name in ("down", "up")},
         {"h10_up": "layer.10.up", "h2_up": "layer.2.up", "h10_down": "layer.10.down",
          "h2_down": "layer.2.down"}),
    ],
    ids=["synonyms", "numbers in order", "sizes", "what is left", "blocks"],
)  # fmt: skip
def test_it_pairs_by(module, source, expected):
    assert pairs(br.match(linears(**module), weights(**source))) == expected


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ({"left": (7, 7), "right": (7, 7)}, {"a": (7, 7), "b": (7, 7)}),
        ({"enc_left": (7, 7), "enc_right_more": (7, 7)}, {"enc__a": (7, 7), "enc__b__c__d": (7, 7)}),
        ({"first": (7, 7), "second": (7, 7)}, {"0": (7, 7), "1": (7, 7)}),
        ({"query": (7, 7), "other": (7, 7)}, {"key": (7, 7), "value": (7, 7)}),
        ({"query": (7, 7)}, {"key": (7, 7)}),
    ],
    ids=[
        "no signal",
        "words that all share",
        "numbers on one side",
        "exclusive names",
        "exclusive names alone",
    ],
)
def test_what_is_ambiguous_is_refused(module, source):
    match = br.match(linears(**module), weights(**source))
    assert match.pairs == ()
    assert match.problems


def test_the_candidates_are_listed_with_what_to_type():
    module, source = linears(left=(7, 7), right=(7, 7)), weights(a=(7, 7), b=(7, 7))
    with pytest.raises(br.BridgeError) as caught:
        br.load_state_dict(module, source)
    assert str(caught.value) == (
        "these weights do not fit the Module:\n"
        "  params.left: may be 'a', 'b', and nothing tells which; settle it:"
        " rename={'a': 'params.left'}, or as it should be\n"
        "  params.right: may be 'a', 'b', and nothing tells which; settle it:"
        " rename={'a': 'params.right'}, or as it should be"
    )


@pytest.mark.parametrize(
    "rename",
    [
        {"a": "params.right", "b": "params.left"},
        {"params.right": "a", "params.left": "b"},
        {"a": "right"},
        {"a.weight": "params.right.kernel", "a.bias": "params.right.bias"},
        {"a.weight": "params.right.kernel"},
        {re.compile("a"): "params.right"},
    ],
)
def test_a_rename_settles_it(rename):
    module = linears(left=(7, 7), right=(7, 7))
    match = br.match(module, weights(a=(7, 7), b=(7, 7)), rename)
    assert match.complete, match
    assert pairs(match) == {"left": "b", "right": "a"}


def test_a_rename_with_a_regular_expression():
    module = linears(one=(7, 7), two=(7, 7))
    rename = {re.compile(r"net_(\w+)\.linear"): r"params.\1"}
    source = weights(net_two__linear=(7, 7), net_one__linear=(7, 7))
    match = br.match(module, source, rename)
    assert match.complete, match
    assert pairs(match) == {"one": "net_one.linear", "two": "net_two.linear"}


def test_a_rename_with_globs():
    module = linears(**{f"{side}{i}": (7, 7) for i in range(3) for side in ("left", "right")})
    source = weights(**{f"h__{i}__{name}": (7, 7) for i in range(3) for name in "ab"})
    assert br.match(module, source).problems
    match = br.match(module, source, {"h.*.a": "params.right*"})
    assert match.complete, match
    assert pairs(match)["right2"] == "h.2.a"
    assert pairs(match)["left2"] == "h.2.b"


def test_a_rename_of_an_array_whose_name_no_layer_has():
    source = weights(b=(7, 7))
    source["odd"] = np.ones((7, 7), np.float32)
    source["odd_shift"] = np.ones(7, np.float32)
    rename = {"odd": "params.right.kernel", "odd_shift": "params.right.bias"}
    match = br.match(linears(left=(7, 7), right=(7, 7)), source, rename)
    assert match.complete, match
    assert {pair.key: str(pair.translation) for pair in match.pairs}["odd"] == "out in -> in out"


@pytest.mark.parametrize(
    ("rename", "text"),
    [
        (
            {"c": "params.left"},
            "rename: 'c' selects nothing, in the source or in the Module; there are 'a.weight',"
            " 'a.bias', 'a', ...",
        ),
        (
            {"a": "params.lift"},
            "rename: 'a' leads from 'a' to 'params.lift', which is not in the Module; the nearest are"
            " 'params.left', 'params.left.bias', 'params.left.kernel'",
        ),
        (
            {"a*": "params.left"},
            "rename: 'a*' and 'params.left' have different numbers of *; each stands for the same"
            " text in both",
        ),
    ],
)
def test_a_rename_that_leads_nowhere(rename, text):
    with pytest.raises(br.BridgeError) as caught:
        br.match(linears(left=(7, 7)), weights(a=(7, 7)), rename)
    assert str(caught.value) == text


def test_everything_that_is_wrong_comes_at_once():
    module = linears(stem=(3, 5), query=(7, 7), key=(7, 7), head=(5, 11), lost=(13, 17))
    source = weights(stem=(3, 5), query=(7, 7), key=(7, 7), head=(5, 13), extra=(2, 3))
    del source["stem.bias"]
    del source["key.weight"]
    source["query.bias"] = source["query.bias"].astype(np.float64)
    with pytest.raises(br.BridgeError) as caught:
        br.load_state_dict(module, source)
    assert str(caught.value) == (
        "these weights do not fit the Module:\n"
        "  stem.bias: missing; params.stem.bias wants out=5\n"
        "  key.weight: missing; params.key.kernel wants out=7, in=7\n"
        "  head.weight: torch keeps it as (out in), so it holds out=13, in=5;"
        " the Module has out=11, in=5\n"
        "  head.bias: torch keeps it as (out), so it holds out=13; the Module has out=11\n"
        "  params.lost: missing: nothing in the source is like its linear with out=17, in=13;"
        " if it has another form there, type rename={name: 'params.lost'}\n"
        "  extra.weight: left over: nothing in the Module takes it; type strict=False to leave it out\n"
        "  extra.bias: left over: nothing in the Module takes it; type strict=False to leave it out\n"
        '  query.bias: holds float64; params.query.bias holds float32: type dtype="source" to keep'
        ' float64, dtype="module" to cast'
    )


def test_a_missing_block_is_named_and_the_others_are_not_moved():
    module = linears(**{f"up_{i}": (7, 7) for i in range(4)})
    source = weights(**{f"h__{i}__up": (7, 7) for i in (0, 1, 3)})
    match = br.match(module, source)
    assert {pair.path[1]: pair.key for pair in match.pairs if pair.path[-1] == "bias"} == {
        "up_0": "h.0.up.bias",
        "up_1": "h.1.up.bias",
        "up_3": "h.3.up.bias",
    }
    assert len(match.problems) == 1
    assert match.problems[0].startswith(
        "params.up_2: missing: nothing in the source is like its linear"
    )


def test_a_matrix_without_a_bias_is_a_table_or_a_linear_layer_as_the_module_has_it():
    tree = {"wte": {"embedding": np.zeros((13, 7))}, "lm_head": {"kernel": np.zeros((7, 13))}}
    layers = (
        Layer(
            ("wte",), "embedding", (Slot("weight", ("params", "wte", "embedding"), "vocab features"),)
        ),
        Layer(("lm_head",), "linear", (Slot("weight", ("params", "lm_head", "kernel"), "in out"),)),
    )
    module = Stub(Opaque(None), Leaves.of(tree), Leaves.of({}), layers)
    source = {"tok_embeddings.weight": np.zeros((13, 7)), "head.weight": np.ones((13, 7))}
    match = br.match(module, source)
    assert {pair.key: str(pair.translation) for pair in match.pairs} == {
        "tok_embeddings.weight": "vocab features",
        "head.weight": "out in -> in out",
    }


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs, outputs):
        self.weight = br.ParamInit((inputs, outputs), jax.nn.initializers.zeros)
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.zeros)


class Net(br.Module):
    blocks: list[br.Module]
    scale: br.Parameter
    count: br.State

    def __init__(self):
        self.blocks = [Dense(5, 5), Dense(5, 5)]
        self.scale = br.ParamInit((), jax.nn.initializers.zeros)
        self.count = 0


def test_the_arrays_of_ones_own_modules_are_loaded_as_they_are_by_path():
    random = np.random.default_rng(0)
    source = {
        "blocks.1.weight": random.normal(size=(5, 5)).astype(np.float32),
        "blocks.0.weight": random.normal(size=(5, 5)).astype(np.float32),
        "blocks.1.bias": np.ones(5, np.float32),
        "blocks.0.bias": np.zeros(5, np.float32),
        "scale": np.float32(3),
    }
    module = br.load_state_dict(Net(), source)
    np.testing.assert_array_equal(module.blocks[1].weight, source["blocks.1.weight"])
    assert module.scale == 3
    assert module.scale.shape == ()
    assert module.count == 0


class Squares(nn.Module):
    """A square matrix of one's own, of which nobody knows how it is used."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.normal(), (7, 7))


@pytest.mark.parametrize("live", [True, False])
def test_a_square_array_of_ones_own_is_not_guessed(live):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(7, 7, bias=False)
    module = br.from_linen(Squares()).init(jax.random.key(0), np.ones((2, 7), np.float32))
    match = br.match(module, layer if live else layer.state_dict())
    assert match.problems == (
        "params.kernel: weight may lie as it is or turned: two of its axes have one size, and nothing"
        " tells which is which; type inputs=(...) with a live model, whose forward tells, or type"
        " rename={'weight': 'params.kernel'} to load it as it is",
    )
    assert br.match(module, layer, rename={"weight": "params.kernel"}).complete
    assert br.match(module, layer, inputs=(np.ones((2, 7), np.float32),)).complete


def test_a_square_array_of_a_live_layer_is_not_loaded_as_it_is_by_its_path():
    torch = pytest.importorskip("torch")
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)])
    model.scale = torch.nn.Parameter(torch.ones(()))
    assert br.match(Net(), model.state_dict()).complete
    problems = br.match(Net(), model).problems
    assert [problem.partition(":")[0] for problem in problems] == ["blocks.0.weight", "blocks.1.weight"]


def test_an_own_array_of_another_shape():
    source = {"scale": np.zeros(3, np.float32)}
    match = br.match(Net(), source)
    assert "scale: has shape (3,); scale has ()" in match.problems


def test_a_shared_array_is_loaded_once():
    module = br.tie(Net().init(jax.random.key(0)), "blocks.1.weight", "blocks.0.weight")
    source = {f"blocks.{i}.bias": np.full(5, i, np.float32) for i in range(2)}
    source |= {"blocks.0.weight": np.ones((5, 5), np.float32), "scale": np.float32(1)}
    loaded = br.load_state_dict(module, source)
    assert loaded.at["blocks.1.weight"].get().sum() == 25


def test_a_plan_prints_as_a_table():
    module, source = linears(stem=(3, 5), q=(7, 7)), weights(stem=(3, 5), query=(7, 7))
    source["bn.num_batches_tracked"] = np.int64(3)
    text = str(br.match(module, source))
    assert text == (
        "key           path                axes              shape  evidence\n"
        "------------  ------------------  ----------------  -----  "
        "-------------------------------------------------\n"
        "stem.weight   params.stem.kernel  out in -> in out  3x5    "
        "no other of this kind and size; names share stem\n"
        "stem.bias     params.stem.bias    out               5      "
        "no other of this kind and size; names share stem\n"
        "query.weight  params.q.kernel     out in -> in out  7x7    "
        "no other of this kind and size; names share query\n"
        "query.bias    params.q.bias       out               7      "
        "no other of this kind and size; names share query\n"
        "bn.num_batches_tracked: not loaded, counts the training batches; evaluation does not read it\n"
        "4 arrays find their places."
    )


def test_one_array_and_one_problem_are_in_the_singular():
    dense = nn.Dense(5, use_bias=False)
    module = br.from_linen(dense).init(jax.random.key(0), np.ones((2, 3), np.float32))
    text = str(br.match(module, {"fc.weight": np.ones((5, 3)), "rest": np.ones(7)}))
    assert text.splitlines()[-3:-1] == ["1 array finds its place.", "1 problem:"]


def test_eps_is_compared_where_the_source_is_a_model():
    torch = pytest.importorskip("torch")
    nn = pytest.importorskip("flax.linen")
    module = br.from_linen(nn.LayerNorm()).init(jax.random.key(0), np.ones((3, 7), np.float32))
    layer = torch.nn.LayerNorm(7)
    with pytest.raises(br.BridgeError) as caught:
        br.load_state_dict(module, torch.nn.Sequential(layer))
    assert str(caught.value) == (
        "these weights do not fit the Module:\n"
        "  params: eps is 1e-06, and 1e-05 in 0: build the model with 1e-05, or type strict=False to"
        " keep 1e-06"
    )
    br.load_state_dict(module, layer, strict=False)
    assert br.match(module, layer.state_dict()).complete


def test_a_model_wrapped_with_its_variables_shows_its_layers_in_init():
    nn = pytest.importorskip("flax.linen")
    x = np.ones((3, 5), np.float32)
    model = nn.Dense(7)
    variables = model.init(jax.random.key(0), x)
    module = br.from_linen(model, variables)
    source = weights(fc=(5, 7))
    with pytest.raises(br.BridgeError) as caught:
        br.load_state_dict(module, source)
    assert str(caught.value) == (
        "the root module was wrapped with its variables, and which layers they belong to shows only in"
        " a call; type module = module.init(key, *sample) once: it changes no array"
    )
    seen = module.init(jax.random.key(1), x)
    np.testing.assert_array_equal(seen.params["kernel"], variables["params"]["kernel"])
    assert br.load_state_dict(seen, source)(x)[0, 0] == 6


def test_what_is_no_module():
    with pytest.raises(WeightsError) as caught:
        br.load_state_dict(nn.Dense(3), {"weight": np.ones((3, 5), np.float32)})
    assert str(caught.value) == (
        "weights go into a bridge.Module; a Dense was given: a model of a library becomes one by"
        " bridge.wrap(model)"
    )


def test_a_model_that_has_seen_no_input():
    nn = pytest.importorskip("flax.linen")
    with pytest.raises(br.BridgeError) as caught:
        br.match(br.from_linen(nn.Dense(7)), weights(fc=(5, 7)))
    assert str(caught.value) == (
        "the root module has no shapes before it has seen an input; type"
        " module = module.init(key, *sample) first"
    )
