"""PyTorch's peculiarities: what is captured of a model, and what a capture cannot have."""

import copy
import logging
import math
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br

torch = pytest.importorskip("torch")
nn = torch.nn

KEY = jax.random.key(3)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, *, gain=1.0):
        return self.drop(self.act(self.norm(self.conv(x)))) * gain


class Net(nn.Module):
    """Two blocks, a tied matrix, a frozen bias, buffers of every kind, and a dict for its output."""

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 7)
        self.third = nn.Linear(7, 7)
        self.third.weight = self.second.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, True, True]))
        self.register_buffer("ramp", torch.arange(7.0), persistent=False)

    def forward(self, x, shift=None):
        self.calls += 1
        pooled = self.body(x, gain=2.0).mean((2, 3))
        hidden = self.first(pooled)
        out = self.third(torch.tanh(self.second(hidden))) * self.mask + self.ramp
        if shift is not None:
            out = out + shift
        return {"out": out, "parts": (pooled, [hidden]), "none": None}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 3, 8, 11, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net(model, x):
    return br.from_torch(model, x)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


def without_dropout(model):
    model = copy.deepcopy(model).train()
    model.body.drop.p = 0.0
    return model


def test_the_forward_is_torchs_in_the_structure_of_its_output(net, model, x):
    ours, theirs = net.apply(array(x))[0], copy.deepcopy(model).eval()(x)
    assert list(ours) == ["out", "parts", "none"]
    assert ours["none"] is None
    assert type(ours["parts"]) is tuple
    assert type(ours["parts"][1]) is list
    close(ours["out"], theirs["out"])
    close(ours["parts"][1][0], theirs["parts"][1][0])


def test_the_given_model_is_not_changed(model, x):
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    br.from_torch(model, x, mode="train")
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_prints_as_torch_does(net, model):
    assert repr(net) == repr(model)


