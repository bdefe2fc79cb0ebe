"""Folders of Orbax, as its checkpointer and its manager write them."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import CheckpointError, WeightsError
from bridge.weights.sources import open_source

ocp = pytest.importorskip("orbax.checkpoint")

TREE = {
    "params": {"dense": {"kernel": jnp.ones((3, 5), jnp.bfloat16), "bias": np.arange(7)}},
    "list": [jnp.zeros(2), jnp.arange(11.0)],
    "step": 3,
}
KEYS = {"params.dense.kernel", "params.dense.bias", "list.0", "list.1", "step"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "one", TREE)
    with ocp.CheckpointManager(folder / "run") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave(TREE))
    return folder


@pytest.mark.parametrize("place", ["one", "run/1", "run/2/default"])
def test_a_checkpoint_is_read_by_dotted_paths(folder, place):
    tensors = open_source(folder / place).tensors
    assert set(tensors) == KEYS
    kernel = tensors["params.dense.kernel"]
    assert (kernel.shape, kernel.dtype) == ((3, 5), jnp.bfloat16)
    np.testing.assert_array_equal(kernel.read(), TREE["params"]["dense"]["kernel"])
    np.testing.assert_array_equal(tensors["params.dense.bias"].read(), np.arange(7))
    np.testing.assert_array_equal(tensors["list.1"].read(), np.arange(11.0))
    assert tensors["step"].read() == 3


def test_a_run_of_several_steps_is_refused_with_them(folder):
    with pytest.raises(WeightsError) as caught:
        open_source(folder / "run")
    steps = f"{folder}/run/1/default, {folder}/run/2/default"
    assert str(caught.value) == (
        f"{folder}/run holds 2 checkpoints of Orbax; give one of them: {steps}"
    )


def test_a_damaged_checkpoint_is_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder / "one", broken)
    tensors = open_source(broken).tensors
    for file in [*broken.rglob("d/*"), *broken.rglob("manifest.ocdbt")]:
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError) as caught:
        tensors["list.1"].read()
    assert str(caught.value).startswith(f"{broken} is a damaged checkpoint of Orbax, or one that its")
    (broken / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        open_source(broken)
    assert str(caught.value) == (
        f"{broken} is a damaged checkpoint of Orbax: its _METADATA has no tree"
    )
