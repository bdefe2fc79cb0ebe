import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.randomness import DRAWING

X = jnp.asarray(np.random.default_rng(0).normal(size=(211, 7, 13)), jnp.float32)
DROPOUTS = ["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"]


def draws():
    """A `draw` that gives one key after the other, and the streams that were asked for."""
    streams = []

    def draw(stream="default"):
        streams.append(stream)
        return jax.random.key(len(streams))

    return draw, streams


def drawn(name, *args, **named):
    return DRAWING[f"aten.{name}"](draws()[0], *args, **named)


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize(("p", "train"), [(0.0, True), (0.5, False)])
def test_nothing_is_drawn_where_nothing_is_dropped(name, p, train):
    draw, streams = draws()
    assert DRAWING[f"aten.{name}.default"](draw, X, p, train) is X
    assert streams == []


@pytest.mark.parametrize("name", [*DROPOUTS, "native_dropout"])
def test_dropout_draws_once_from_its_stream(name):
    draw, streams = draws()
    DRAWING[f"aten.{name}.default"](draw, X, 0.5, True)
    assert streams == ["dropout"]


@pytest.mark.parametrize("name", DROPOUTS)
def test_everything_can_be_dropped(name):
    draw, streams = draws()
    assert not DRAWING[f"aten.{name}.default"](draw, X, 1.0, True).any()
    assert streams == []


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_dropout_scales_what_it_keeps(p):
    got = drawn("dropout.default", X, p, True)
    kept = got != 0
    assert float(kept.mean()) == pytest.approx(1 - p, abs=0.02)
    np.testing.assert_allclose(got, jnp.where(kept, X / (1 - p), 0), rtol=1e-6)


def test_native_dropout_gives_its_mask():
    got, mask = drawn("native_dropout.default", X, 0.3, None)
    assert mask.dtype == bool
    np.testing.assert_allclose(got, jnp.where(mask, X / 0.7, 0), rtol=1e-6)


@pytest.mark.parametrize("name", ["feature_dropout", "feature_alpha_dropout"])
def test_channels_are_dropped_as_a_whole(name):
    got = drawn(f"{name}.default", jnp.ones((53, 7, 3, 5)), 0.5, True)
    assert (got == got[:, :, :1, :1]).all()
    assert len(jnp.unique(got)) == 2


def test_alpha_dropout_keeps_mean_and_variance():
    got = drawn("alpha_dropout.default", X, 0.2, True)
    assert float(got.mean()) == pytest.approx(float(X.mean()), abs=0.03)
    assert float(got.var()) == pytest.approx(float(X.var()), abs=0.05)


def test_rrelu_draws_its_slopes_in_training_alone():
    draw, streams = draws()
    row = DRAWING["aten.rrelu.default"]
    assert row(draw, -jnp.ones(3), 0.2, 0.4, False).tolist() == pytest.approx([-0.3] * 3)
    assert streams == []
    slopes = -row(draw, -jnp.ones(997), 0.2, 0.4, True)
    assert 0.2 <= float(slopes.min()) < 0.22
    assert 0.38 < float(slopes.max()) < 0.4
    assert streams == ["default"]


ZEROS = jnp.zeros((101, 97))
MOMENTS = [
    ("rand.default", ([101, 97],), 1 / 2, 1 / 12),
    ("rand_like.default", (ZEROS,), 1 / 2, 1 / 12),
    ("randn.default", ([101, 97],), 0, 1),
    ("randn_like.default", (ZEROS,), 0, 1),
    ("bernoulli.p", (ZEROS, 0.3), 0.3, 0.21),
    ("bernoulli.default", (ZEROS + 0.3,), 0.3, 0.21),
    ("normal.Tensor_float", (ZEROS + 2, 3.0), 2, 9),
    ("normal.float_Tensor", (2.0, ZEROS + 3), 2, 9),
    ("normal.float_float", (2.0, 3.0, [101, 97]), 2, 9),
    ("uniform.default", (ZEROS, -1.0, 3.0), 1, 4 / 3),
    ("normal_functional.default", (ZEROS, 2.0, 3.0), 2, 9),
    ("exponential.default", (ZEROS, 2.0), 1 / 2, 1 / 4),
    ("geometric.default", (ZEROS, 0.5), 2, 2),
    ("poisson.default", (ZEROS + 3,), 3, 3),
    ("_standard_gamma.default", (ZEROS + 3,), 3, 3),
    ("binomial.default", (ZEROS + 5, ZEROS + 0.5), 2.5, 1.25),
    ("random.from", (ZEROS, 2, 7), 4, 2),
    ("random.to", (ZEROS, 5), 2, 2),
]


@pytest.mark.parametrize(("name", "args", "mean", "variance"), MOMENTS)
def test_draws_have_the_moments_of_their_distribution(name, args, mean, variance):
    got = drawn(name, *args)
    assert got.shape == ZEROS.shape
    assert got.dtype == "float32"
    assert float(got.mean()) == pytest.approx(mean, abs=0.1)
    assert float(got.var()) == pytest.approx(variance, rel=0.1)


def test_named_parameters_of_a_distribution_are_heeded():
    got = drawn("uniform.default", ZEROS, to=5.0)
    assert 4.9 < float(got.max()) < 5.0


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("randint.default", (5, [997])),
        ("randint.low", (0, 5, [997])),
        ("randint_like.default", (jnp.zeros(997, jnp.int32), 5)),
        ("randint_like.low_dtype", (jnp.zeros(997, jnp.int32), 0, 5)),
    ],
)
def test_whole_numbers_stay_below_their_bound(name, args):
    got = drawn(name, *args)
    assert got.dtype == "int32"
    assert sorted(set(got.tolist())) == [0, 1, 2, 3, 4]


def test_a_bound_of_64_bits_is_refused_while_jax_has_32():
    with pytest.raises(LoweringError, match="The program holds the integer 1099511627776"):
        drawn("randint.default", 2**40, [3])


def test_a_permutation_has_each_number_once():
    assert sorted(drawn("randperm.default", 11).tolist()) == list(range(11))


@pytest.mark.parametrize("replacement", [False, True])
def test_places_are_drawn_by_their_weights(replacement):
    weights = jnp.array([[0.0, 1.0, 3.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    got = drawn("multinomial.default", weights, 2, replacement)
    assert got.shape == (2, 2)
    assert set(got[0].tolist()) <= {1, 2}
    assert set(got[1].tolist()) <= {0, 1}
    if not replacement:
        assert [len(set(row)) for row in got.tolist()] == [2, 2]


def test_the_weights_decide_how_often_a_place_is_drawn():
    got = drawn("multinomial.default", jnp.array([1.0, 3.0]), 4001, True)
    assert float(got.mean()) == pytest.approx(0.75, abs=0.02)


def test_a_point_of_a_simplex_sums_to_one():
    got = drawn("_sample_dirichlet.default", jnp.ones((5, 3)))
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
