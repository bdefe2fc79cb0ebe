"""apply, the call sugar, modes, transforms around calls, and what calls refuse."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import (
    DroppedStateError,
    FieldError,
    ImmutableError,
    MissingRngError,
    StructureError,
    TraceError,
    UninitialisedError,
)

KEY = jax.random.key(5)
X = jnp.arange(6.0).reshape(2, 3) / 10  # small: tanh at its end has no digits left to compare


class Dense(br.Module):
    w: br.Parameter

    def __init__(self, n_in, n_out):
        self.w = jnp.arange(1.0, 1 + n_in * n_out).reshape(n_in, n_out) / 10

    def __call__(self, x):
        return x @ self.w


class Counter(br.Module):
    """Counts its calls and shows its mode."""

    calls: br.State
    modes: br.State

    def __init__(self):
        self.calls, self.modes = 0, 0

    def __call__(self, x):
        self.calls = self.calls + 1
        self.modes = self.modes + self.training
        return x

    def peek(self, x):
        return x + self.calls


class Drop(br.Module):
    def __call__(self, x):
        if not self.training:
            return x
        return jnp.where(jax.random.bernoulli(self.rng, 0.5, x.shape), x, 0)


class Net(br.Module):
    parts: list[br.Module]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def twice(self, x, *, times=2):
        for _ in range(times):
            x = self(x)
        return x


class Runs(br.Module):
    """Calls what a test gives, with the private copy of its child."""

    child: br.Module
    run: object

    def __call__(self, x):
        return self.run(self.child, x)


def net():
    return Net([Dense(3, 5), Counter(), Drop(), jnp.tanh])


def counts(module):
    return int(module.parts[1].calls), int(module.parts[1].modes)


def identity(f):
    return f


# What a call gives.


def test_apply_gives_the_output_and_the_module_after_it():
    module = net()
    out, after = module.apply(X)
    assert out.tolist() == jnp.tanh(X @ module.parts[0].w).tolist()
    assert (counts(module), counts(after)) == ((0, 0), (1, 0))
    assert jax.tree.structure(after) == jax.tree.structure(module)
    assert after.parts[0] is module.parts[0]


def test_a_call_that_writes_nothing_gives_the_module_itself_back():
    module = Net([Dense(3, 5)])
    out, after = module.apply(X)
    assert after is module
    assert module(X).tolist() == out.tolist()


@pytest.mark.parametrize("method", ["twice", Net.twice, lambda m, x, times=2: m.twice(x, times=times)])
def test_a_method_by_name_or_as_a_function(method):
    _, after = net().apply(X[:, :2], method=lambda m, x: m.parts[1](x))
    assert counts(after) == (1, 0)
    square = Net([Dense(3, 3), Counter()])
    out, after = square.apply(X, times=3, method=method)
    assert int(after.parts[1].calls) == 3
    assert out.shape == (2, 3)


def test_a_method_is_sugar_too():
    module = Counter().apply(X)[1]
    assert module.peek(1) == 2


def test_a_child_called_alone_is_a_root_of_its_own():
    module = net()
    _, child = module.parts[1].apply(X)
    assert int(child.calls) == 1


def test_arguments_named_like_those_of_apply_reach_the_call():
    class Named(br.Module):
        def __call__(self, x, mode, rng):
            return x, mode, rng, self.mode

    assert Named()(3, mode="m", rng="r") == (3, "m", "r", "eval")


def test_states_are_read_as_written_within_the_call():
    class Twice(br.Module):
        n: br.State

        def __call__(self):
            self.n = self.n + 1
            self.n = self.n * 10
            return self.n

    out, after = Twice(2).apply()
    assert (int(out), int(after.n)) == (30, 30)


def test_containers_of_state_and_keys():
    class Carries(br.Module):
        trees: dict[str, list[br.State]]
        key: br.Key

        def __call__(self):
            one, two = self.trees["b"]
            self.trees = {**self.trees, "b": [one + 1, two]}
            self.key, out = jax.random.split(self.key)
            return out

    module = Carries({"b": [1, 2], "a": [3]}, KEY)
    out, after = module.apply()
    assert [int(leaf) for leaf in jax.tree.leaves(after.trees)] == [2, 2, 3]
    assert out == jax.random.split(KEY)[1]
    assert after.key == jax.random.split(KEY)[0]
    assert jax.tree.structure(after) == jax.tree.structure(module)


# Modes.


@pytest.mark.parametrize(
    ("build", "mode", "training"),
    [
        (lambda m: m, None, 0),
        (lambda m: m, "train", 1),
        (lambda m: m.train(), None, 1),
        (lambda m: m.train(), "eval", 0),
        (lambda m: m.train().eval(), None, 0),
        (lambda m: m.train().with_mode(None), None, 0),
        (lambda m: m.at["parts.1"].apply(lambda part: part.eval()), "train", 0),
        (lambda m: m.at["parts.1"].apply(lambda part: part.eval()).train(), None, 0),
        (lambda m: m.at["parts.1"].apply(lambda part: part.train()), "eval", 1),
        (lambda m: m.new_state(KEY), None, 0),
        (lambda m: m.new_state(KEY, "train"), None, 1),
        (lambda m: m.train().new_state(KEY), None, 1),
        (lambda m: m.train().new_state(KEY, "eval"), None, 0),
    ],
)
def test_the_mode_of_a_node(build, mode, training):
    module = build(net())
    for call in (identity, jax.jit):
        _, after = call(lambda m: m.apply(X, rng=KEY, mode=mode))(module)
        assert counts(after) == (1, training)
        assert jax.tree.structure(after) == jax.tree.structure(module)


def test_a_pin_reaches_everything_below():
    module = Net([Net([Counter(), Net([Counter()])])]).at["parts.0"].apply(lambda m: m.train())
    _, after = module.apply(X)
    assert [int(after.at[f"parts.0.parts.{at}.modes"].get()) for at in ("0", "1.parts.0")] == [1, 1]


def test_mode_and_training_of_a_module():
    module = net()
    assert (module.mode, module.training) == ("eval", False)
    assert (module.train().mode, module.train().training) == ("train", True)
    assert module.mode == "eval"


def test_the_mode_goes_through_an_inner_jit():
    class Jitted(br.Module):
        drop: br.Module

        @jax.jit
        def inner(self, x):
            return x + self.drop.training, self.training

        def __call__(self, x):
            return self.inner(x)

    for mode in ("train", "eval", "train"):
        out, _ = Jitted(Drop()).apply(0, mode=mode)
        assert [int(value) for value in out] == [mode == "train"] * 2


@pytest.mark.parametrize("call", ["apply", "new_state", "with_mode"])
def test_another_mode(call, refuses):
    module = net()
    calls = {
        "apply": lambda: module.apply(X, mode="test"),
        "new_state": lambda: module.new_state(KEY, "test"),
        "with_mode": lambda: module.with_mode("test"),
    }
    with refuses(
        FieldError, """mode is 'test'; it is "train", "eval", or None to keep the tree's own"""
    ):
        calls[call]()


