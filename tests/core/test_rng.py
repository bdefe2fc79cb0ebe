"""Keys by path: what a draw depends on, and what it does not."""

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import MissingRngError
from bridge.core.paths import fingerprint
from bridge.core.rng import call_key, draw_key, place_key

KEYS = {
    "typed": jax.random.key(7),
    "legacy": jax.random.PRNGKey(7),
    "rbg": jax.random.key(7, impl="rbg"),
}
KEY = KEYS["typed"]


def bits(key):
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return tuple((jax.random.key_data(key) if typed else key).tolist())


class Shows(br.Module):
    """Gives back its key for this call."""

    def __call__(self):
        return self.rng

    def latent(self):
        return self.draw("latent")

    def many(self):
        return self.rng, self.rng, self.draw(), self.draw(), self.draw("latent"), self.draw("dropout")


class Net(br.Module):
    parts: dict[str, br.Module]

    def __call__(self, order=None):
        return [self.parts[name]() for name in order or self.parts]


def keys_of(names, order=None, **options):
    out, _ = Net({name: Shows() for name in names}).apply(order, rng=KEY, **options)
    return [bits(key) for key in out]


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_the_first_call_of_the_root_has_the_key_itself(key):
    assert bits(Shows().apply(rng=key)[0]) == bits(key)
    assert bits(jax.jit(lambda k: Shows().apply(rng=k)[0])(key)) == bits(key)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_key_is_folded_with_the_path_and_then_with_the_call(key):
    (first, second), _ = Net({"a": Shows()}).apply(["a", "a"], rng=key)
    folded = jax.random.fold_in(key, fingerprint(("parts", "a")))
    assert bits(first) == bits(jax.random.fold_in(folded, 0))
    assert bits(second) == bits(jax.random.fold_in(folded, 1))


def test_the_second_call_of_the_root_draws_another_key():
    (first, second), _ = Shows().apply(rng=KEY, method=lambda m: (m(), m()))
    assert bits(first) == bits(KEY)
    assert bits(second) == bits(call_key(KEY, (), 1, ()))
    assert bits(first) != bits(second)


def test_methods_that_call_each_other_are_one_call():
    class Sub(Shows):
        def __call__(self):
            return [super().__call__(), self.latent()]

    (first, latent), _ = Sub().apply(rng=KEY)
    assert bits(first) == bits(KEY)
    assert bits(latent) == bits(draw_key(KEY, 1))


def test_every_place_and_call_has_its_own_key():
    keys = keys_of(["a", "b", "ab", "a.b", "draw", "lift", "advance"], ["a", "b", "a", "b"])
    assert len(set(keys)) == 4
    assert len(set(keys_of(["a", "b", "ab", "a.b", "draw", "lift", "advance"]))) == 7


def test_adding_a_layer_leaves_the_keys_of_the_others_alone():
    few, more = keys_of(["a", "z"]), keys_of(["0", "a", "m", "z"])
    assert few == [more[1], more[3]]
    assert keys_of(["a", "z"], ["z", "a"]) == few[::-1]


def test_paths_have_separators():
    nested = Net({"ab": Net({"cdef": Shows()})})
    other = Net({"abc": Net({"def": Shows()})})
    (first,), (second,) = nested.apply(rng=KEY)[0][0], other.apply(rng=KEY)[0][0]
    assert bits(first) != bits(second)


def test_rng_is_the_same_at_each_read_and_a_draw_is_not():
    one, again, *draws = Shows().apply(rng=KEY, method="many")[0]
    assert bits(one) == bits(again)
    assert len({bits(key) for key in (one, *draws)}) == 5


def test_the_draws_of_the_root_collide_with_no_child():
    named = [("advance",), ("draw",), ("lift",)]
    drawn = {bits(draw_key(KEY, number)) for number in range(5)}
    lifted = {bits(call_key(KEY, (), 0, (step,))) for step in range(5)}
    called = {bits(call_key(KEY, path, call, ())) for path in named for call in range(5)}
    assert not (drawn | lifted) & called


def test_draws_start_anew_at_each_call():
    def run(m):
        return m.latent(), m.latent()

    (first, second), _ = Shows().apply(rng=KEY, method=run)
    assert bits(first) == bits(draw_key(KEY, 1))
    assert bits(second) == bits(draw_key(call_key(KEY, (), 1, ()), 1))


# Named streams.

STREAMS = {"latent": jax.random.key(2), "dropout": jax.random.key(3), "default": jax.random.key(5)}


@pytest.mark.parametrize(
    ("stream", "served_by"),
    [("latent", "latent"), ("dropout", "dropout"), ("other", "default"), ("default", "default")],
)
def test_named_streams(stream, served_by):
    out, _ = Shows().apply(rng=STREAMS, method=lambda m: m.draw(stream))
    assert bits(out) == bits(draw_key(STREAMS[served_by], 1))


