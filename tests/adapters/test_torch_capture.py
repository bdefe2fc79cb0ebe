"""What torch.export makes of a model's code: regions, control flow, effects, and what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional

KEY = jax.random.key(3)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            scale = self.inner(x).mean()
        return x * scale + self.inner(x).detach() + self.inner(x * 2)


def test_no_grad_regions_and_detached_tensors_stay_cut():
    torch.manual_seed(4)
    model, x = Detached(), torch.randn(5, 3, requires_grad=True)
    model(x).sum().backward()
    module = br.from_torch(model, x)
    assert x.grad is not None
    total = lambda module, x: module(x).sum()  # noqa: E731
    close(jax.grad(total, 1)(module, array(x)), x.grad)
    grads = br.grad(total)(module, array(x))
    close(grads.inner.weight, model.inner.weight.grad)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 7 * grad


class Stubborn(nn.Module):
    def forward(self, x):
        return Twice.apply(x)


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Even(nn.Module):
    def forward(self, x):
        torch._assert(x.shape[0] % 2 == 1, "an odd batch")
        return x


class Writing(nn.Module):
    def forward(self, x):
        return x.add_(1)


class Lists(nn.Module):
    def forward(self, x):
        return x[x > 0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Stubborn(), "an autograd Function with a backward of its own, which torch.export drops"),
        (Branching(), "torch.export cannot capture this Branching in eval mode: GuardOnDataDependent"),
        (
            Even(),
            "^this Even fails with this example in torch itself, in eval mode: AssertionError: an odd"
            " batch. Give from_torch inputs that the model takes$",
        ),
        (Writing(), "the model changes its input in place"),
        (nn.LazyLinear(3), "weight is not initialised: the model has lazy layers"),
        (nn.Linear(3, 5, device="meta"), "weight is on the meta device, without values"),
        (nn.Linear, r"from_torch was given the class Linear; make it first: from_torch\(Linear"),
        (len, "from_torch takes a torch.nn.Module; it was given a builtin_function_or_method"),
    ],
    ids=["autograd Function", "data", "example", "in place", "lazy", "meta", "class", "function"],
)
def test_what_cannot_be_captured_says_why(model, message):
    with pytest.raises(br.BridgeError, match=message):
        br.from_torch(model, torch.ones(2, 3))


class Inferring(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        with torch.inference_mode():
            scale = self.inner(x)
        return x * scale


def test_inference_mode_cuts_gradients_as_no_grad_does():
    module = br.from_torch(Inferring(), torch.ones(5, 3))
    grads = br.grad(lambda module: module(jnp.ones((5, 3))).sum())(module)
    assert not grads.inner.weight.any()
    with torch.inference_mode():
        assert torch.ones(2).is_inference()  # torch's own is there again


class Solving(nn.Module):
    def forward(self, x):
        square = x @ x.mT + 3 * torch.eye(x.shape[-1])
        return torch.linalg.inv(square), torch.linalg.cholesky(square), torch.linalg.solve(square, x)


def test_linear_algebra_that_checks_its_input_is_captured():
    x = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(br.from_torch(Solving(), x)(array(x)), Solving()(x), strict=True):
        close(ours, theirs)


class Losses(nn.Module):
    def forward(self, x, targets, frames, labels):
        speech = nn.CTCLoss(zero_infinity=True)(x.log_softmax(-1), targets, frames, labels)
        return speech, F.gaussian_nll_loss(x, x + 1, x, full=True), nn.GaussianNLLLoss()(x, x + 1, 0.3)


def test_losses_that_look_at_values_are_captured():
    torch.manual_seed(0)
    x = torch.rand(11, 2, 5, requires_grad=True)
    given = torch.tensor([[1, 2, 2], [1, 1, 3]]), torch.tensor([11, 7]), torch.tensor([3, 2])
    theirs = Losses()(x, *given)
    module = br.from_torch(Losses(), x, *given)

    def total(losses):
        return sum(weight * loss for weight, loss in zip((1, 2, 5), losses, strict=True))

    for one, other in zip(module(array(x), *map(array, given)), theirs, strict=True):
        close(one, other)
    total(theirs).backward()
    close(jax.grad(lambda x: total(module(x, *map(array, given))))(array(x)), x.grad)


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 5)

    def forward(self, x):
        return self.cell(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 1])))[0].data


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}


class Printing(nn.Module):
    def forward(self, x):
        torch.ops.aten._print("hello")
        return 2 * x


class Narrowing(nn.Module):
    def forward(self, x):
        return x.to(torch.float8_e4m3fn).float()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Narrowing(), "the model uses torch.float8_e4m3fn, which no JAX program has here"),
        (Packing(), "the model packs a sequence, whose batch shrinks from step to step"),
        (
            nn.Sequential(Extra(3, 5)),
            r"0 keeps more than tensors in its state_dict \(get_extra_state\), which no Module has",
        ),
        (
            Printing(),
            r"the model calls aten\._print\.default for its effect, in the root module \(File",
        ),
    ],
    ids=["float8", "packed", "extra state", "effect"],
)
def test_what_no_jax_program_has_is_refused(model, message):
    with pytest.raises(br.BridgeError, match=message):
        br.from_torch(model, torch.ones(2, 2, 3))


class Repeating(nn.Module):
    def forward(self, x):
        def body(count, x):
            return count + 1, F.dropout(x, 0.5, self.training) + 1

        return torch.while_loop(lambda count, x: count < 3, body, (torch.tensor(0), x))[1]


def test_a_draw_inside_of_a_loop_is_refused():
    module = br.from_torch(Repeating(), torch.ones(5, 3))
    assert (module(jnp.ones((5, 3))) == 4).all()
    with pytest.raises(br.BridgeError) as error:
        module.apply(jnp.ones((5, 3)), rng=KEY, mode="train")
    assert str(error.value) == (
        "the root module, aten.native_dropout.default: it draws random numbers in a branch or a loop"
        " (torch.cond, while_loop, scan), where the same ones would come again; draw them before it"
    )


@torch.library.custom_op("bridge_tests::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return 3 * x


triple.register_fake(torch.empty_like)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return torch.ops.bridge_tests.triple(self.inner(x))


def test_ops_without_a_row_are_listed_with_their_place_and_can_be_added(monkeypatch):
    from bridge.adapters.torch import register_op
    from bridge.lowering import table

    monkeypatch.setattr(table, "_added", {})
    model = nn.Sequential(Custom())
    with pytest.raises(br.BridgeError) as error:
        br.from_torch(model, torch.ones(2, 3))
    message = str(error.value)
    assert message.startswith(
        "1 op of this model have no row in JAX:\n  bridge_tests.triple.default, in 0"
    )
    assert "test_torch_capture.py" in message
    assert message.endswith(
        "Add one for each: bridge.adapters.torch.register_op('bridge_tests.triple.default', function)"
    )
    register_op("bridge_tests.triple.default", lambda x: 3 * x)
    close(br.from_torch(model, torch.ones(2, 3))(jnp.ones((2, 3))), model(torch.ones(2, 3)))
    with pytest.raises(br.BridgeError, match="register_op takes the name of an op with its overload"):
        register_op("triple", lambda x: 3 * x)


def test_a_row_that_gives_another_array_than_torch_is_an_error(monkeypatch):
    from bridge.adapters.torch import register_op
    from bridge.lowering import table

    monkeypatch.setattr(table, "_added", {})
    register_op("bridge_tests.triple.default", lambda x: (3 * x).astype(jnp.int32)[0])
    module = br.from_torch(nn.Sequential(Custom()), torch.ones(2, 3))
    with pytest.raises(br.BridgeError) as error:
        module(jnp.ones((2, 3)))
    assert str(error.value) == (
        "0, bridge_tests.triple.default: it gave int32[3], where the captured program has"
        " float32['any', 3]"
    )


def by_a_method(x):
    x.add_(5)


def by_an_index(x):
    x[:, 0] = 5


def through_a_view(x):
    x.view(-1)[1:].mul_(5)


def through_a_detached_one(x):
    x.detach().mul_(5)


def by_an_operator(x):
    torch.ops.aten.mul_.Tensor(x, 5)


def as_an_output(x):
    torch.mul(x, 5, out=x)


def by_a_script(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and still in models
        torch.jit.script(by_a_method)(x)


class Same(br.Module):
    def __call__(self, x):
        return x


WRITES = (by_a_method, by_an_index, through_a_view, through_a_detached_one)


@pytest.mark.parametrize("write", [*WRITES, by_an_operator, as_an_output, by_a_script])
def test_what_is_written_between_two_parts_is_seen_by_the_second(write):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 7), nn.Identity(), nn.Identity()

        def forward(self, x):
            with torch.no_grad():
                y = self.first(x)
                before = y + 0
                write(y)
                return self.third(self.second(y)) - before

    torch.manual_seed(5)
    model, x = Written(), torch.randn(5, 3)
    module = br.from_torch(model, x, mode="eval")
    close(module(array(x)), model.eval()(x))
    seen = module.capture(array(x), paths=["second", "third"])
    written = model.first(x).detach()
    write(written)
    for part in ("second", "third"):
        close(seen[part], written)
    replaced = module.at["second"].set(Same())
    close(replaced(array(x)), model(x))