def test_the_state_dict_is_torchs_bit_for_bit(net, model):
    ours, theirs = br.state_dict(net), model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert str(ours[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        assert ours[name].tobytes() == tensor.numpy().tobytes()


def test_kinds_follow_torch(net):
    from bridge.core.tree import entries

    kinds = {".".join(entry.path): entry for entry in entries(net)}
    assert kinds["body.conv.weight"].trained
    assert kinds["first.bias"].frozen
    assert kinds["mask"].kind.name == "state"
    assert kinds["mask"].value.dtype == bool
    assert kinds["ramp"].kind.name == "state"
    assert net.parameters().third.weight is None
    assert net.at["third.weight"].get() is net.at["second.weight"].get()


def test_train_mode_updates_the_buffers_as_torch_does(model, x):
    trained = without_dropout(model)
    module = br.from_torch(trained, x)
    step = jax.jit(lambda module: module.apply(array(x), mode="train", rng=KEY))
    for _ in range(3):
        theirs = trained(x)
        ours, module = step(module)
    close(ours["out"], theirs["out"])
    close(module.body.norm.running_var, trained.body.norm.running_var)
    close(module.body.norm.running_mean, trained.body.norm.running_mean)
    assert int(module.body.norm.num_batches_tracked) == 3
    assert int(module.calls) == 3


def test_batch_norm_without_momentum_averages_all_batches(x):
    norm = nn.BatchNorm2d(3, momentum=None)
    module = br.from_torch(norm, x)
    for scale in (1.0, 2.0, 5.0):
        norm(x * scale)
        _, module = module.apply(array(x) * scale, mode="train")
    close(module.running_var, norm.running_var)
    close(module.running_mean, norm.running_mean)
    assert "forward" not in vars(norm)


def test_gradients_are_those_of_autograd(model, x):
    trained = without_dropout(model)
    module = br.from_torch(trained, x)
    weights = torch.randn(7, generator=torch.Generator().manual_seed(2))
    loss = (trained(x)["out"] * weights).sum()
    loss.backward()

    def ours(module):
        return (module.apply(array(x), mode="train", rng=KEY)[0]["out"] * array(weights)).sum()

    grads = jax.jit(br.grad(ours))(module)
    close(grads.body.conv.weight, trained.body.conv.weight.grad, 1e-4)
    close(grads.second.weight, trained.second.weight.grad, 1e-4)
    assert grads.first.bias is None


def test_dropout_draws_a_mask_by_path_each_time(net, x):
    first, second, again = (
        net.apply(array(x), rng=jax.random.key(n), mode="train")[0]["parts"][0] for n in (0, 1, 0)
    )
    assert (first == again).all()
    assert (first != second).any()
    assert (net.apply(array(x))[0]["parts"][0] != first).any()


def test_train_mode_without_a_key_names_the_dropout(net, x):
    with pytest.raises(br.BridgeError) as error:
        net.apply(array(x), mode="train")
    assert "body.drop" in str(error.value)
    assert "'dropout'" in str(error.value)


def test_a_part_in_eval_mode_stays_there(model, x):
    fixed = without_dropout(model)
    fixed.body.norm.eval()
    module = br.from_torch(fixed, x)
    out, after = module.apply(array(x), mode="train", rng=KEY)
    close(out["out"], fixed(x)["out"])
    assert int(after.body.norm.num_batches_tracked) == 0
    assert int(after.calls) == 1


def test_a_part_can_be_pinned_to_another_mode(net, model, x):
    pinned = net.at["body"].apply(lambda part: part.eval())
    out, after = pinned.apply(array(x), mode="train")  # no dropout is left that needs a key
    fixed = copy.deepcopy(model).train()
    fixed.body.eval()
    close(out["out"], fixed(x)["out"])
    assert int(after.body.norm.num_batches_tracked) == 0
    assert int(after.calls) == 1


def test_a_part_runs_alone(net, model, x):
    close(net.body(array(x), gain=2.0), copy.deepcopy(model).eval().body(x, gain=2.0))
    out, after = net.body.apply(array(x), gain=2.0, mode="train", rng=KEY)
    assert out.shape == (3, 5, 8, 11)
    assert int(after.norm.num_batches_tracked) == 1
    with pytest.raises(br.BridgeError) as error:
        net.body(array(x))
    assert str(error.value).startswith(
        "the root module: input gain is 1.0, and the model was captured with 2.0."
    )


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten(0, 1)

    def forward(self, x):
        batch, length, width = x.shape
        halves = x.reshape(batch, length, 2, width // 2).transpose(1, 2)
        return self.flat(halves.reshape(batch, length, width)), batch * length


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = Rows()

    def forward(self, x):
        rows, count = self.rows(2 * x)
        return rows.view(x.shape[0], -1).sum(1) * count


def test_a_part_that_looks_at_sizes_runs_alone_for_other_ones():
    model = Sums()
    module = br.from_torch(model, torch.zeros(2, 5, 4))
    x = torch.randn(3, 7, 4)
    close(module(array(x)), model(x), 1e-4)
    rows, count = module.rows(array(x))
    close(rows, model.rows(x)[0])
    assert count == 21
    assert module.rows.flat(array(x)).shape == (21, 4)


def test_a_part_can_be_replaced(net, model, x):
    class Shrink(br.Module):
        factor: br.Parameter

        def __call__(self, x):
            return self.factor * x

    changed = net.at["first"].set(br.from_torch(nn.Linear(5, 7), torch.zeros(2, 5)))
    assert not jnp.allclose(changed.apply(array(x))[0]["out"], net.apply(array(x))[0]["out"])
    changed = net.at["body.norm"].set(Shrink(0.5))
    twin = copy.deepcopy(model).eval()
    twin.body.norm = nn.Identity()
    twin.body.norm.forward = lambda x: 0.5 * x
    _, after = changed.apply(array(x), mode="train", rng=KEY)
    close(changed.apply(array(x))[0]["out"], twin(x)["out"])
    assert int(after.calls) == 1
    grads = br.grad(lambda module: module.apply(array(x))[0]["out"].sum())(changed)
    assert grads.body.norm.factor.shape == ()


def test_intermediate_outputs_are_captured_by_torchs_names(net, model, x):
    seen = {}
    evaluated = copy.deepcopy(model).eval()
    evaluated.body.norm.register_forward_hook(lambda *given: seen.update(norm=given[2].clone()))
    evaluated.first.register_forward_hook(lambda *given: seen.update(first=given[2].clone()))
    evaluated(x)
    captured = net.capture(array(x), paths=["body.norm", "first"])
    close(captured["body.norm"], seen["norm"])
    close(captured["first"], seen["first"])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_another_batch_size_needs_no_new_capture(net, model, x, size):
    other = torch.randn(size, 3, 8, 11)
    close(net.apply(array(other))[0]["out"], copy.deepcopy(model).eval()(other)["out"])


def test_a_batch_of_one_is_free_as_well():
    module = br.from_torch(nn.Linear(3, 5), torch.zeros(1, 3))
    assert module(jnp.ones((7, 3))).shape == (7, 5)


def test_a_model_for_one_alone_takes_its_own_example():
    class Single(nn.Module):
        def forward(self, x):
            return x * 3 if len(x) == 1 else x * 5

    module = br.from_torch(Single(), torch.zeros(1, 3))
    assert (module(jnp.ones((1, 3))) == 3).all()
    with pytest.raises(br.BridgeError, match="the captured program is for"):
        module(jnp.ones((2, 3)))


def test_sizes_that_cannot_be_free_leave_the_batch_free():
    class Chosen(nn.Module):
        def forward(self, x):
            return x * torch.ones(7)[: int(x.shape[1])].reshape(5) + x.new_zeros(5)

    module = br.from_torch(Chosen(), torch.zeros(2, 5))
    assert module(jnp.ones((3, 5))).shape == (3, 5)


def test_sizes_that_become_long_formulas_leave_the_batch_free():
    class Same(nn.Conv2d):
        """A convolution that pads by as much as gives one output for every stride."""

        def forward(self, x):
            down, right = (max(0, (math.ceil(size / 2) - 1) * 2 + 3 - size) for size in x.shape[2:])
            return super().forward(nn.functional.pad(x, (0, right, 0, down)))

    model = nn.Sequential(*(Same(1, 1, 3, stride=2) for _ in range(5)))
    module = br.from_torch(model, torch.zeros(2, 1, 64, 64))
    assert module(jnp.ones((3, 1, 64, 64))).shape == (3, 1, 2, 2)
    with pytest.raises(br.BridgeError) as error:
        module(jnp.ones((2, 1, 32, 64)))
    assert re.fullmatch(
        r"the root module: input input has size 32 on axis 2; the captured program is for 64 alone"
        r" \(torch.export could not free it: \d has a size that takes \d+ operations on those of the"
        r" inputs\). Capture the model with an example of that size: bridge.from_torch\(...\)",
        str(error.value),
    )


def test_sizes_stay_as_they_are_without_dynamic_batch():
    module = br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3), dynamic_batch=False)
    with pytest.raises(br.BridgeError) as error:
        module(jnp.ones((7, 3)))
    assert str(error.value) == (
        "the root module: input input has size 7 on axis 0; the captured program is for 2 alone"
        " (dynamic_batch=False). Capture the model with an example of that size: bridge.from_torch(...)"
    )


def test_sizes_that_the_python_code_has_looked_at_are_checked():
    class Halves(nn.Module):
        def forward(self, x, y):
            return (x * 2 if x.shape[0] % 2 == 0 else x * 3) @ y

    module = br.from_torch(Halves(), torch.ones(4, 5), torch.ones(5, 7))
    assert module(jnp.ones((6, 3)), jnp.ones((3, 2)))[0, 0] == 6
    for shapes in (((5, 3), (3, 2)), ((6, 3), (4, 2))):
        with pytest.raises(br.BridgeError, match=r"the captured program is for sizes with .* alone"):
            module(*map(jnp.ones, shapes))


@pytest.mark.parametrize("transform", ["vmap", "scan", "remat", "grad of grad", "eval_shape"])
def test_jax_transforms_work(net, x, transform):
    images = array(x)

    def loss(module, x):
        return (module.apply(x)[0]["out"] ** 2).mean()

    expected = loss(net, images)
    if transform == "vmap":
        found = jax.vmap(loss, (None, 0))(net, jnp.stack([images, images]))[1]
    elif transform == "scan":
        _, found = jax.lax.scan(lambda m, x: (m.apply(x)[1], loss(m, x)), net, images[None])
        found = found[0]
    elif transform == "remat":
        found = jax.checkpoint(loss)(net, images)
    elif transform == "eval_shape":
        assert jax.eval_shape(loss, net, images).shape == ()
        return
    else:
        hessian = jax.grad(lambda x: jax.grad(loss, 1)(net, x).sum())(images)
        assert jnp.isfinite(hessian).all()
        return
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_trains_with_one_optimizer_in_a_scan(net, x):
    images = array(x)
    optimizer = br.Optimizer(optax.adamw(5e-2)).init(net)

    def step(carry, key):
        module, optimizer = carry

        def loss(module):
            out, after = module.apply(images, rng=key, mode="train")
            return (out["out"] ** 2).mean(), after

        (value, module), grads = br.value_and_grad(loss, has_aux=True)(module)
        return optimizer.step(grads, module), value

    (module, _), losses = jax.lax.scan(step, (net, optimizer), jax.random.split(KEY, 20))
    assert losses[-1] < losses[0] - 4
    assert int(module.calls) == 20
    assert (module.at["first.bias"].get() == net.at["first.bias"].get()).all()


def test_the_trained_weights_go_back_to_torch(net, model, x):
    _, trained = net.apply(array(x), mode="train", rng=KEY)
    trained = trained.update(jax.tree.map(lambda leaf: 1.5 * leaf, trained.parameters()))
    exported = br.to_torch(trained, like=model).eval()
    assert exported.third.weight is exported.second.weight
    assert int(exported.calls) == 1
    close(trained.apply(array(x))[0]["out"], exported(x)["out"], 1e-4)
    assert int(model.calls) == 0


def test_to_torch_says_what_does_not_fit(net):
    with pytest.raises(br.BridgeError) as error:
        br.to_torch(net, like=nn.Linear(5, 7))
    message = str(error.value)
    assert message.startswith("the Module does not fit this Linear:\n  calls: the torch model has none")
    assert "\n  weight: the Module has none" in message
    with pytest.raises(br.BridgeError, match="to_torch takes a torch model as like="):
        br.to_torch(net, like={})
    with pytest.raises(br.BridgeError, match=r"to_torch takes a bridge.Module; it was given a Linear"):
        br.to_torch(nn.Linear(5, 7), like=nn.Linear(5, 7))


def test_state_dict_has_what_other_modules_hold_beside_a_captured_part(net, model):
    class Scaled(br.Module):
        inner: br.Module
        factor: br.Parameter

    weights = br.state_dict(Scaled(net, 1.0))
    assert {*weights} == {"factor", *(f"inner.{name}" for name in model.state_dict())}
    with pytest.raises(br.BridgeError, match=r"state_dict takes a bridge\.Module; it was given a dict"):
        br.state_dict({})


def test_two_captures_of_one_model_have_one_structure(net, model, x):
    assert jax.tree.structure(br.from_torch(model, x)) == jax.tree.structure(net)
    assert jax.tree.structure(pickle.loads(pickle.dumps(net))) == jax.tree.structure(net)


def test_a_saved_module_runs_without_torch(net, x, tmp_path):
    path, images = tmp_path / "net.safetensors", tmp_path / "x.npy"
    br.save(path, net)
    np.save(images, x.numpy())
    expected = net.apply(array(x))[0]["out"]
    loaded = br.load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(net.unfreeze().freeze("first.bias"))
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import bridge as br, jax, numpy as np\n"
        f"module = br.load({str(path)!r})\n"
        f"out, after = module.apply(np.load({str(images)!r}), mode='train', rng=jax.random.key(0))\n"
        f"print(float(module.apply(np.load({str(images)!r}))[0]['out'].sum()), int(after.calls))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    total, calls = ran.stdout.split()
    np.testing.assert_allclose(float(total), float(expected.sum()), rtol=1e-5)
    assert calls == "1"


def test_a_file_without_a_program_needs_like(net, tmp_path):
    path = tmp_path / "parts.safetensors"
    br.save(path, {"net": net})
    with pytest.raises(br.BridgeError, match="holds arrays and no program"):
        br.load(path)
    changed = net.at["first"].set(br.from_torch(nn.Linear(5, 7), torch.zeros(2, 5)))
    br.save(path, changed)
    with pytest.raises(br.BridgeError, match="holds arrays and no program"):
        br.load(path)


def test_example_inputs_are_tensors():
    with pytest.raises(br.BridgeError, match=r"are torch tensors: torch.zeros\(2, 3\)"):
        br.from_torch(nn.Linear(3, 5), np.zeros((2, 3), np.float32))
    module = br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3))
    with pytest.raises(br.BridgeError, match=r"which is a bridge\.Module already"):
        br.from_torch(module, torch.zeros(2, 3))


