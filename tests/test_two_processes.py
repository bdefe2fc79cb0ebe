"""Two processes of jax.distributed, over loopback, give the numbers of one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

pytest.importorskip("flax")
pytest.importorskip("orbax.checkpoint")

PROGRAM = Path(__file__).parent / "two_processes.py"


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return str(listening.getsockname()[1])


def test_two_processes_load_train_save_and_restore_as_one_device(tmp_path):
    from tests import two_processes as program

    weights = program.weights()
    br.save_state_dict(weights, tmp_path / "model.safetensors")
    (tmp_path / "large").mkdir()
    large = program.large_weights()
    size = sum(array.nbytes for array in large.values())
    br.save_state_dict(large, tmp_path / "large" / "model.safetensors", shard_size=size // 3)
    assert len([*(tmp_path / "large").glob("model-*.safetensors")]) == 4
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(number), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)},
        )
        for number in range(2)
    ]
    try:
        texts = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text[-3000:]

    module = program.model().init(jax.random.key(0), jnp.ones((program.BATCH, program.INPUTS)))
    module = br.load_state_dict(module, weights)
    optimizer = br.Optimizer(program.ADAM).init(module)
    losses = []
    for x in program.batches():
        module, optimizer, value = program.step(module, optimizer, x)
        losses.append(float(value))
    result = np.load(tmp_path / "result.npz")
    np.testing.assert_allclose(result["losses"], losses, rtol=1e-5)
    expected = jax.tree.leaves({"module": module, "optimizer": optimizer})
    assert len(expected) == len(result.files) - 1
    for number, array in enumerate(expected):
        np.testing.assert_allclose(result[f"leaf{number}"], array, rtol=1e-4, atol=1e-5)
