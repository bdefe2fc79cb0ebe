"""Plans in files, and loading by them."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge as br
from bridge.core.layers import Layer, Slot
from bridge.core.leaves import Leaves
from bridge.core.opaque import Opaque
from bridge.core.wrapped import Wrapped
from bridge.weights import plans


class Stub(Wrapped):
    """A model of no library: arrays by path, and the layers that they belong to."""


def net(count=2):
    """A module of norms that count their steps, and linear layers, kept as (in out)."""
    params, state, layers = {}, {}, []
    for number in range(count):
        params[f"dense_{number}"] = {"w": jnp.zeros((5, 7)), "b": jnp.zeros(7)}
        state[f"dense_{number}"] = {"steps": jnp.zeros((), jnp.int32)}
        where = f"dense_{number}"
        slots = (
            Slot("weight", ("params", where, "w"), "in out"),
            Slot("bias", ("params", where, "b"), "out"),
            Slot("count", ("state", where, "steps"), "", value=3),
        )
        layers.append(Layer((where,), "linear", slots))
    return Stub(Opaque(None), Leaves.of(params), Leaves.of(state), tuple(layers))


def weights(count=2):
    random = np.random.default_rng(0)
    shapes = {f"fc.{n}.{part}": (7, 5)[: 2 - (part == "bias")] for n in range(count) for part in PARTS}
    return {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


PARTS = ("weight", "bias")


@pytest.fixture
def path(tmp_path):
    br.match(net(), weights()).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def edited(path, change):
    """The plan's file with a change in what it says."""
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    return path


def refused(*args, **options):
    with pytest.raises(br.BridgeError) as caught:
        br.load_state_dict(*args, **options)
    return str(caught.value)


def test_a_plan_is_a_line_for_each_pair(path):
    text = path.read_text()
    assert text.splitlines()[:5] == [
        "{",
        '  "format": "bridge plan",',
        '  "version": 1,',
        '  "pairs": [',
        '    {"key": "fc.0.weight", "path": "params.dense_0.w", "from": "out=7 in=5",'
        ' "to": "in=5 out=7", "evidence": "no other of this kind and size; number 0"},',
    ]
    assert json.loads(text)["constants"] == {"state.dense_0.steps": 3, "state.dense_1.steps": 3}


@pytest.mark.parametrize("given", ["path", "text", "match"])
def test_a_plan_loads_as_matching_does(path, given):
    plan = {"path": path, "text": str(path), "match": br.Match.load(path)}[given]
    by_plan, by_match = (
        br.load_state_dict(net(), weights(), **options) for options in ({"plan": plan}, {})
    )
    for one, other in zip(jax.tree.leaves(by_plan), jax.tree.leaves(by_match), strict=True):
        np.testing.assert_array_equal(one, other)


def test_everything_about_a_match_is_kept(tmp_path):
    source = {**weights(3), "fc.0.num_batches_tracked": np.zeros((), np.int64), "extra": np.ones(3)}
    del source["fc.1.bias"]
    source["tied"] = source["fc.0.weight"]
    match = br.match(net(), source)
    assert match.unused
    assert match.left_over
    assert match.problems
    assert match.ties == {"tied": "fc.0.weight"}
    match.save(tmp_path / "plan.json")
    assert br.Match.load(tmp_path / "plan.json") == match


def test_a_source_and_a_module_that_the_plan_is_not_for(path):
    source = weights()
    source["fc.2.weight"] = source.pop("fc.1.weight")
    source["fc.0.bias"] = np.zeros(11, np.float32)
    assert refused(net(3), source, plan=path) == (
        "these weights do not fit the Module:\n"
        "  fc.0.bias: has shape (11,); the plan takes (7,) to params.dense_0.b\n"
        "  fc.1.weight: missing; the plan takes it to params.dense_1.w; the nearest are 'fc.2.weight',"
        " 'fc.0.weight', 'fc.1.bias'\n"
        "  params.dense_2.w: the plan leaves it without weights\n"
        "  params.dense_2.b: the plan leaves it without weights\n"
        "  state.dense_2.steps: the plan leaves it without weights\n"
        "  fc.2.weight: left over: the plan takes it nowhere; type strict=False to leave it out"
    )


