"""Arrays paired and turned by what the forward of both models does with them: here all names lie."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import WeightsError

torch = pytest.importorskip("torch")


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(std=0.4)
    return model.eval()


class Convolutions(torch.nn.Module):
    """Square convolutions and norms, then a dense layer on what was flattened."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 3)
        self.norm, self.other = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(3 * 3 * 5, 3 * 3 * 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.other(self.second(x)))
        return self.head(x.flatten(1))


class Attention(torch.nn.Module):
    """Attention with its projections in one array, a layer norm, and a perceptron."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(10, 2, batch_first=True)
        self.norm = torch.nn.LayerNorm(10)
        self.up, self.down = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return x + self.down(torch.tanh(self.up(x)))


class Deep(torch.nn.Module):
    """Equal layers, one after another."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(7, 7) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Pairwise(torch.nn.Module):
    """Two equal layers whose outputs are subtracted, or added."""

    def __init__(self, plus):
        super().__init__()
        self.plus, self.one, self.two = plus, torch.nn.Linear(7, 7), torch.nn.Linear(7, 7)

    def forward(self, x):
        return self.one(x) + self.two(x) if self.plus else self.one(x) - self.two(x)


class Tied(torch.nn.Module):
    """A table of tokens that is the last layer as well."""

    def __init__(self):
        super().__init__()
        self.table, self.places = torch.nn.Embedding(11, 7), torch.nn.Embedding(5, 7)
        self.dense, self.head = torch.nn.Linear(7, 7), torch.nn.Linear(7, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(x + torch.relu(self.dense(x)))


class LinenConvolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = {"use_running_average": True, "epsilon": 1e-5, "momentum": 0.9}
        x = nn.relu(nn.BatchNorm(**norm, name="other")(nn.Conv(3, (3, 3), name="second")(x)))
        x = nn.Conv(3, (3, 3), padding="VALID", name="first")(x)
        x = nn.relu(nn.BatchNorm(**norm, name="norm")(x))
        return nn.Dense(45, name="head")(x.reshape(x.shape[0], -1))


def haiku_convolutions(x, is_training):
    def norm(name):
        return hk.BatchNorm(True, True, 0.9, 1e-5, name=name)

    x = jax.nn.relu(norm("other")(hk.Conv2D(3, 3, name="second")(x), is_training))
    x = jax.nn.relu(norm("norm")(hk.Conv2D(3, 3, padding="VALID", name="first")(x), is_training))
    return hk.Linear(45, name="head")(x.reshape(x.shape[0], -1))


class EquinoxConvolutions(eqx.Module):
    second: eqx.nn.Conv2d
    first: eqx.nn.Conv2d
    norms: list
    head: eqx.nn.Linear

    def __init__(self, key):
        self.second = eqx.nn.Conv2d(3, 3, 3, padding=1, key=key)
        self.first = eqx.nn.Conv2d(3, 3, 3, key=key)
        self.norms = [eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode="batch") for _ in range(2)]
        self.head = eqx.nn.Linear(45, 45, key=key)

    def __call__(self, x, state):
        x, state = self.norms[1](self.second(x), state)
        x, state = self.norms[0](self.first(jax.nn.relu(x)), state)
        return self.head(jax.nn.relu(x).reshape(-1)), state


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=10, name="up")(x)
        x = nn.LayerNorm(epsilon=1e-5, name="attention")(x)
        return x + nn.Dense(10, name="norm")(nn.tanh(nn.Dense(10, name="down")(x)))


class Einsum(nn.Module):
    """The same with arrays of its own, which no table knows, in orders of its own."""

    @nn.compact
    def __call__(self, x):
        def array(name, *shape):
            return self.param(name, nn.initializers.normal(), shape)

        packed = jnp.einsum("btd,dhsf->sbthf", x, array("down", 10, 2, 3, 5))
        v, q, k = packed + array("norm", 3, 1, 1, 2, 5)
        weights = jax.nn.softmax(jnp.einsum("bqhf,bkhf->bhqk", q, k) / np.sqrt(5))
        mixed = jnp.einsum("bhqk,bkhf->bqfh", weights, v)
        x = x + jnp.einsum("bqfh,dfh->bqd", mixed, array("head", 10, 5, 2)) + array("key", 10)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * (1 + array("bias", 10))
        x = x + array("scale", 10)
        y = jnp.tanh(x @ array("kernel", 10, 10) + array("value", 10))
        return x + y @ array("query", 10, 10).T + array("out", 10)


class LinenDeep(nn.Module):
    @nn.compact
    def __call__(self, x):
        for number in reversed(range(8)):
            x = nn.tanh(nn.Dense(7, name=f"layers_{number}")(x))
        return x