def test_two_modes_are_two_compilations():
    @jax.jit
    def step(module, key):
        return module.apply(X, rng=key)[1]

    for module in (net(), net().train(), net().eval(), net().train()):
        for _ in range(2):
            module = step(module, KEY)
    assert step._cache_size() == 3  # no mode of its own is a third treedef


# Inside of transforms.


def test_jit_compiles_once_over_many_steps():
    traces = []

    @jax.jit
    def step(module, key):
        traces.append(1)
        return module.apply(X, rng=key, mode="train")

    module = net()
    for number in range(3):
        _, module = step(module, jax.random.fold_in(KEY, number))
    assert counts(module) == (3, 3)
    assert len(traces) == 1


def test_a_module_is_a_scan_carry():
    def body(module, x):
        out, module = module.apply(x)
        return module, out

    xs = jnp.ones((7, 2, 3))
    after, outs = jax.lax.scan(body, net(), xs)
    assert counts(after) == (7, 0)
    assert outs.shape == (7, 2, 5)


def test_a_module_with_an_attached_key_is_a_scan_carry():
    def body(module, x):
        out, module = module.apply(x)
        return module, out

    module = net().new_state(KEY, "train")
    xs = jnp.ones((7, 2, 3))
    after, outs = jax.lax.scan(body, module, xs)
    looped = module
    for number, x in enumerate(xs):
        out, looped = looped.apply(x)
        np.testing.assert_allclose(out, outs[number], rtol=1e-6)
    assert counts(looped) == counts(after) == (7, 7)
    assert jax.tree.structure(after) == jax.tree.structure(module)
    assert len({tuple((out == 0).ravel().tolist()) for out in outs}) > 3


