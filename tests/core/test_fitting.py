import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import bridge as br


class Dense(br.Module):
    kernel: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs, outputs, dtype=jnp.float32):
        self.kernel = jnp.ones((inputs, outputs), dtype)
        self.bias = jnp.zeros(outputs, dtype)


class Wide(Dense):
    pass


class Dropout(br.Module):
    rate: float = 0.5
    options: dict = {}  # noqa: RUF012 - a static field with a default


class Net(br.Module):
    layers: list[br.Module]
    drop: br.Module
    name: str = "net"


class Count(br.Module):
    steps: br.State
    lazy: br.Parameter

    def __init__(self):
        self.steps = jnp.zeros((), jnp.int32)
        self.lazy = br.ParamInit((3,), jax.nn.initializers.ones)


class Trained(br.Module):
    steps: br.Parameter


class Carried(br.Module):
    steps: br.State


def net(**changes):
    return Net(**{"layers": [Dense(3, 5), Dense(5, 7)], "drop": Dropout(), **changes})


def square(tied=False):
    module = net(layers=[Dense(5, 5), Dense(5, 5)])
    return br.tie(module, "layers.1.kernel", "layers.0.kernel") if tied else module


def shared(owner=0):
    layers = [Dense(5, 5), Dense(5, 5)]
    return net(layers=[*layers, layers[owner]])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def refusal(path, like, **options):
    with pytest.raises(br.BridgeError) as caught:
        br.load(path, like, **options)
    return str(caught.value)


HEAD = "{path} does not fit like, and nothing was loaded:\n  "
END = "\nBuild like as the saved tree was built"
KEEP = END + "; to load all the same and keep what like has, add keep_static={keep}"
INIT = (
    "is not initialised; type module = module.init(key, *sample), or optimizer = optimizer.init(module)"
)
SHARE = "; share one module object at both places, or use bridge.tie, as it was when saved"

