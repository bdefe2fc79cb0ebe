"""Weights of any Module in a torch model, and of captured parts beside others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

torch = pytest.importorskip("torch")
nn = torch.nn

X = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)


def torch_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))


def linen_net(inputs=X):
    flax = pytest.importorskip("flax.linen")
    layers = [flax.Dense(7), flax.BatchNorm(True, momentum=0.9), flax.tanh, flax.Dense(3)]
    return br.from_linen(flax.Sequential(layers)).init(jax.random.key(0), inputs)


def haiku_net():
    hk = pytest.importorskip("haiku")

    def run(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(7)(x), is_training)
        return hk.Linear(3)(jnp.tanh(x))

    return br.from_haiku(run).init(jax.random.key(0), X)


def nnx_net():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(7, use_running_average=True, momentum=0.9, rngs=rngs)
    parts = nnx.Linear(5, 7, rngs=rngs), norm, jnp.tanh, nnx.Linear(7, 3, rngs=rngs)
    return br.from_nnx(nnx.Sequential(*parts))


def equinox_net():
    eqx = pytest.importorskip("equinox")
    one, two = jax.random.split(jax.random.key(0))
    norm = eqx.nn.BatchNorm(7, "batch", mode="batch", momentum=0.9)
    parts = eqx.nn.Linear(5, 7, key=one), norm, eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(7, 3, key=two)
    return br.from_equinox(eqx.nn.Sequential(parts), vmap=True)


@pytest.mark.parametrize("make", [linen_net, haiku_net, nnx_net, equinox_net])
def test_a_torch_model_with_its_weights_gives_the_same(make):
    module, like = make(), torch_net()
    before = {key: tensor.clone() for key, tensor in like.state_dict().items()}
    model = br.to_torch(module, like=like).eval()
    out = model(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(out, module(X), atol=1e-5)
    assert all(torch.equal(before[key], tensor) for key, tensor in like.state_dict().items())
    back = br.load_state_dict(module, model)
    arrays = (jax.tree.leaves(one.parameters()) for one in (back, module))
    for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_names_that_tell_nothing_are_settled_by_rename():
    like = nn.ModuleDict({"a": nn.Linear(5, 5), "b": nn.Linear(5, 5)})

    class Net(br.Module):
        first: br.Module
        second: br.Module

    flax = pytest.importorskip("flax.linen")
    layers = (br.from_linen(flax.Dense(5)).init(jax.random.key(n), X) for n in range(2))
    net = Net(*layers)
    with pytest.raises(br.BridgeError, match="may be 'a', 'b', and nothing tells which"):
        br.to_torch(net, like=like)
    model = br.to_torch(net, like=like, rename={"a": "second.params", "b": "first.params"})
    kernel = np.asarray(net.at["second.params.kernel"].get())
    np.testing.assert_array_equal(model["a"].weight.detach().numpy(), kernel.T)


def test_a_dtype_that_the_torch_model_has_not():
    module = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), linen_net())
    with pytest.raises(br.BridgeError) as caught:
        br.to_torch(module, like=torch_net())
    assert str(caught.value).splitlines()[:2] == [
        "the Module does not fit this Sequential:",
        "  0.weight: the torch model has float32[7, 5], the Module bfloat16[7, 5]",
    ]
    model = br.to_torch(module, like=torch_net().bfloat16())
    kernel = np.asarray(module.at["params.layers_0.kernel"].get())
    assert model[0].weight.detach().view(torch.int16).numpy().tobytes() == kernel.T.tobytes()


def test_a_shape_that_the_torch_model_has_not():
    with pytest.raises(
        br.BridgeError, match="nothing in the source is like its linear with out=7, in=5"
    ):
        br.to_torch(linen_net(), like=nn.Sequential(nn.Linear(5, 11), *torch_net()[1:]))


def test_a_setting_that_differs_is_no_equal_model():
    like = torch_net()
    like[1].eps = 1e-3
    with pytest.raises(
        br.BridgeError, match=r"eps is 1e-05, and 0\.001 in 1: build the model with 0\.001"
    ):
        br.to_torch(linen_net(), like=like)
    match = br.match(linen_net(), like)
    assert (
        br.state_dict(linen_net(), like=match).keys() | match.unused.keys() == like.state_dict().keys()
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torch_model_that_cannot_be_copied():
    flax = pytest.importorskip("flax.linen")
    like = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 7)))
    like(torch.from_numpy(X)).sum().backward()
    module = br.from_linen(flax.WeightNorm(flax.Dense(7))).init(jax.random.key(0), X)
    with pytest.raises(br.BridgeError, match=r"this Sequential cannot be copied by copy\.deepcopy"):
        br.to_torch(module, like=like)
    tensors = {key: torch.from_numpy(array) for key, array in br.state_dict(module, like=like).items()}
    like.load_state_dict(tensors)


@pytest.fixture(scope="module")
def trunk():
    return br.from_torch(torch_net().eval(), torch.from_numpy(X), mode="eval")


def test_captured_parts_beside_others(trunk):
    hk = pytest.importorskip("haiku")

    class Net(br.Module):
        trunk: br.Module
        head: br.Module
        scale: br.Parameter

        def __call__(self, x):
            return self.head(self.trunk(x)) * self.scale

    net = Net(trunk, br.from_haiku(hk.Linear)(2), jnp.ones(())).init(jax.random.key(0), X)
    names = [f"trunk.{key}" for key in torch_net().state_dict()]
    own = br.state_dict(net)
    assert {*own} == {*names, "head.linear.weight", "head.linear.bias", "scale"}
    assert own["trunk.1.num_batches_tracked"].dtype == np.int64

    like = nn.Module()
    like.trunk, like.head, like.scale = torch_net(), nn.Linear(3, 2), nn.Parameter(torch.zeros(()))
    like.trunk[1].num_batches_tracked += 17
    exported = br.state_dict(net, like=like)
    assert list(exported) == list(like.state_dict())
    for key in names:
        assert exported[key].tobytes() == own[key].tobytes()
    model = br.to_torch(net, like=like)
    assert int(model.trunk[1].num_batches_tracked) == 0
    np.testing.assert_array_equal(model.head.weight.detach().numpy(), own["head.linear.weight"])


def test_a_captured_part_takes_weights_of_another_run(trunk):
    torch.manual_seed(1)
    other = nn.Sequential(*(type(one)(*size) for one, size in zip(
        torch_net(), ((5, 7), (7,), (), (7, 3)), strict=True)))  # fmt: skip
    other(3 + torch.from_numpy(X))
    loaded = br.load_state_dict(trunk, other.state_dict())
    out = other.eval()(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(loaded(X), out, atol=1e-5)


def test_a_captured_model_goes_into_one_with_other_names(trunk):
    like = nn.ModuleDict({"net": torch_net()})
    model = br.to_torch(trunk, like=like, rename={"net.*.*": "*.*"})
    np.testing.assert_array_equal(model["net"][0].weight.detach().numpy(), trunk.at["0.weight"].get())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(13, 7), nn.Linear(7, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_arrays_that_torch_ties_and_the_module_does_not():
    flax = pytest.importorskip("flax.linen")

    class Untied(flax.Module):
        @flax.compact
        def __call__(self, x):
            x = flax.Embed(13, 7, name="embed")(x)
            return flax.Dense(13, use_bias=False, name="head")(x)

    module = br.from_linen(Untied()).init(jax.random.key(0), np.array([3, 5]))
    with pytest.raises(br.BridgeError) as caught:
        br.to_torch(module, like=Tied())
    assert str(caught.value) == (
        "the Module does not fit the ties of like:\n"
        "  embed.weight and head.weight: are one array in like, and the Module holds two that differ;"
        " tie them there, bridge.tie(module, ...), or untie them in like"
    )
    kernel = jnp.asarray(module.at["params.embed.embedding"].get()).T
    model = br.to_torch(module.at["params.head.kernel"].set(kernel), like=Tied())
    assert model.head.weight is model.embed.weight

    captured = br.from_torch(Tied(), torch.tensor([3, 5]), mode="eval")
    assert br.to_torch(captured, like=Tied()).head.weight.shape == (13, 7)

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(13, 7), nn.Linear(7, 13, bias=False)

        forward = Tied.forward

    apart = br.from_torch(Apart(), torch.tensor([3, 5]), mode="eval")
    with pytest.raises(
        br.BridgeError, match=r"embed\.weight and head\.weight: are one in the torch model"
    ):
        br.to_torch(apart, like=Tied())