def test_grad_inside_and_outside_of_jit():
    def loss(w):
        return module.at["parts.0.w"].set(w).apply(X)[0].sum()

    module = net()
    want = jax.grad(lambda w: jnp.tanh(X @ w).sum())(module.parts[0].w)
    for call in (identity, jax.jit):
        got = call(jax.grad(loss))(module.parts[0].w)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_vmap_over_modules_and_over_examples():
    module = net()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[module] * 5)
    outs, after = jax.vmap(lambda m, x: m.apply(x))(stacked, jnp.stack([X] * 5))
    assert outs.shape == (5, 2, 5)
    assert after.parts[1].calls.tolist() == [1] * 5
    rows = jax.vmap(lambda x: module.apply(x)[0])(X)
    np.testing.assert_allclose(rows, module.apply(X)[0], rtol=1e-6)


def test_eval_shape():
    out, after = jax.eval_shape(lambda m, x: m.apply(x), net(), X)
    assert out.shape == (2, 5)
    assert after.parts[1].calls.shape == ()
    assert jax.tree.structure(after) == jax.tree.structure(net())


@pytest.mark.parametrize(
    ("transform", "keys"),
    [(jax.checkpoint, KEY), (jax.jit, KEY), (jax.vmap, jax.random.split(KEY, 2))],
)
def test_a_whole_apply_runs_under_any_transform(transform, keys):
    out, after = transform(lambda x, key: net().apply(x, rng=key, mode="train"))(X, keys)
    assert out.shape == (2, 5)
    assert after.parts[1].calls.max() == 1


def test_threads_do_not_disturb_each_other():
    module, results = net(), {}

    def work(number):
        key = jax.random.key(number % 3)
        current = module
        for _ in range(5):
            out, current = current.apply(X, rng=key, mode=("train", "eval")[number % 2])
        results[number] = (out, counts(current))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    for number, (out, count) in results.items():
        assert count == (5, 5 * (1 - number % 2))
        assert out.tolist() == results[number % 6][0].tolist()


# Raw transforms during a call.

TRANSFORMS = {
    "scan": lambda c, x: jax.lax.scan(lambda h, _: (c(h), None), x, None, length=2)[0],
    "vmap": lambda c, x: jax.vmap(c)(x),
    "checkpoint": lambda c, x: jax.checkpoint(c)(x),
    "cond": lambda c, x: jax.lax.cond(True, c, lambda x: x, x),
    "while": lambda c, x: jax.lax.fori_loop(0, 2, lambda _, h: c(h), x),
    "grad": lambda c, x: jax.grad(lambda x: c(x).sum())(x),
    "jit": lambda c, x: jax.jit(c)(x),
}
ADVICE = (
    " inside a JAX transform that was started during the call: it would be repeated or lost. Use"
    " bridge.scan, bridge.vmap or bridge.remat in place of jax.lax.scan, jax.vmap or jax.checkpoint;"
    " elsewhere (cond, an inner jit or grad) call child.apply(..., rng=key) and hand its result out"
)


@pytest.mark.parametrize("outer", [identity, jax.jit])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    ("child", "text"),
    [
        (Drop, "child.parts.0 draws from the rng stream 'default'"),
        (Counter, "child.parts.0 writes its state 'calls'"),
    ],
)
def test_drawing_and_writing_inside_a_raw_transform(name, child, text, outer, refuses):
    module = Runs(Net([child()]), TRANSFORMS[name])
    with refuses(TraceError, text + ADVICE):
        outer(lambda m, x: m.apply(x, rng=KEY, mode="train"))(module, X)