@pytest.mark.parametrize("capture", [br.from_torch, br.wrap], ids=["from_torch", "wrap"])
def test_a_model_without_its_example_says_so(capture, capfd):
    with pytest.raises(br.BridgeError) as error:
        capture(nn.Linear(3, 5))
    assert str(error.value) == (
        "the example inputs do not fit the forward of this Linear: missing a required argument:"
        " 'input'. Type from_torch(model, *example), with tensors as the model takes them"
    )
    own = "this Linear fails with this example in torch itself, in eval mode: RuntimeError: mat1 and"
    with pytest.raises(br.BridgeError, match=own):
        br.from_torch(nn.Linear(3, 5), torch.zeros(2, 4))
    assert capfd.readouterr().err == ""  # torch.export has nothing to add


def test_capturing_inside_of_inference_mode_says_so():
    with torch.inference_mode(), pytest.raises(br.BridgeError) as error:
        br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3))
    assert str(error.value) == (
        "from_torch was called inside of torch.inference_mode(), where torch.export cannot work; call"
        " it outside of it"
    )


def test_an_input_of_another_form_is_an_error():
    module = br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3))
    for value, message in (
        (jnp.ones((2, 4)), "input input has size 4 on axis 1; the captured program is for 3 alone"),
        (jnp.ones(3), r"input input has 1 axes \[3\]; the model was captured with 2"),
        (jnp.ones((2, 3), jnp.bfloat16), "input input is bfloat16, and the model was captured with"),
    ):
        with pytest.raises(br.BridgeError, match=message):
            module(value)
    with pytest.raises(br.BridgeError, match="got no 'input', and the model was captured with it"):
        module()


