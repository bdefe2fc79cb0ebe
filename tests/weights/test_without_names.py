"""Ways to write one model that differ more than their names: every array is found from the forward."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

torch = pytest.importorskip("torch")


class Rooted(torch.nn.Module):
    """A norm between two equal layers; Flax scales the root before it multiplies."""

    def __init__(self):
        super().__init__()
        self.c, self.a = (torch.nn.Linear(7, 7, bias=False) for _ in range(2))
        self.b = torch.nn.RMSNorm(7, eps=1e-6)

    def forward(self, x):
        return self.a(self.b(self.c(x)))


def linen_rooted():
    dense = [nn.Dense(7, use_bias=False) for _ in range(2)]
    return br.from_linen(nn.Sequential([dense[0], nn.RMSNorm(1e-6), dense[1]]))


class Fused(torch.nn.Module):
    """An attention that makes queries, keys and values at once."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(10, 30), torch.nn.Linear(10, 10)

    def forward(self, x):
        parts = (one.unflatten(-1, (2, 5)).transpose(1, 2) for one in self.a(x).split(10, -1))
        out = torch.nn.functional.scaled_dot_product_attention(*parts)
        return self.b(out.transpose(1, 2).flatten(2))


def haiku_parts():
    def run(x):
        start = hk.initializers.RandomNormal()
        return hk.MultiHeadAttention(2, 5, w_init=start, model_size=10)(x, x, x)

    return br.from_haiku(run)


class Placed(torch.nn.Module):
    """Two tables; Equinox looks its numbers up in a way of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Embedding(13, 5), torch.nn.Embedding(11, 5)
        self.c = torch.nn.LayerNorm(5)

    def forward(self, ids):
        return self.c(self.a(ids) + self.b(torch.arange(ids.shape[1])))


class EquinoxPlaced(eqx.Module):
    words: eqx.nn.Embedding
    places: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm

    def __init__(self):
        key = jax.random.key(0)
        self.words, self.places = (eqx.nn.Embedding(size, 5, key=key) for size in (13, 11))
        self.norm = eqx.nn.LayerNorm(5)

    def __call__(self, ids):
        places = jax.vmap(self.places)(jnp.arange(ids.shape[0]))
        return jax.vmap(self.norm)(jax.vmap(self.words)(ids) + places)


class Turned(torch.nn.Module):
    """What a layer gives meets a buffer that is in no state_dict, and that others work out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Linear(7, 7) for _ in range(2))
        self.register_buffer("speeds", 2.0 ** -torch.arange(7.0), persistent=False)

    def forward(self, x):
        angles = torch.arange(3.0)[:, None] @ self.speeds[None]
        return self.b(self.a(x) * angles.cos())


class LinenTurned(nn.Module):
    @nn.compact
    def __call__(self, x):
        angles = jnp.arange(3.0)[:, None] * 2.0 ** -jnp.arange(7.0)
        return nn.Dense(7)(nn.Dense(7)(x) * jnp.cos(angles))


class OwnNorm(torch.nn.Module):
    """A batch norm that is none of torch's classes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.rand(7) + 1) for _ in range(2))
        self.register_buffer("c", torch.rand(7))
        self.register_buffer("d", torch.rand(7) + 1)

    def forward(self, x):
        return (x - self.c) * torch.rsqrt(self.d + 1e-5) * self.a + self.b


def haiku_norm():
    return br.from_haiku(lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=hk.running_init()))


CASES = {  # torch's model, the twin, the shape of the input
    "a norm that scales the root": (Rooted, linen_rooted, (3, 7)),
    "queries, keys and values at once": (Fused, haiku_parts, (2, 3, 10)),
    "tables": (Placed, lambda: br.from_equinox(EquinoxPlaced(), vmap=True), (2, 7)),
    "a buffer that is in no state_dict": (Turned, lambda: br.from_linen(LinenTurned()), (3, 7)),
    "averages that nothing reads": (OwnNorm, haiku_norm, (3, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_array_is_found(case):
    make, twin, shape = CASES[case]
    torch.manual_seed(0)
    model, rng = make().eval(), np.random.default_rng(0)
    x = rng.integers(0, 13, shape) if case == "tables" else rng.normal(size=shape).astype(np.float32)
    module = twin().init(jax.random.key(0), x)
    match = br.match(module, model, inputs=(x,))
    assert match.complete, str(match)
    assert all(pair.evidence.startswith(("proved", "probe")) for pair in match.pairs), str(match)
    out = br.load_state_dict(module, model, plan=match)(x)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(out, wanted, atol=1e-5)