@pytest.mark.parametrize("outer", [identity, jax.jit])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_neither_draws_nor_writes_runs_inside_a_raw_transform(name, outer):
    module = Runs(Net([Dense(3, 3), Drop(), Counter()]).at["parts.2"].set(jnp.tanh), TRANSFORMS[name])
    want = TRANSFORMS[name](module.child, X)
    out, after = outer(lambda m, x: m.apply(x, rng=KEY))(module, X)
    np.testing.assert_allclose(out, want, rtol=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(module)


def test_parameters_and_gradients_flow_through_an_inner_jit():
    class Jitted(br.Module):
        dense: br.Module
        scale: br.Parameter

        @jax.jit
        def inner(self, x):
            return self.dense(x) * self.scale

        def __call__(self, x):
            return self.inner(x)

    module = Jitted(Dense(3, 5), 2.0)
    np.testing.assert_allclose(module(X), 2 * X @ module.dense.w, rtol=1e-6)
    grads = br.grad(lambda m: m(X).sum())(module)
    np.testing.assert_allclose(grads.scale, (X @ module.dense.w).sum(), rtol=1e-6)
    assert module.at["scale"].set(jnp.array(3.0))(X)[0, 0] == 3 * (X @ module.dense.w)[0, 0]


@pytest.mark.parametrize("attach", [False, True])
def test_an_inner_jit_draws_no_keys(attach, refuses):
    class Jitted(br.Module):
        drop: br.Module

        @jax.jit
        def inner(self, x):
            return self.whole(x)

        def whole(self, x):
            return self.drop(x) + jax.random.normal(self.rng)

        def __call__(self, x):
            return self.inner(x)

    module = Jitted(Drop())
    with refuses(
        MissingRngError,
        "drop draws from the stream 'default', and no rng was given. Type module.apply(...,"
        " rng=key), or attach one: module.new_state(key). (A module that went through an inner"
        " jax.jit has none: draw before, and pass the key in)",
    ):
        if attach:
            module.new_state(KEY, "train")(X)
        else:
            module.apply(X, rng=KEY, mode="train")


def test_an_inner_jit_writes_nothing(refuses):
    class Jitted(br.Module):
        counter: br.Module

        @jax.jit
        def inner(self, x):
            return self.counter(x)

        def __call__(self, x):
            return self.inner(x)

    with refuses(
        DroppedStateError,
        "this call updates calls, modes, and calling the module gives only its output: the update"
        " would be lost. Type `out, module = module.apply(...)`",
    ):
        Jitted(Counter()).apply(X)


# What calls refuse.


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m(X), "parts.1.calls, parts.1.modes"),
        (lambda m: m.parts[1](X), "calls, modes"),
        (lambda m: m.train().twice(X), "parts.1.calls, parts.1.modes"),
        (lambda m: jax.jit(lambda m: m(X))(m), "parts.1.calls, parts.1.modes"),
    ],
)
def test_a_call_that_would_lose_state(call, text, refuses):
    module = Net([jnp.sin, Counter()])
    with refuses(
        DroppedStateError,
        f"this call updates {text}, and calling the module gives only its output: the update would"
        " be lost. Type `out, module = module.apply(...)`",
    ):
        call(module)


def test_a_call_without_the_rng_that_it_needs(refuses):
    with refuses(
        MissingRngError,
        "parts.2 draws from the stream 'default', and no rng was given. Type module.apply(...,"
        " rng=key), or attach one: module.new_state(key). (A module that went through an inner"
        " jax.jit has none: draw before, and pass the key in)",
    ):
        net().apply(X, mode="train")


