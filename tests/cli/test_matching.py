"""`bridge match`: the plan, and what is said where file and model do not fit."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import bridge as br
from tests.cli.conftest import state

pytest.importorskip("flax")

PAIRS = """\
key       path                      axes              shape  evidence
0.weight  params.Dense_0.kernel     out in -> in out  5x7    no other of this kind and size
0.bias    params.Dense_0.bias       out               7      no other of this kind and size
1.weight  params.LayerNorm_0.scale  features          7      no other of this kind and size
1.bias    params.LayerNorm_0.bias   features          7      no other of this kind and size
2.weight  params.Dense_1.kernel     out in -> in out  7x3    no other of this kind and size
2.bias    params.Dense_1.bias       out               3      no other of this kind and size

6 arrays find their places.
"""


def changed(folder, **arrays):
    """A file of the net's weights in which some arrays are others, or missing."""
    new = {**state(), **{key.lstrip("_").replace("_", "."): one for key, one in arrays.items()}}
    save_file({key: one for key, one in new.items() if one is not None}, folder / "changed.safetensors")


def test_a_plan_is_printed_and_what_the_model_prints_is_not(bridge):
    assert bridge("match", "net.safetensors", "zoo:net") == (0, PAIRS, "building the net\n")


def test_a_plan_is_saved_and_is_the_json(bridge, folder):
    code, out, _ = bridge("match", "net.safetensors", "zoo:net", "--save", "plan.json", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan.pop("complete") is True
    assert plan == json.loads((folder / "plan.json").read_text())
    assert len(br.Match.load(folder / "plan.json").pairs) == 6


def test_names_settle_what_is_ambiguous(bridge, folder):
    (folder / "twins.py").write_text(
        "import bridge as br, flax.linen as nn, jax, jax.numpy as jnp\n"
        "model = nn.Sequential([nn.Dense(5, use_bias=False), nn.Dense(5, use_bias=False)])\n"
        "def net():\n"
        "    return br.from_linen(model).init(jax.random.key(0), jnp.ones((2, 5)))\n"
    )
    arrays = {key: np.ones((5, 5), np.float32) for key in ("left.weight", "right.weight")}
    save_file(arrays, folder / "twins.safetensors")
    command = "match", "twins.safetensors", "twins:net"
    code, _, err = bridge(*command)
    assert code == 1
    assert "params.layers_0: may be 'left', 'right', and nothing tells which" in err
    settled = "--rename", "left=params.layers_1", "--rename", "right=params.layers_0"
    code, out, _ = bridge(*command, *settled)
    assert code == 0
    assert "right.weight  params.layers_0.kernel" in out


def test_each_place_without_a_partner_has_its_three_nearest_with_shapes(bridge, folder):
    changed(folder, _1_bias=None, _2_weight=np.ones((13, 7), np.float32))
    code, out, err = bridge("match", "changed.safetensors", "zoo:net")
    assert code == 1
    assert out.endswith("\n3 arrays find their places.\n")
    assert err.splitlines() == [
        "building the net",
        "4 problems:",
        "  1.bias: missing; params.LayerNorm_0.bias wants features=7",
        "  params.Dense_1: missing: nothing in the source is like its linear with out=3, in=7; if it"
        " has another form there, type rename={name: 'params.Dense_1'}",
        "  2.bias: left over: nothing in the Module takes it; type strict=False to leave it out",
        "  2.weight: left over: nothing in the Module takes it; type strict=False to leave it out",
        "Without a partner:",
        "  params.LayerNorm_0.bias (7,): nearest are 2.bias (3,), 2.weight (13, 7)",
        "  params.Dense_1.kernel (7, 3): nearest are 2.weight (13, 7), 2.bias (3,)",
        "  params.Dense_1.bias (3,): nearest are 2.bias (3,), 2.weight (13, 7)",
        "  2.bias (3,): nearest are params.Dense_1.bias (3,), params.LayerNorm_0.bias (7,),"
        " params.Dense_1.kernel (7, 3)",
        "  2.weight (13, 7): nearest are params.Dense_1.kernel (7, 3), params.LayerNorm_0.bias (7,),"
        " params.Dense_1.bias (3,)",
        "On the command line rename={a: b} is --rename a=b, and strict=False is convert --no-strict.",
    ]


def test_where_every_key_is_taken_all_of_them_are_candidates(bridge, folder):
    changed(folder, _2_bias=None)
    err = bridge("match", "changed.safetensors", "zoo:net")[2]
    near = "  params.Dense_1.bias (3,): nearest are 1.bias (7,), 1.weight (7,), 0.bias (7,)\n"
    assert near in err


FACTORIES = {
    "zoo:lazy": (
        "the root module has no shapes before it has seen an input; type"
        " module = module.init(key, *sample) first\n"
    ),
    "zoo:number": "zoo:number is 3; a model, or a function that makes one, was wanted\n",
    "zoo:nets": "zoo:nets: there is no 'nets' in it; the nearest are 'net', 'Net'\n",
    "zoo:broken": (
        "zoo:broken raised ValueError: seven is no size\n"
        'To see where, type: python -c "import zoo; zoo.broken()"\n'
    ),
    "zoo": "'zoo' names no factory; type module:factory, such as zoo.nets:resnet\n",
    "rotten:net": (
        "rotten:net raised SyntaxError: '(' was never closed (rotten.py, line 1)\n"
        'To see where, type: python -c "import rotten; rotten.net()"\n'
    ),
    "zoo:rows": (
        "no adapter knows a tuple ((array([[1., 1., 1., 1., 1.],\n"
        "       [1., 1., 1., 1., 1.]], dtype=float32),)); bridge wraps models of Linen, NNX, Haiku,"
        " Equinox, PyTorch. A function of Haiku modules goes to bridge.from_haiku, any other function"
        " to bridge.Function\n"
    ),
}


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_factory_that_makes_no_module_is_a_sentence_and_exit_code_2(factory, bridge, folder):
    (folder / "rotten.py").write_text("(")
    assert bridge("match", "net.safetensors", factory) == (2, "", FACTORIES[factory])


def test_a_module_that_is_not_there_is_looked_for_in_the_current_folder(bridge, folder):
    assert bridge("match", "net.safetensors", "nowhere:net") == (
        2,
        "",
        f"nowhere:net: there is no module 'nowhere' in {folder} or among what is installed\n",
    )


def test_a_rename_without_two_names_is_wrong_usage(bridge):
    code, out, err = bridge("match", "net.safetensors", "zoo:net", "--rename", "a=")
    assert (code, out) == (2, "")
    assert err.endswith("'a=' pairs no names; type --rename encoder.fc=params.Dense_0\n")


def test_a_plan_that_cannot_be_written_is_a_sentence(bridge):
    code, _, err = bridge("match", "net.safetensors", "zoo:net", "--save", "no/plan.json")
    assert code == 2
    assert "no/plan.json cannot be written: No such file or directory" in err


def test_candidates_of_many_are_cut_short(bridge, folder):
    many = {f"more.{n}.weight": np.zeros((11, n + 1), np.float32) for n in range(30)}
    save_file({**state(), **many}, folder / "many.safetensors")
    err = bridge("match", "many.safetensors", "zoo:net")[2]
    assert err.count("nearest are") == 20
    assert "\n  and 10 more\n" in err


def test_a_model_that_meets_an_empty_file_has_no_candidates(bridge, folder):
    save_file({}, folder / "empty.safetensors")
    code, _, err = bridge("match", "empty.safetensors", "zoo:net")
    assert code == 1
    assert "  params.Dense_1.bias (3,): nothing is there\n" in err