def test_a_stream_that_is_missing(refuses):
    module = Net({"a": Shows()})
    with refuses(
        MissingRngError,
        "parts.a draws from the stream 'default'; the streams given are 'latent', 'dropout'. Give it"
        """ a key: rng={'default': key, ...}, or "default" to serve every stream""",
    ):
        module.apply(rng={name: STREAMS[name] for name in ("latent", "dropout")})


def test_no_rng_at_all(refuses):
    with refuses(
        MissingRngError,
        "the root module draws from the stream 'latent', and no rng was given. Type"
        " module.apply(..., rng=key), or attach one: module.new_state(key). (A module that went"
        " through an inner jax.jit has none: draw before, and pass the key in)",
    ):
        Shows().latent()


@pytest.mark.parametrize(
    ("rng", "text"),
    [
        (3, "rng 'default' is 3; "),
        (jnp.zeros(3), "rng 'default' is an array float32[3]; "),
        (jax.random.split(KEY, 3), "rng 'default' is an array key<fry>[3]; "),
        (jax.random.split(jax.random.PRNGKey(0), 3), "rng 'default' is an array uint32[3, 2]; "),
        ({"dropout": "k"}, "rng 'dropout' is 'k'; "),
    ],
)
@pytest.mark.parametrize("use", ["apply", "init", "new_state"])
def test_what_is_no_key(rng, text, use, refuses):
    module = Shows()
    calls = {
        "apply": lambda: module.apply(rng=rng),
        "init": lambda: module.init(rng),
        "new_state": lambda: module.new_state(rng),
    }
    with refuses(
        MissingRngError,
        text + "a key was wanted: jax.random.key(0), or a dict of them by stream:"
        ' {"dropout": key, "default": other_key}',
    ):
        calls[use]()


# Attached keys.


@pytest.mark.parametrize("key", [*KEYS.values(), STREAMS], ids=[*KEYS, "streams"])
def test_an_attached_key_serves_calls_and_advances_where_it_was_drawn_from(key):
    module = Net({"a": Shows()}).new_state(key)
    given = key if not isinstance(key, dict) else key["default"]
    assert bits(module()[0]) == bits(call_key(given, ("parts", "a"), 0, ()))
    assert bits(module()[0]) == bits(module()[0])
    seen = []
    for _ in range(3):
        out, module = module.apply()
        seen.append(bits(out[0]))
    assert len(set(seen)) == 3


def test_an_attached_key_that_is_not_drawn_from_stays():
    module = Net({"a": Shows()}).new_state(KEY)
    _, after = module.apply(method=lambda m: m.parts["a"])
    assert after is module


def test_an_attached_key_is_a_leaf_and_no_entry():
    plain = Net({"a": Shows()})
    module = plain.new_state(STREAMS)
    assert len(jax.tree.leaves(module)) == 3
    assert jax.tree.leaves(module.parameters()) == []
    assert jax.tree.structure(plain) != jax.tree.structure(module)
    after = jax.jit(lambda m: m.apply()[1])(module)
    assert jax.tree.structure(after) == jax.tree.structure(module)


def test_the_key_of_a_call_goes_before_an_attached_one():
    module = Net({"a": Shows()}).new_state(jax.random.key(11))
    out, after = module.apply(rng=KEY)
    assert bits(out[0]) == bits(call_key(KEY, ("parts", "a"), 0, ()))
    assert after is module


def test_a_key_attached_below_serves_what_is_below():
    module = Net({"a": Net({"b": Shows()}), "c": Shows()})
    module = module.at["parts.a"].apply(lambda m: m.new_state(KEY))
    (([below], _), after) = module.apply(["a", "a"])[0], module.apply(["a"])[1]
    assert bits(below) == bits(call_key(KEY, ("parts", "b"), 0, ()))
    assert after is not module
    with pytest.raises(MissingRngError, match=r"^parts\.c draws"):
        module.apply()


def test_new_state_replaces_what_was_attached_below():
    module = Net({"a": Net({"b": Shows()})}).at["parts.a"].apply(lambda m: m.new_state(KEY))
    again = module.new_state(jax.random.key(2))
    assert len(jax.tree.leaves(again)) == 1
    assert jax.tree.structure(again) == jax.tree.structure(again.apply()[1])


def test_keys_of_initialisation_are_those_of_the_path():
    assert bits(place_key(KEY, ())) == bits(KEY)
    assert bits(place_key(KEY, ("a",))) == bits(jax.random.fold_in(KEY, fingerprint(("a",))))