@pytest.mark.parametrize("call", [lambda m: m(X), lambda m: m.apply(X), lambda m: m.parts[0](X)])
def test_an_uninitialised_module(call, refuses):
    class Lazy(br.Module):
        w: br.Parameter

        def __init__(self):
            self.w = br.ParamInit((3, 5), jax.nn.initializers.zeros)

        def __call__(self, x):
            return x @ self.w

    module = Net([Lazy()])
    place = "w" if call.__code__.co_names[0] == "parts" else "parts.0.w"
    with refuses(
        UninitialisedError,
        f"{place} of Lazy is not initialised; type module = module.init(key, *sample) first",
    ):
        call(module)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.zeros(3), "calls: was int32[], was assigned float32[3]"),
        (0.5, "calls: was int32[], was assigned float32[]"),
        (None, "calls: was int32[], was assigned nothing"),
        ([1], "calls: was int32[], was assigned nothing\n  calls.0: was nothing, was assigned int32[]"),
    ],
)
def test_a_state_keeps_its_form(value, text, refuses):
    class Changes(br.Module):
        calls: br.State

        def __call__(self):
            self.calls = value

    with refuses(
        StructureError,
        "a state must keep its structure, shape and dtype from call to call, or nothing that is"
        f" compiled fits twice:\n  {text}\nGive it its final form in __init__ (or by init), or cast"
        " what is assigned",
    ):
        Changes(0).apply()


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (
            "w",
            FieldError,
            "child.w is a parameter and was assigned during a call; what changes from call to call is"
            " declared as `w: bridge.State`",
        ),
        (
            "size",
            FieldError,
            "child.size is a static and was assigned during a call; what changes from call to call is"
            " declared as `size: bridge.State`",
        ),
        (
            "part",
            FieldError,
            "child.part is a child and was assigned during a call; what changes from call to call is"
            " declared as `part: bridge.State`",
        ),
        (
            "other",
            FieldError,
            "Typed.other is not declared. Declare it in the class body, for example `other:"
            " bridge.Parameter` (trained), `other: bridge.State` (carried), `other: bridge.Module` (a"
            " child) or `other: int` (static)",
        ),
    ],
)
def test_only_state_is_assigned_during_a_call(name, error, text, refuses):
    class Typed(br.Module):
        w: br.Parameter
        size: int
        part: br.Module

        def __call__(self, x):
            setattr(self, name, x)

    with refuses(error, text):
        Runs(Typed(1.0, 3, jnp.sin), lambda child, x: child(x)).apply(2.0)


def test_a_method_that_is_not_there(refuses):
    with refuses(
        FieldError,
        "Net has no method 'encode'; define it, or give apply another method: a name, or a function"
        " of the module and its arguments",
    ):
        net().apply(X, method="encode")


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m(X),
        lambda m: setattr(m, "calls", 3),
        lambda m: m.rng,
        lambda m: m.draw(),
    ],
)
def test_a_private_copy_beyond_its_call(use, refuses):
    copy, _ = Counter().apply(rng=KEY, method=lambda m: m)
    with refuses(
        TraceError,
        "the root module is a private copy of a call that has ended; return arrays from a method, and"
        " use the module that apply returns",
    ):
        use(copy)


@pytest.mark.parametrize(("use", "what"), [(lambda m: m.rng, "rng"), (lambda m: m.draw(), "draw()")])
def test_keys_outside_of_a_call(use, what, refuses):
    with refuses(
        ImmutableError,
        f"Drop.{what} exists only while apply runs the module, and this one is outside of a call, or"
        " went through an inner jax.jit as an ordinary pytree; draw before that and pass the key in",
    ):
        use(Drop())


def test_an_error_of_the_model_says_where():
    module = Net([jnp.sin, Net([Dense(7, 5)])])
    with pytest.raises(TypeError) as caught:
        module(X)
    notes = [note for note in caught.value.__notes__ if note.startswith("in ")]
    assert notes == ["in parts.1.parts.0 (Dense)"]


def test_an_error_leaves_the_module_as_it_was():
    module = Net([Counter(), Dense(7, 5)])
    with pytest.raises(TypeError):
        module.apply(X)
    assert int(module.parts[0].calls) == 0
    _, after = module.apply(jnp.ones((2, 7)))
    assert int(after.parts[0].calls) == 1


def test_a_plain_method_works_on_the_module_itself():
    class Wide(br.Module):
        width: int
        n: br.State

        @br.plain
        def wider(self):
            return self.at["width"].set(self.width + 1)

        def _private(self):
            return self

    module = Wide(3, 0)
    assert module.wider().width == 4
    assert module._private() is module
    assert jax.tree.structure(module.wider()) == jax.tree.structure(Wide(4, 0))