def test_float64_wants_x64():
    with pytest.raises(br.BridgeError, match="weight is float64, and JAX has float32 alone while x64"):
        br.from_torch(nn.Linear(3, 5).double(), torch.zeros(2, 3).double())


def test_with_x64_doubles_and_large_integers_stay_what_they_are():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 5).double()
            self.register_buffer("count", torch.tensor(2**40))

        def forward(self, x, n):
            self.count += n
            return self.inner(x), self.count * 3, n + 1

    torch.manual_seed(6)
    model, x = Doubled(), torch.randn(7, 3).double()
    with jax.enable_x64(True):
        module = br.from_torch(model, x, torch.tensor(1))
        (out, count, after), module = module.apply(array(x), jnp.asarray(5))
        np.testing.assert_allclose(out, model.inner(x).detach().numpy(), rtol=1e-14)
        assert (int(count), int(after)) == (3 * (2**40 + 5), 6)
        assert count.dtype == after.dtype == module.count.dtype == jnp.int64


def test_integers_have_32_bits_without_x64_and_64_again_in_the_state_dict():
    class Counting(nn.Module):
        def __init__(self, start):
            super().__init__()
            self.register_buffer("count", torch.tensor(start))

        def forward(self, x):
            self.count += x.sum()
            return self.count * 2

    module = br.from_torch(Counting(3), torch.tensor([1, 2]))
    out, module = module.apply(jnp.array([4, 5]))
    assert (int(out), out.dtype, br.state_dict(module)["count"].dtype) == (24, jnp.int32, np.int64)
    with pytest.raises(br.BridgeError, match="count is int64, and JAX has int32 alone"):
        br.from_torch(Counting(2**40), torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_keep_their_bits(dtype):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU()).to(getattr(torch, dtype))
    x = torch.randn(7, 3).to(getattr(torch, dtype))
    module = br.from_torch(model, x)
    out = module(jnp.asarray(x.float().numpy()).astype(dtype))
    assert str(out.dtype) == dtype
    np.testing.assert_allclose(
        out.astype(jnp.float32), model(x).detach().float().numpy(), rtol=2e-2, atol=2e-2
    )
    weight = br.state_dict(module)["0.weight"]
    assert weight.tobytes() == model[0].weight.detach().view(torch.int16).numpy().tobytes()


def test_the_capture_is_told_in_the_log(x, caplog):
    with caplog.at_level(logging.INFO, "bridge"):
        br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3), mode="eval")
    assert caplog.messages[0] == "capturing Linear for eval"
    assert caplog.messages[1].startswith("captured Linear for eval in ")


def test_the_capture_is_a_line_of_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3), mode="train")
    first, second = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert first == "capturing Linear for train"
    assert second.startswith("captured Linear for train in ")
    assert second.endswith(" s\n")


def test_a_mode_that_was_not_captured_is_an_error():
    module = br.from_torch(nn.Linear(3, 5), torch.zeros(2, 3), mode="eval")
    with pytest.raises(br.BridgeError) as error:
        module.apply(jnp.ones((2, 3)), mode="train")
    assert str(error.value) == (
        "the root module runs in train mode, and the model was captured for eval alone; type"
        " bridge.from_torch(model, *example)"
    )
