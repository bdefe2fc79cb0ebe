"""Work and memory in proportion to the leaves, for trees of any size: counted, never timed."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bridge as br
import bridge.core.fitting as fitting
import bridge.core.paths as paths
import bridge.core.storage as storage
import bridge.weights.plans as plans
from bridge.core.manifest import Manifest
from bridge.core.narrowing import narrowed
from bridge.core.translation import Atom, coverage, translation
from bridge.weights.following import followed
from bridge.weights.sources import open_source
from bridge.weights.targets import targets_of
from bridge.weights.tensors import Source

for needed in ("flax", "haiku", "equinox"):
    pytest.importorskip(needed)

from benchmarks import scale, scale_files, scale_models  # noqa: E402 - they need these

# So much more than the ratio of the leaves may be done for the larger of two trees.
SLACK = 1.15
SIZES = scale_models.Sizes(layers=10, hidden=22, heads=2, kv_heads=1, ffn=13, vocab=17, experts=11)
LARGER = {
    "deeper": dataclasses.replace(SIZES, layers=20),
    "wider": dataclasses.replace(SIZES, experts=24),
}


@dataclasses.dataclass
class Case:
    """A module without numbers, checkpoints for it, and what is made of them beforehand."""

    module: br.Module
    source: Source

    def __post_init__(self):
        self.leaves = len(jax.tree.leaves(self.module))
        self.match = br.match(self.module, self.source)
        self.targets = targets_of(self.module)
        self.flat, _ = storage.flat(self.module)
        self.manifest = Manifest.of(self.module, {})

    def renamed(self, name):
        return Source({name(key, number): one for number, (key, one) in enumerate(self.tensors)})

    @property
    def tensors(self):
        return self.source.tensors.items()

    def reshaped(self, shape):
        made = {
            key: dataclasses.replace(one, shape=shape(one.shape, n))
            for n, (key, one) in enumerate(self.tensors)
        }
        return Source(made)

    def astray(self):
        """The plan with every place another one."""
        pairs = [dataclasses.replace(one, path=("zzz", *one.path)) for one in self.match.pairs]
        return dataclasses.replace(self.match, pairs=tuple(pairs))

    def misfits(self, name=lambda key: key):
        stored = {name(paths.join(place)): leaf for place, leaf in self.flat.items()}
        modules = {name(place): module for place, module in self.manifest.modules.items()}
        manifest = dataclasses.replace(self.manifest, modules=modules)
        return fitting.misfits(stored, manifest, self.module, self.flat, ())


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}
    for name, sizes in {"small": SIZES, **LARGER}.items():
        index = scale_files.write_sparse(tmp_path_factory.mktemp("sparse"), scale_models.shapes(sizes))
        made[name] = Case(scale_models.abstract("equinox", sizes), open_source(index))
    return made


def work(act):
    """How many lines run, each round of a comprehension among them: calls would hide those."""
    count = 0

    def step(_frame, event, _):
        nonlocal count
        count += event == "line"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def scrambled(key, number):
    return f"layer_{number * 7919 % 9973:04}_{'abcdefgh'[number % 8]}.weight"


STEPS = {
    "match": lambda case: br.match(case.module, case.source),
    "names that tell nothing": lambda case: br.match(case.module, case.renamed(scrambled)),
    "sizes that do not fit": lambda case: br.match(
        case.module, case.reshaped(lambda shape, _: tuple(n + 1 for n in shape))
    ),
    "every size another": lambda case: br.match(
        case.module, case.reshaped(lambda shape, number: tuple(n + number for n in shape))
    ),
    "plan to text and back": lambda case: plans.parsed(plans.text_of(case.match)),
    "plan followed": lambda case: followed(case.match, case.targets, case.source),
    "table of a plan": lambda case: case.match.to_table(),
    "plan printed": lambda case: str(case.match),
    "repr": lambda case: repr(case.module),
    "summary": lambda case: case.module.summary(),
    "flattened": lambda case: storage.flat(case.module),
    "restore that fits": lambda case: case.misfits(),
    "restore that does not": lambda case: case.misfits(lambda key: f"zzz.{key}"),
}


@pytest.mark.parametrize("step", STEPS)
def test_work_grows_as_the_leaves_do(cases, step):
    grows(work, STEPS[step], cases["small"], cases["deeper"])


@pytest.mark.parametrize("step", ["match", "plan followed"])
def test_work_grows_as_the_leaves_do_with_more_experts_too(cases, step):
    grows(work, STEPS[step], cases["small"], cases["wider"])


@pytest.mark.parametrize("step", ["match", "plan followed"])
def test_memory_grows_as_the_leaves_do(cases, step):
    grows(scale.peak, STEPS[step], cases["small"], cases["deeper"])


def grows(count, step, small, large):
    step(small)  # what is remembered by kind of layer is there then
    one, two = (count(lambda case=case: step(case)) for case in (small, large))
    assert two / one < SLACK * large.leaves / small.leaves


class Table(br.Module):
    arrays: dict[str, br.Parameter]


def test_work_grows_as_the_arrays_do_where_each_has_a_size_of_its_own():
    def matched(count):
        shapes = {f"row{number}": (number + 2, number + 3) for number in range(count)}
        module = Table({name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()})
        source = {f"other.{name}": np.empty(shape, "float32") for name, shape in shapes.items()}
        opened = open_source(source)
        assert len(br.match(module, opened).pairs) == count
        return work(lambda: br.match(module, opened))

    assert matched(400) / matched(200) < SLACK * 2


def test_a_model_of_70_billion_parameters_is_matched_without_a_number(tmp_path):
    module = scale_models.abstract("equinox", scale_models.LLAMA)
    assert sum(leaf.size for leaf in jax.tree.leaves(module)) == 68_976_648_192
    index = scale_files.write_sparse(tmp_path, scale_models.shapes(scale_models.LLAMA))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) > 137e9
    before = jax.live_arrays()  # held, so that none of another test is collected meanwhile
    match = br.match(module, index)
    assert (match.complete, len(match.pairs)) == (True, 723)
    assert {*map(id, jax.live_arrays())} == {*map(id, before)}
    assert scale.peak(lambda: br.match(module, index)) < 8e6  # its smallest matrix has 16


def stacked(match, layers):
    """The plan for a model whose layers are one array for each part, from that for one by one."""
    pairs = []
    for pair in match.pairs:
        if "layers" in pair.path:
            place = pair.path.index("layers") + 1
            pick = (Atom(None, 1, layers, int(pair.path[place])),)
            turned = dataclasses.replace(pair.translation, target=(pick, *pair.translation.target))
            path = (*pair.path[:place], *pair.path[place + 1 :])
            pair = dataclasses.replace(pair, path=path, translation=turned)
        pairs.append(pair)
    return dataclasses.replace(match, pairs=tuple(pairs))


def test_a_plan_fills_a_stacked_model_from_its_layers():
    sizes = scale_models.Sizes(layers=3, hidden=8, heads=2, kv_heads=1, ffn=13, vocab=17)
    source = {
        key: np.random.default_rng(n).normal(size=shape).astype(scale_models.DTYPE)
        for n, (key, shape) in enumerate(scale_models.shapes(sizes))
    }
    one_by_one = scale_models.abstract("equinox", sizes)
    plan = stacked(br.match(one_by_one, source), sizes.layers)
    assert plans.parsed(plans.text_of(plan)) == plan
    module = br.load_state_dict(scale_models.abstract("equinox", sizes, True), source, plan=plan)
    weight = module.at["params.layers.mlp.up_proj.weight"].get()
    for number in range(sizes.layers):
        stored = source[f"model.layers.{number}.mlp.up_proj.weight"]
        np.testing.assert_array_equal(weight[number], stored)


def test_a_plan_for_stacked_layers_is_checked_without_memory_for_their_numbers(tmp_path):
    sizes = scale_models.LLAMA
    source = open_source(scale_files.write_sparse(tmp_path, scale_models.shapes(sizes)))
    plan = stacked(br.match(scale_models.abstract("equinox", sizes), source), sizes.layers)
    targets = targets_of(scale_models.abstract("equinox", sizes, True))
    assert not followed(plan, targets, source).complaints()
    assert scale.peak(lambda: followed(plan, targets, source)) < 20e6
    less = dataclasses.replace(plan, pairs=plan.pairs[:-1])
    (told,) = followed(less, targets, source).problems
    assert "the plan leaves" in told


def test_only_the_first_of_many_missing_names_are_looked_for(cases, monkeypatch):
    searches = []
    near = difflib.get_close_matches
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda *a, **k: searches.append(a) or near(*a, **k)
    )
    lines = followed(cases["small"].astray(), cases["small"].targets, cases["small"].source).problems
    missing = [line for line in lines if "the Module has none" in line]
    assert len(missing) == cases["small"].leaves
    assert len(searches) == 4
    assert missing[0] == (
        "zzz.params.embed_tokens.weight: the plan fills it, and the Module has none; the nearest are"
        " 'params.embed_tokens.weight', 'params.lm_head.weight',"
        " 'params.norm.weight'"
    )
    assert missing[4] == (
        "zzz.params.layers.0.self_attn.o_proj.weight: the plan fills it, and the Module has none"
    )


def test_a_path_is_under_a_place_or_is_it():
    places = {("a", "b"), ("c",)}
    found = [
        path
        for path in [(), ("a",), ("a", "b"), ("a", "b", "d"), ("c", "e")]
        if paths.under(path, places)
    ]
    assert found == [("a", "b"), ("a", "b", "d"), ("c", "e")]
    assert paths.outermost([("a", "b"), ("a", "b", "d"), ("c",), ("a", "b"), ("a",)]) == [
        ("a", "b"),
        ("c",),
        ("a",),
    ]


@pytest.mark.parametrize("spec", [P("host", "device"), P("device", "host"), P(None, "device"), P()])
def test_the_rows_that_are_counted_hold_what_a_device_gets(spec):
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("host", "device"), axis_types=kinds)
    turned = translation("out in", "in out", (8, 24))
    stored = np.arange(192).reshape(24, 8)
    array = jax.device_put(stored.T, NamedSharding(mesh, spec))
    for device in mesh.devices.flat:
        (box,) = scale_files.boxes(array.sharding, array.shape, [device])
        part = narrowed(turned, box)
        assert part is not None
        starts, length = scale_files.runs(part)
        rows = stored.ravel()[starts[:, None] + np.arange(length)]
        (held,) = (one.data for one in array.addressable_shards if one.device == device)
        assert sorted(rows.ravel()) == sorted(np.ravel(held))
    held = scale_files.boxes(array.sharding, array.shape, mesh.devices[0])
    assert len(held) == len(
        {str(one.index) for one in array.addressable_shards if one.device in mesh.devices[0]}
    )


@pytest.mark.parametrize("shape", [(6, 4), (6, 0), (1, 4)])
def test_what_translations_fill_is_counted_as_if_each_number_was(shape):
    targets = ["(0of3 out) in", "(2of3 out) in", "(1of3 out) -in", "(0of3 out) in"]
    targets = targets if shape[0] == 6 else ["0of1 in", "0of1 in"]
    for count in range(1, len(targets) + 1):
        several = [
            translation("(out in)" if shape[0] == 6 else "in", one, shape) for one in targets[:count]
        ]
        counted = np.zeros(shape, int)
        for one in several:
            filled = np.zeros(shape, int)
            one.put(np.ones(one.source_shape, int), filled)
            counted += filled
        wanted = ((counted == 0).sum(), (counted > 1).sum(), counted.size)
        assert coverage(several) == wanted


def test_pages_are_counted_once():
    starts, length = np.array([8100, 0, 4000, 40_000]), 200
    touched = {place // scale_files.PAGE for start in starts for place in range(start, start + length)}
    assert scale_files.pages(starts, length) == len(touched) == 4


def test_the_page_has_a_place_for_each_table():
    page = (Path(scale.__file__).parents[1] / "docs" / "scale.md").read_text()
    for name in (*scale.TABLES, "hosts", "machine"):
        assert "| 7 |" in scale.replaced(page, name, scale.written([{"leaves": 7}]))
    with pytest.raises(SystemExit, match="the page has no place for growth"):
        scale.replaced("nothing", "growth", "")