MISFITS = {
    "shape": (
        lambda: {"m": net()},
        lambda: {"m": net(layers=[Dense(3, 5), Dense(5, 11)])},
        "m.layers.1.bias: the file has float32[7], like has float32[11]\n"
        "  m.layers.1.kernel: the file has float32[5, 7], like has float32[5, 11]" + END,
    ),
    "dtype": (
        lambda: net(),
        lambda: net(layers=[Dense(3, 5), Dense(5, 7, jnp.bfloat16)]),
        "layers.1.bias: the file has float32[7], like has bfloat16[7]\n"
        "  layers.1.kernel: the file has float32[5, 7], like has bfloat16[5, 7]" + END,
    ),
    "missing and unexpected": (
        lambda: {"module": net(), "key": jax.random.key(0)},
        lambda: {"module": net(), "rng": jax.random.key(0)},
        "key: the file has key<fry>[], like has nothing there\n"
        "  rng: the file has nothing there, like has key<fry>[]" + END,
    ),
    "a single array for a tree": (
        lambda: {"a": jnp.ones(3)},
        lambda: jnp.ones(3),
        "the tree itself: the file has nothing there, like has float32[3]\n"
        "  a: the file has float32[3], like has nothing there" + END,
    ),
    "not an array": (
        lambda: [jnp.ones(3)],
        lambda: [3],
        "0: the file has float32[3], like has a int, which is no array" + END,
    ),
    "implementation of a key": (
        lambda: (jax.random.key(0, impl="rbg"),),
        lambda: (jax.random.key(0),),
        "0: the file has key<rbg>[], like has key<fry>[]" + END,
    ),
    "typed and legacy": (
        lambda: (jax.random.key(0), jax.random.PRNGKey(0)),
        lambda: (jax.random.PRNGKey(0), jax.random.key(0)),
        "0: the file has key<fry>[], like has uint32[2]; turn like's key with jax.random.key_data or"
        " jax.random.wrap_key_data\n"
        "  1: the file has uint32[2], like has key<fry>[]; turn like's key with jax.random.key_data or"
        " jax.random.wrap_key_data" + END,
    ),
    "attached key": (
        lambda: {"module": net().new_state(jax.random.key(0))},
        lambda: {"module": net()},
        "module._rng: the file has key<fry>[], like has nothing there; module.new_state(key) attaches"
        " keys" + END,
    ),
    "another layer": (
        lambda: net(layers=[Dense(3, 5), Dropout()]),
        lambda: net(layers=[Dense(3, 5)]),
        "layers.1: the file has the module Dropout, like has <nothing>" + END,
    ),
    "static value": (
        lambda: net(name="a", drop=Dropout(0.25)),
        lambda: net(name="b", drop=Dropout(0.5)),
        'drop.rate: the file has 0.25, like has 0.5\n  name: the file has "a", like has "b"'
        + KEEP.replace("{keep}", "['drop.rate', 'name']"),
    ),
    "static value inside another": (
        lambda: Dropout(0.5, {"axes": (0, 1), "key": 1}),
        lambda: Dropout(0.5, {"axes": (0, 2), "other": 1.0}),
        "options.axes.1: the file has 1, like has 2\n"
        '  options.key: the file has 1, like has "<nothing>"\n'
        '  options.other: the file has "<nothing>", like has 1.0'
        + KEEP.replace("{keep}", "['options.axes.1', 'options.key', 'options.other']"),
    ),
    "static values of other types": (
        lambda: [Dropout(1), Dropout(True), Dropout(0.0), Dropout(0.0)],
        lambda: [Dropout(1.0), Dropout(1), Dropout(-0.0), Dropout("a" * 90)],
        "0.rate: the file has 1, like has 1.0\n"
        "  1.rate: the file has true, like has 1\n"
        "  2.rate: the file has 0.0, like has -0.0\n"
        f'  3.rate: the file has 0.0, like has "{"a" * 56}...' + KEEP.replace("{keep}", "['*']"),
    ),
    "function": (
        lambda: net(drop=jax.nn.relu),
        lambda: net(drop=jax.nn.gelu),
        'drop.function: the file has "<function relu>", like has "<function gelu>"'
        + KEEP.replace("{keep}", "['drop.function']"),
    ),
    "class": (
        lambda: net(),
        lambda: net(layers=[Dense(3, 5), Wide(5, 7)]),
        'layers.1.__class__: the file has "Dense", like has "Wide"'
        + KEEP.replace("{keep}", "['layers.1.__class__']"),
    ),
    "kind": (
        lambda: Trained(1.0),
        lambda: Carried(1.0),
        '__class__: the file has "Trained", like has "Carried"\n'
        '  steps: the file has "parameter", like has "state"'
        + KEEP.replace("{keep}", "['__class__', 'steps']"),
    ),
    "tie in the file": (
        lambda: {"m": square(tied=True)},
        lambda: {"m": square()},
        "m.layers.1.kernel: the file shares it with m.layers.0.kernel, like does not share it"
        + SHARE
        + END,
    ),
    "tie in like": (
        lambda: square(),
        lambda: square(tied=True),
        "layers.1.kernel: the file does not share it, like shares it with layers.0.kernel"
        + SHARE
        + END,
    ),
    "shared module": (
        lambda: shared(),
        lambda: net(layers=[Dense(5, 5) for _ in range(3)]),
        "layers.2: the file shares it with layers.0, like does not share it" + SHARE + END,
    ),
    "another owner": (
        lambda: shared(),
        lambda: shared(1),
        "layers.2: the file shares it with layers.0, like shares it with layers.1" + SHARE + END,
    ),
    "uninitialised": (
        lambda: {"m": Count().init(jax.random.key(0)), "o": br.Optimizer(optax.sgd(1.0)).init(net())},
        lambda: {"m": Count(), "o": br.Optimizer(optax.sgd(1.0))},
        f"m.lazy: like {INIT}\n  o.opt_state: like {INIT}" + END,
    ),
    "everything together": (
        lambda: {
            "m": net(layers=[Dense(3, 5), Dense(5, 7), Dropout()], drop=Dropout(0.1)),
            "key": jax.random.key(0),
        },
        lambda: {"m": net(layers=[Wide(3, 5), Dense(5, 11)]), "step": jnp.ones(())},
        "key: the file has key<fry>[], like has nothing there\n"
        "  m.drop.rate: the file has 0.1, like has 0.5\n"
        '  m.layers.0.__class__: the file has "Dense", like has "Wide"\n'
        "  m.layers.1.bias: the file has float32[7], like has float32[11]\n"
        "  m.layers.1.kernel: the file has float32[5, 7], like has float32[5, 11]\n"
        "  m.layers.2: the file has the module Dropout, like has <nothing>\n"
        "  step: the file has nothing there, like has float32[]"
        + KEEP.replace("{keep}", "['m.drop.rate', 'm.layers.0.__class__']"),
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_told(path, name):
    saved, like, wanted = MISFITS[name]
    br.save(path, saved())
    assert refusal(path, like()) == HEAD.format(path=path) + wanted


@pytest.mark.parametrize(
    "keep_static", ["*", "m.*", ["m.drop", "m.layers.?"], ["m.drop.rate", "m.layers.0.__class__"]]
)
def test_kept_statics_are_those_of_like(path, keep_static):
    br.save(path, {"m": net(layers=[Dense(3, 5), Dense(5, 7)], drop=Dropout(0.1))})
    like = {"m": net(layers=[Wide(3, 5), Dense(5, 7)]).at["layers.0.kernel"].set(jnp.zeros((3, 5)))}
    loaded = br.load(path, like, keep_static=keep_static)["m"]
    assert (loaded.drop.rate, type(loaded.layers[0])) == (0.5, Wide)
    np.testing.assert_array_equal(loaded.layers[0].kernel, np.ones((3, 5)))


def test_a_static_that_is_not_kept_is_told_alone(path):
    br.save(path, net(name="a", drop=Dropout(0.1)))
    wanted = 'name: the file has "a", like has "net"' + KEEP.replace("{keep}", "['name']")
    assert refusal(path, net(), keep_static=["drop.rate"]) == HEAD.format(path=path) + wanted


def test_statics_of_like_that_are_kept_excuse_no_array(path):
    br.save(path, Dense(3, 5))
    assert "kernel: the file has float32[3, 5], like has float32[3, 7]" in refusal(
        path, Dense(3, 7), keep_static="*"
    )


def test_a_file_of_another_hand_leads_to_load_state_dict(path):
    save_file({"weight": np.ones((3, 5), np.float32)}, path)
    assert refusal(path, net()) == (
        f"{path} is a safetensors file, but none that bridge.save has written; type"
        f" module = bridge.load_state_dict(module, {str(path)!r}) to load weights by name"
    )


def rewritten(path, text):
    save_file({"a": np.ones(3, np.float32), "k": np.ones(2, np.uint32)}, path, {"bridge": text})


GOOD = {"version": 1, "modules": {}, "kinds": {}, "shared": {}, "keys": {}}


def test_another_version_is_refused(path):
    rewritten(path, json.dumps({**GOOD, "version": 2}))
    assert refusal(path, {}) == (
        f"{path} is written in version 2 of the format, and this bridge reads version 1; install the"
        " bridge that wrote it, or a newer one"
    )


DAMAGED = {
    "no JSON": "{",
    "too deep": "[" * 100_000,
    "no object": "[]",
    "no version": json.dumps({"modules": {}}),
    "a part is missing": json.dumps({name: GOOD[name] for name in GOOD if name != "keys"}),
    "a part too many": json.dumps({**GOOD, "more": {}}),
    "a part is a list": json.dumps({**GOOD, "shared": []}),
    "a module is a list": json.dumps({**GOOD, "modules": {"": []}}),
    "an owner is a number": json.dumps({**GOOD, "shared": {"a": 3}}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_description_is_refused(path, name):
    rewritten(path, DAMAGED[name])
    assert refusal(path, {}) == f"{path} is damaged: its description is not what save writes"


def test_keys_that_cannot_be_made_are_refused(path):
    rewritten(path, json.dumps({**GOOD, "keys": {"a": "threefry2x32", "k": "dice"}}))
    like = {"a": jax.random.key(0), "k": jax.random.key(0)}
    assert refusal(path, like) == HEAD.format(path=path) + (
        "a: the file has float32[3] for a key of 'threefry2x32', which jax does not make of it, like"
        " has key<fry>[]\n"
        "  k: the file has uint32[2] for a key of 'dice', which jax does not make of it, like has"
        " key<fry>[]" + END
    )


def test_a_file_that_is_not_there_is_told(path):
    assert refusal(path, {}) == f"{path} cannot be read: No such file or directory"
    assert refusal(path.parent, {}) == f"{path.parent} cannot be read: Is a directory"
