"""The command itself: how it is started, and how it ends."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bridge.cli

ROOT = Path(__file__).parents[2]


def test_the_command_is_an_entry_point():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["bridge"].partition(":")
    assert getattr(importlib.import_module(module), function) is bridge.cli.main


def test_without_the_extra_the_command_says_what_to_install():
    program = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "typer":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from bridge.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'The bridge command needs typer and rich. Install them with: pip install "bridge-jax[cli]"\n'
    )


def test_without_a_command_all_of_them_are_listed(bridge):
    code, out, err = bridge()
    assert code == 2
    listed = (out + err).partition("Commands:\n")[2].splitlines()
    commands = ["inspect", "match", "convert", "diff", "verify", "doctor", "adapters"]
    assert [line.split()[0] for line in listed] == commands


@pytest.mark.parametrize("arguments", ["inspekt x", "inspect", "inspect --jsn x"])
def test_wrong_usage_is_exit_code_2_and_nothing_on_stdout(arguments, bridge):
    code, out, err = bridge(*arguments.split())
    assert (code, out) == (2, "")
    assert "Error: " in err