class Stacked(nn.Module):
    """The eight layers as one array each, which a scan runs over."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.tanh(nn.Dense(7)(x)), None

        scan = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=8)
        return scan()(x, None)[0]


class LinenPairwise(nn.Module):
    plus: bool

    @nn.compact
    def __call__(self, x):
        one, two = nn.Dense(7, name="two")(x), nn.Dense(7, name="one")(x)
        return one + two if self.plus else one - two


class LinenTied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(11, 7, name="places")
        x = table(tokens) + nn.Embed(5, 7, name="table")(jnp.arange(tokens.shape[1]))
        return table.attend(x + nn.relu(nn.Dense(7, name="head")(x)))


def equinox_convolutions():
    return br.from_equinox(eqx.nn.make_with_state(EquinoxConvolutions)(jax.random.key(0)), vmap=True)


CASES = {  # torch's model, the twin, the shape of the input
    "convolutions in Linen": (Convolutions, lambda: br.from_linen(LinenConvolutions()), (2, 3, 5, 7)),
    "convolutions in Haiku": (Convolutions, lambda: br.from_haiku(haiku_convolutions), (2, 3, 5, 7)),
    "convolutions in Equinox": (Convolutions, equinox_convolutions, (2, 3, 5, 7)),
    "attention": (Attention, lambda: br.from_linen(LinenAttention()), (2, 7, 10)),
    "an own attention": (Attention, lambda: br.from_linen(Einsum()), (2, 7, 10)),
    "equal layers": (Deep, lambda: br.from_linen(LinenDeep()), (2, 7)),
    "stacked layers": (Deep, lambda: br.from_linen(Stacked()), (2, 7)),
    "a sum": (lambda: Pairwise(True), lambda: br.from_linen(LinenPairwise(True)), (2, 7)),
    "a difference": (lambda: Pairwise(False), lambda: br.from_linen(LinenPairwise(False)), (2, 7)),
    "ties": (Tied, lambda: br.from_linen(LinenTied()), (2, 5)),
}


def example(shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 11, shape) if shape == (2, 5) else rng.normal(size=shape).astype(np.float32)


def channels_last(x, module):
    return jnp.moveaxis(x, 1, -1) if x.ndim == 4 and "equinox" not in module else jnp.asarray(x)


@pytest.mark.parametrize("case", CASES)
def test_the_forward_of_both_models_proves_what_goes_where(case):
    make, twin, shape = CASES[case]
    model, x = randomised(make()), example(shape)
    mine = channels_last(x, case.lower())
    module = twin().init(jax.random.key(0), mine)
    match = br.match(module, model, inputs=(x,))
    module = br.load_state_dict(module, model, plan=match)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(module(mine), wanted, rtol=1e-4, atol=1e-5)
    exported = br.state_dict(module, like=match)  # the same plan, gone back
    added = {pair.key for pair in match.pairs if pair.offset}  # and taken away, in float32
    for key in model.state_dict().keys() - match.unused.keys():
        expected = model.state_dict()[key].numpy()
        np.testing.assert_allclose(exported[key], expected, rtol=0, atol=1e-7 * (key in added))


def test_each_pair_says_how_it_is_known():
    model, x = randomised(Attention()), example((2, 7, 10))
    module = br.from_linen(LinenAttention()).init(jax.random.key(0), x)
    evidence = {pair.path[1:-1]: pair.evidence for pair in br.match(module, model, inputs=(x,)).pairs}
    assert evidence["norm",] == evidence["up", "value"] == evidence["up", "out"] == "proved"
    assert evidence["up", "query"] == evidence["up", "key"]
    assert evidence["up", "key"].startswith("probe: the other orders give other values, ")
    pairwise = br.from_linen(LinenPairwise(True)).init(jax.random.key(0), example((2, 7)))
    match = br.match(pairwise, randomised(Pairwise(True)), inputs=(example((2, 7)),))
    assert {pair.evidence for pair in match.pairs} == {"any order gives the same values"}


class Scaled(nn.Module):
    """A layer, and a norm of the user's own."""

    eps: float = 1e-5
    activation: str = "relu"

    @nn.compact
    def __call__(self, x):
        x = getattr(nn, self.activation)(nn.Dense(7)(x))
        mean, var, scale = (self.param(name, nn.initializers.ones, (7,)) for name in "mvs")
        return nn.Dense(7)((x - mean) * jax.lax.rsqrt(var + self.eps) * scale + 1)


class TorchScaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(7, 7), torch.nn.Linear(7, 7)
        for name in ("mean", "var", "scale"):
            setattr(self, name, torch.nn.Parameter(torch.ones(7)))

    def forward(self, x):
        x = torch.relu(self.one(x))
        return self.two((x - self.mean) * torch.rsqrt(self.var + 1e-5) * self.scale + 1)


