"""What JAXnet could do: models as functions, shared by using the same object.

A function that calls layers is a model; what it calls are its parts. Losses and metrics are models
too, made of the same objects, so that what one of them has learned goes into the other. Each part ends
with numbers that are known before.

    python examples/ancestors/jaxnet.py
"""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bridge as br

KEY = jax.random.key(0)
normal, ones, zeros = (
    jax.nn.initializers.normal(0.1),
    jax.nn.initializers.ones,
    jax.nn.initializers.zeros,
)


def dense(size, initializer=normal):
    """A layer as a function, made as often as it is asked for."""

    @br.parametrized
    def dense(x):
        kernel = br.parameter((x.shape[-1], size), initializer, "kernel")
        return x @ kernel + br.parameter((size,), zeros, "bias")

    return dense


def functions_are_models():
    @br.parametrized
    def net(x):
        hidden = jnp.tanh(dense(5)(x))
        return dense(2)(hidden)

    x = jnp.ones((3, 7))
    net = net.init(KEY, x)
    print(net)
    assert net.dense.bias.shape == (5,)
    hidden = jnp.tanh(x @ net.dense.kernel + net.dense.bias)
    np.testing.assert_allclose(net(x), hidden @ net.dense_1.kernel + net.dense_1.bias, rtol=1e-6)


def libraries_in_a_row():
    net = br.Sequential(
        br.from_haiku(hk.Linear)(5, w_init=hk.initializers.Constant(1)),
        jax.nn.relu,
        br.from_equinox(eqx.nn.Linear(5, 3, use_bias=False, key=KEY), vmap=True),
        br.from_linen(nn.Dense(2, kernel_init=ones)),
        lambda x: x.sum(),
    )
    net = net.init(KEY, jnp.ones((1, 7)))
    middle = net.at["2.params.weight"].get()
    # Each of five units is 7, and each of two outputs is 7 times the sum of all weights between.
    np.testing.assert_allclose(net(jnp.ones((1, 7))), 2 * 7 * middle.sum(), rtol=1e-5)
    print(f"Haiku, Equinox and Linen in a row: {float(net(jnp.ones((1, 7)))):.4f}, as by hand")


def sharing_and_reuse():
    encode = dense(3)

    @br.parametrized
    def predict(x):
        return jnp.sum(encode(x), -1)

    @br.parametrized
    def loss(x, y):
        return jnp.mean((predict(x) - y) ** 2) + 0 * jnp.sum(encode(x))

    @br.parametrized
    def within(x, y):
        return jnp.mean(jnp.abs(predict(x) - y) < 0.1)

    x = jax.random.normal(KEY, (64, 2))
    y = x @ jnp.array([1.0, -2.0]) + 3
    loss_of = loss.init(KEY, x, y)
    assert len(jax.tree.leaves(loss_of)) == 2  # one encoder, although two functions call it
    optimizer = br.Optimizer(optax.adam(0.1)).init(loss_of)

    @jax.jit
    def epoch(loss_of, optimizer):
        def step(_, both):
            model, optimizer = both
            return optimizer.step(model.grad(x, y), model)

        return jax.lax.fori_loop(0, 300, step, (loss_of, optimizer))

    loss_of, _ = epoch(loss_of, optimizer)
    part = br.transplant({loss: loss_of}, within, x, y)
    slopes = part.predict.encode.kernel.sum(1)
    np.testing.assert_allclose(slopes, [1, -2], atol=1e-3)
    assert float(part(x, y)) == 1
    head = br.Sequential(encode, jnp.square).init(KEY, x, reuse={loss: loss_of})
    np.testing.assert_allclose(head(x), part.predict.encode(x) ** 2, rtol=1e-6)
    print(f"learned slopes {slopes[0]:.3f} and {slopes[1]:.3f}, used by another model: all within 0.1")


def penalties():
    net = br.parametrized(lambda x: jnp.sum(dense(2, ones)(x)))
    penalised = br.regularized(net, br.l2(2.0)).init(KEY, jnp.ones((1, 3)))
    # Two outputs of 3, and half of 2.0 times six ones.
    assert float(penalised(jnp.ones((1, 3)))) == 6 + 6
    one_by_one = br.batched(br.parametrized(lambda x: dense(2, ones)(x))).init(KEY, jnp.ones((5, 3)))
    np.testing.assert_array_equal(one_by_one(jnp.ones((5, 3))), np.full((5, 2), 3.0))
    print("a loss of 6 with a penalty of 6 is 12")


def variational_autoencoder():
    encode, decode = dense(2 * 2, zeros), dense(8, normal)

    @br.parametrized
    def reconstruct(x):
        mean, log_variance = jnp.split(encode(x), 2, -1)
        noise = jax.random.normal(br.current_module().draw("latent"), mean.shape)
        kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1) / 2
        return decode(mean + jnp.exp(log_variance / 2) * noise), kl

    @br.parametrized
    def elbo(x):
        reconstruction, kl = reconstruct(x)
        return jnp.mean(((reconstruction - x) ** 2).sum(-1) / 2 / 0.1 + kl)

    latent = jax.random.normal(KEY, (512, 2))
    data = latent @ jax.random.normal(jax.random.key(1), (2, 8))
    loss = elbo.init(KEY, data)
    shown = jax.random.key(7)  # one latent key for every evaluation

    def evaluated(loss):
        return loss.apply(data, rng={"latent": shown}, method=lambda m, x: m.reconstruct(x))[0]

    _, kl = evaluated(loss)
    np.testing.assert_array_equal(kl, np.zeros(512))  # the encoder still knows nothing
    np.testing.assert_array_equal(evaluated(loss)[0], evaluated(loss)[0])
    optimizer = br.Optimizer(optax.adam(0.02)).init(loss)

    @jax.jit
    def epoch(carry, key):
        def step(number, carry):
            loss, optimizer = carry
            batch = jax.lax.dynamic_slice_in_dim(data, 64 * (number % 8), 64)
            rng = {"latent": jax.random.fold_in(key, number)}
            grads = br.grad(lambda loss: loss.apply(batch, rng=rng)[0])(loss)
            return optimizer.step(grads, loss)

        return jax.lax.fori_loop(0, 400, step, carry)

    before = float(jnp.mean((evaluated(loss)[0] - data) ** 2))
    (loss, _) = epoch((loss, optimizer), jax.random.key(3))
    reconstruction, kl = evaluated(loss)
    after = float(jnp.mean((reconstruction - data) ** 2))
    print(f"an epoch in one loop: error of the reconstruction {before:.3f} before, {after:.3f} after")
    # Two latent numbers explain all eight, up to the noise that the prior asks for.
    assert after < before / 5
    assert float(kl.mean()) > 1


def main():
    functions_are_models()
    libraries_in_a_row()
    sharing_and_reuse()
    penalties()
    variational_autoencoder()


if __name__ == "__main__":
    main()
