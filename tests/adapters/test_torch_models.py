"""Models as people write them: what they draw and return beside tensors, and some of transformers."""

import copy
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import LoweringError, ModelError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

from benchmarks.zoo_models import declare_detection_ops

# Where a torchvision of another torch is installed, transformers cannot be imported without them.
declare_detection_ops()

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 23, "vocab_size": 31}


class Skipping(nn.Module):
    """A layer that training skips where a draw is below a probability."""

    def __init__(self, probability, draw):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.probability, self.draw = probability, draw

    def forward(self, x):
        if self.training and self.draw() < self.probability:
            return x
        return self.layer(x)


def test_a_layer_that_is_skipped_with_probability_zero_is_always_run():
    model = Skipping(0.0, lambda: torch.rand([]))
    x = torch.randn(5, 3)
    module = br.from_torch(model, x)
    out, _ = module.apply(x.numpy(), mode="train", rng=jax.random.key(0))
    np.testing.assert_allclose(out, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_skipped_now_and_then_is_refused_in_train_mode_alone():
    model = Skipping(0.25, lambda: torch.rand([]))
    x = torch.randn(5, 3)
    br.from_torch(model, x, mode="eval")
    with pytest.raises(ModelError) as raised:
        br.from_torch(model, x)
    assert str(raised.value) == (
        "the model skips a part of itself where torch.rand([]) < 0.25, and a program runs all of its"
        " parts; set that probability to zero (often `layerdrop`), or capture the model for evaluation"
        " alone: bridge.from_torch(model, *example, mode='eval')"
    )


def test_a_draw_that_was_changed_may_be_below_zero():
    model = Skipping(0.0, lambda: torch.rand([]).sub_(2))
    with pytest.raises(LoweringError, match="data-dependent"):
        br.from_torch(model, torch.randn(5, 3))


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_draw_outside_of_torch_is_refused(draw):
    with pytest.raises(ModelError, match=r"draws from Python's random or from np\.random"):
        br.from_torch(Skipping(0.0, draw), torch.randn(5, 3))


class TwoConstants(nn.Module):
    def forward(self, x):
        return x * torch.tensor([2.0, 3.0]) + torch.tensor([2.0, 3.0])


def test_two_constants_of_equal_values_are_two():
    x = np.asarray([[5.0, 7.0]], np.float32)
    module = br.from_torch(TwoConstants(), torch.from_numpy(x))
    np.testing.assert_array_equal(module(x), [[12.0, 24.0]])


class FlatHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True)
        self.flat, self.head = nn.Flatten(1), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.flat(self.act(self.conv(x))))


def test_a_part_may_give_a_view_of_what_was_written_into():
    model, x = FlatHead(), torch.randn(7, 3, 1, 1)
    module = br.from_torch(model, x, mode="eval")
    np.testing.assert_allclose(module(x.numpy()), model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


class Box:
    def __init__(self, inside):
        self.inside = inside


class Boxed(nn.Module):
    def forward(self, x):
        return {"out": x, "more": (x, Box(x))}


def test_an_object_that_holds_tensors_cannot_be_returned():
    with pytest.raises(ModelError) as raised:
        br.from_torch(Boxed(), torch.randn(5, 3))
    assert str(raised.value) == (
        "this Boxed returns what no JAX program gives:\n"
        "  ['more'][1] is a Box\n"
        "Let it return tensors in tuples and dicts (of transformers often: use_cache=False), or make"
        " the class known by torch.export.register_dataclass"
    )


@pytest.fixture(scope="module")
def gpt2():
    """A small GPT-2, which returns its cache as it comes."""
    torch.manual_seed(0)
    sizes = {"n_embd": 14, "n_layer": 1, "n_head": 2, "vocab_size": 31}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()


def ids(*shape):
    return torch.randint(0, 31, shape, generator=torch.Generator().manual_seed(0))


def test_the_cache_of_a_language_model_goes_out_and_in_again(gpt2):
    tokens = ids(2, 7)
    with torch.no_grad():
        whole = gpt2(input_ids=tokens).logits[:, -1:].numpy()
        start = gpt2(input_ids=tokens[:, :4])
    first = br.from_torch(gpt2, input_ids=tokens[:, :3], mode="eval")
    cache = copy.deepcopy(start.past_key_values)
    following = br.from_torch(gpt2, input_ids=tokens[:, 4:], past_key_values=cache, mode="eval")
    held = first(input_ids=jnp.asarray(tokens[:, :4].numpy()))["past_key_values"]
    assert sorted(held) == ["key_cache", "value_cache"]
    theirs = [layer.keys.numpy() for layer in start.past_key_values.layers]
    np.testing.assert_allclose(held["key_cache"], theirs, rtol=1e-4, atol=1e-6)
    out = following(input_ids=jnp.asarray(tokens[:, 4:].numpy()), past_key_values=held)
    np.testing.assert_allclose(out["logits"][:, -1:], whole, rtol=1e-4, atol=1e-5)


SEQ2SEQ = {
    "d_model": 14,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 23,
    "decoder_ffn_dim": 23,
    "vocab_size": 31,
    "dropout": 0.0,
}
SMALL = {
    "BertModel": (
        "BertConfig",
        {**SIZES, "hidden_size": 14, "attention_probs_dropout_prob": 0.0},
        {"input_ids": ids(2, 5)},
    ),
    "LlamaForCausalLM": (
        "LlamaConfig",
        {**SIZES, "hidden_size": 12, "num_key_value_heads": 1},
        {"input_ids": ids(2, 5), "use_cache": False},
    ),
    "BartModel": (
        "BartConfig",
        SEQ2SEQ,
        {"input_ids": ids(2, 5), "decoder_input_ids": ids(2, 3), "use_cache": False},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_model_of_transformers_gives_what_torch_gives_and_its_gradients(name):
    config, sizes, given = SMALL[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    arrays = {n: one.numpy() if torch.is_tensor(one) else one for n, one in given.items()}
    module = br.from_torch(model, mode="train", **given)
    theirs = model(**given)[0]
    cotangent = np.random.default_rng(0).standard_normal(theirs.shape).astype(np.float32)
    (theirs * torch.from_numpy(cotangent)).sum().backward()

    @functools.partial(br.value_and_grad, has_aux=True)
    def step(module):
        out, _ = module.apply(**arrays, mode="train", rng=jax.random.key(0))
        value = out["logits" if "logits" in out else "last_hidden_state"]
        return jnp.sum(value * cotangent), value

    (_, ours), grads = jax.jit(step)(module)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    wanted = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in model.parameters()]
    for mine, their in zip(jax.tree.leaves(grads), wanted, strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-3, atol=1e-4)