def test_places_that_the_module_lacks(path):
    assert refused(net(1), weights(), plan=path) == (
        "these weights do not fit the Module:\n"
        "  params.dense_1.w: the plan fills it, and the Module has none; the nearest are"
        " 'params.dense_0.w', 'params.dense_0.b', 'state.dense_0.steps'\n"
        "  params.dense_1.b: the plan fills it, and the Module has none; the nearest are"
        " 'params.dense_0.b', 'params.dense_0.w', 'state.dense_0.steps'\n"
        "  state.dense_1.steps: the plan sets it, and the Module has none; the nearest are"
        " 'state.dense_0.steps', 'params.dense_0.w', 'params.dense_0.b'"
    )


def to(axes, key=0):
    def change(plan):
        plan["pairs"][key] |= axes

    return change


def without(name):
    return lambda plan: plan.pop(name)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            to({"from": "out=7 in=4", "to": "in=4 out=7"}),
            "params.dense_0.w: has shape (5, 7); the plan makes fc.0.weight into (4, 7)",
        ),
        (
            to({"to": "in[0:5]of9 out=7"}),
            "params.dense_0.w: has shape (5, 7); the plan makes fc.0.weight into (9, 7)",
        ),
        (
            to({"from": "out=7 in[0:3]of5", "to": "in[1:4]of5 out=7"}),
            "params.dense_0.w: the plan leaves 14 of its 35 numbers without weights",
        ),
        (
            lambda plan: plan["pairs"].append({**plan["pairs"][0], "evidence": "again"}),
            "params.dense_0.w: the plan adds fc.0.weight to itself",
        ),
        (
            lambda plan: plan["pairs"].append(
                {**plan["pairs"][0], "from": "out=7 in[0:2]of5", "to": "in[1:3]of5 out=7"}
            ),
            "params.dense_0.w: the plan fills 14 of its 35 numbers twice",
        ),
        (
            lambda plan: plan["constants"].update({"state.dense_0.steps": True}),
            "state.dense_0.steps: the plan sets it to True; the Module holds int32",
        ),
        (
            lambda plan: plan["ties"].update({"fc.1.bias": "fc.0.bias"}) or plan["pairs"].pop(3),
            "fc.1.bias: is another array than fc.0.bias, and in the plan they are one: make a plan for"
            " this source, or tie them in it",
        ),
    ],
)
def test_a_plan_that_lies(path, change, text):
    lines = refused(net(), weights(), plan=edited(path, change)).splitlines()
    assert lines[0] == "these weights do not fit the Module:"
    assert f"  {text}" in lines


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("format"), 'it does not say "format": "bridge plan"'),
        (lambda plan: plan.update(version=2), "it is of version 2, and this bridge reads 1"),
        (
            without("ties"),
            "it should have the fields constants, differences, format, left_over, pairs, problems,"
            " ties, unused, version; ties is wrong",
        ),
        (lambda plan: plan.update(pairs=3), "pairs is no list"),
        (lambda plan: plan.update(unused={"a": 3}), "unused is no mapping of names to text"),
        (lambda plan: plan.update(constants={"a": "b"}), "constants is no mapping of names to numbers"),
        (lambda plan: plan.update(problems=[3]), "problems is no list of sentences"),
        (
            to({"to": 3}, 1),
            "pair 2 does not tell key, path, from, to, evidence, and these alone",
        ),
        (
            to({"offset": float("nan")}),
            "pair 1 does not tell key, path, from, to, evidence, and these alone",
        ),
        (
            to({"to": "in=5 out"}),
            "pair 1, fc.0.weight: 'out' does not tell an axis and its size",
        ),
        (
            to({"to": "in=5 out=8"}),
            "pair 1, fc.0.weight: the axes 'out=7 in=5' and 'in=5 out=8' do not name the same things,"
            " each once",
        ),
    ],
)
def test_a_broken_plan(path, change, text):
    assert refused(net(), weights(), plan=edited(path, change)) == (
        f"{path} is no plan that Match.save has written: {text}"
    )


@pytest.mark.parametrize("end", [0, 1, 100, 400])
def test_a_plan_that_was_cut_short(path, end):
    path.write_bytes(path.read_bytes()[:end])
    assert f"{path} is no plan that Match.save has written: it is no JSON, or damaged:" in refused(
        net(), weights(), plan=path
    )