@pytest.mark.parametrize(
    ("twin", "text"),
    [
        (Scaled(), None),
        (
            Scaled(eps=1e-3),
            "params.v: eps is 0.001, and 1e-05 in var: build the model with 1e-05, or type strict=False"
            " to keep 0.001",
        ),
        (
            Scaled(activation="tanh"),
            "with the same random weights the two models differ first before params.Dense_1.kernel"
            " (two.weight), by ",
        ),
    ],
)
def test_models_that_do_not_agree_are_told_where(twin, text):
    model, x = randomised(TorchScaled()), example((2, 7))
    module = br.from_linen(twin).init(jax.random.key(0), x)
    match = br.match(module, model, inputs=(x,))
    assert match.problems == ()
    assert [one.startswith(text) for one in match.differences if text][:1] == [True] * bool(text)
    assert (match.differences == ()) == (text is None)


def test_inputs_are_for_a_live_model():
    module = br.from_linen(LinenPairwise(True)).init(jax.random.key(0), example((2, 7)))
    with pytest.raises(WeightsError) as caught:
        br.match(module, {"one.weight": np.ones((7, 7))}, inputs=(example((2, 7)),))
    assert str(caught.value) == (
        "inputs are for the forward of a torch.nn.Module; weights from a dict have none: leave inputs"
        " out, or give the model with its weights in it"
    )


def test_inputs_are_a_tuple():
    x = example((2, 7))
    module = br.from_linen(LinenPairwise(True)).init(jax.random.key(0), x)
    with pytest.raises(WeightsError) as caught:
        br.match(module, Pairwise(True), inputs=x)
    assert str(caught.value) == (
        "inputs are a tuple of what the forward takes; a ndarray was given: type inputs=(x,)"
    )


def test_a_tie_that_the_source_has_not_is_no_sum_of_two_arrays():
    class Untied(Tied):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(7, 11, bias=False)

    x = example((2, 5))
    module = br.from_linen(LinenTied()).init(jax.random.key(0), x)
    with pytest.raises(WeightsError) as caught:
        br.load_state_dict(module, randomised(Untied()), inputs=(x,), strict=False)
    assert str(caught.value) == (
        "these weights do not fit the Module:\n"
        "  params.places.embedding: would be table.weight and head.weight at once: it is used in two"
        " places, and each has its own array in the source; make it two in the Module, or tie the"
        " source's"
    )


class Halves(nn.Module):
    """Two layers kept as one array, of which the source may have one alone."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (2, 7, 7))
        return nn.tanh(x @ kernel[0]) @ kernel[1]


class OneHalf(torch.nn.Module):
    """The first of the two layers with a weight, the second with a constant."""

    def __init__(self):
        super().__init__()
        self.one, self.fixed = torch.nn.Linear(7, 7, bias=False), torch.eye(7)

    def forward(self, x):
        return torch.tanh(self.one(x)) @ self.fixed


def test_an_array_of_which_a_part_is_unknown_is_not_loaded():
    x = example((2, 7))
    module = br.from_linen(Halves()).init(jax.random.key(0), x)
    match = br.match(module, randomised(OneHalf()), inputs=(x,))
    assert match.differences == (
        "params.kernel: its place in the source has fixed, which is not in the state_dict: make it a"
        " parameter or a persistent buffer there",
    )
    assert match.problems == (
        "params.kernel: only 49 of its 98 numbers are known to be in the source; the forward does not"
        " tell where the others are",
    )


def test_where_nothing_shows_nothing_is_decided():
    x = example((2, 1, 10))  # of one token, no query and no key matters
    module = br.from_linen(LinenAttention()).init(jax.random.key(0), x)
    match = br.match(module, randomised(Attention()), inputs=(x,))
    evidence = {pair.path[-2]: pair.evidence for pair in match.pairs}
    assert evidence["value"] == evidence["out"] == "proved"
    assert not evidence.get("query", "").startswith(("proved", "probe", "any"))


def test_inputs_that_the_module_cannot_take():
    x = example((2, 3, 5, 7))
    module = br.from_linen(LinenPairwise(True)).init(jax.random.key(0), example((2, 7)))
    with pytest.raises(WeightsError) as caught:
        br.load_state_dict(module, Convolutions(), inputs=(x[..., :5],))
    first, *rest = str(caught.value).splitlines()
    assert first == (
        "the Module cannot be called with these inputs, their axes as they are or the channels last:"
    )
    assert [line.split(": ")[0].strip() for line in rest] == ["with (2, 3, 5, 5)", "with (2, 5, 5, 3)"]


def test_an_array_that_the_other_model_has_not():
    class Longer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return LinenPairwise(False)(x) * self.param("gain", nn.initializers.ones, (7,))

    x = example((2, 7))
    module = br.from_linen(Longer()).init(jax.random.key(0), x)
    match = br.match(module, randomised(Pairwise(False)), inputs=(x,))
    assert any(problem.startswith("params.gain: ") for problem in match.problems)
