"""Each kind of layer in each library, loaded from torch.nn's: the same output, the same gradients."""

import jax
import numpy as np
import pytest
import torch

import bridge as br
import bridge.core.paths as paths
from bridge.weights.report import by_path
from tests.weights.kinds.cases import CASES
from tests.weights.kinds.twins import arguments, output, twin

PAIRS = [(library, case) for case in CASES for library in case.libraries]


def outputs_of(layer, inputs):
    """The output of a torch layer."""
    x, *rest = (torch.from_numpy(array) for array in inputs)
    if isinstance(layer, torch.nn.LSTMCell):
        return layer(x, tuple(rest))[0]
    out = layer(x, *rest)
    return out[0] if isinstance(out, tuple) else out


def plan(match):
    """What a match does, without the evidence."""
    return {(pair.key, pair.path, str(pair.translation), pair.offset) for pair in match.pairs}


@pytest.mark.parametrize(
    ("library", "case"), PAIRS, ids=[f"{case.name}-{library}" for library, case in PAIRS]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's older norms say that they are old
def test_output_and_gradients_are_those_of_torch(library, case):
    layer, module = case.layer(), twin(library, case)
    match = br.match(module, layer)
    assert match.complete, str(match)
    bare = br.match(module, layer.state_dict())
    assert bare.complete, str(bare)
    assert plan(bare) == plan(match)
    loaded = br.load_state_dict(module, layer)

    expected = outputs_of(layer, case.inputs())
    weights = np.random.default_rng(3).normal(size=expected.shape).astype(np.float32)
    (expected * torch.from_numpy(weights)).sum().backward()

    def run(module, args):
        # nnx.WeightNorm puts the weight that it computes into its layer
        out = output(library, case, module.apply(*args)[0])
        return (out * weights).sum(), out

    args = arguments(library, case, case.inputs())
    step = jax.jit(br.value_and_grad(run, has_aux=True))
    (_, out), gradients = step(loaded, args)
    np.testing.assert_allclose(out, expected.detach().numpy(), atol=2e-5, rtol=1e-5)

    came = {name: parameter.grad.numpy() for name, parameter in layer.named_parameters()}
    for path, pairs in by_path(match.pairs).items():
        if path[0] == "params" and any(pair.key in came for pair in pairs):
            wanted = np.zeros(pairs[0].translation.target_shape, np.float32)
            for pair in pairs:  # both parts of a sum have its gradient
                pair.translation.put(came[pair.key], wanted)
            found = loaded.update(gradients).at[paths.join(path)].get()
            np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4, err_msg=str(path))