PLAN = plans.text_of(br.match(net(), weights()))
SIGNS = st.sampled_from([*'0123456789=-()[]:of ,"{}', "", "e9", "99999999", "1of2", "in=5 ", "null"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PLAN)), st.integers(0, 3), SIGNS), max_size=4))
def test_a_damaged_plan_loads_as_before_or_is_refused(changes):
    text = PLAN
    for place, length, sign in changes:
        text = text[:place] + sign + text[place + length :]
    try:
        loaded = br.load_state_dict(net(), weights(), plan=plans.parsed(text))
    except br.BridgeError:
        return
    shapes = [leaf.shape for leaf in jax.tree.leaves(loaded)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(net())]


def test_what_is_no_plan(tmp_path):
    assert refused(net(), weights(), plan=3) == (
        "a plan is what bridge.match gives, or the path of a file that its save has written; a int was"
        " given"
    )
    path = tmp_path / "plan.json"
    assert refused(net(), weights(), plan=path) == f"{path} cannot be read: No such file or directory"
    path.write_bytes(b"\xff\xfe{")
    assert refused(net(), weights(), plan=path) == f"{path} is no plan: it is no text"


@pytest.mark.parametrize("options", [{"rename": {}}, {"inputs": ()}])
def test_a_plan_leaves_nothing_for_rename_and_inputs(path, options):
    assert refused(net(), weights(), plan=path, **options) == (
        "a plan says where everything goes: leave rename and inputs out"
    )


def test_left_over_keys_may_be_left_out(path):
    source = {**weights(), "head.weight": np.ones((3, 2), np.float32)}
    assert "head.weight: left over: the plan takes it nowhere" in refused(net(), source, plan=path)
    module = br.load_state_dict(net(), source, plan=path, strict=False)
    np.testing.assert_array_equal(module.at["params.dense_1.w"].get(), source["fc.1.weight"].T)


def test_a_part_of_a_key_that_the_plan_takes_nowhere(path):
    change = to({"from": "(1of2 out=7) in=5", "to": "in=5 out=7"})
    source = weights()
    source["fc.0.weight"] = np.ones((14, 5), np.float32)
    assert refused(net(), source, plan=edited(path, change)) == (
        "these weights do not fit the Module:\n"
        "  fc.0.weight: left over: the plan takes 35 of its 70 numbers nowhere; type strict=False"
        " to leave them out"
    )


def test_a_tie_of_the_plan_that_the_source_keeps_apart(tmp_path):
    source = weights()
    source["tied"] = source["fc.0.weight"]
    plan = br.match(net(), source)
    assert plan.complete
    apart = {**source, "tied": source["tied"].copy()}
    br.load_state_dict(net(), apart, plan=plan)
    apart["tied"][0, 0] += 1
    assert refused(net(), apart, plan=plan) == (
        "these weights do not fit the Module:\n"
        "  tied: is another array than fc.0.weight, and in the plan they are one: make a plan for this"
        " source, or tie them in it"
    )


def test_a_second_name_of_an_array_that_is_taken_is_no_key_too_many():
    torch = pytest.importorskip("torch")
    eqx = pytest.importorskip("equinox")
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(5, 7, bias=False)})
    model["other"] = model["one"]
    linear = br.from_equinox(eqx.nn.Linear(5, 7, use_bias=False, key=jax.random.key(0)))
    match = br.match(linear, model, rename={"one": "params"})
    assert match.complete, str(match)
    assert match.ties == {"other.weight": "one.weight"}
    assert list(br.state_dict(linear, like=match)) == ["one.weight", "other.weight"]


def test_a_plan_is_followed_without_torch(path, tmp_path):
    np.savez(tmp_path / "weights.npz", **weights())
    program = """
import sys
sys.modules["torch"] = None
import numpy as np, jax, bridge as br
sys.path.insert(0, sys.argv[1])
from tests.weights.test_plans import net
module = br.load_state_dict(net(), dict(np.load(sys.argv[3])), plan=sys.argv[2])
print(sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(module)) > 10)
"""
    root = str(br.__path__[0]).removesuffix("bridge")
    command = [sys.executable, "-c", program, root, str(path), str(tmp_path / "weights.npz")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.stdout == "True\n", result.stderr
