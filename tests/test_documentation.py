"""What the documentation shows runs: README, doctests, and an example for every public name."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import bridge as br
from bridge.core.editing import At

ROOT = Path(__file__).parent.parent
ERRORS = {
    name for name, value in vars(br).items() if inspect.isclass(value) and issubclass(value, Exception)
}
MARKERS = {"Parameter", "State", "Key"}


def examples() -> str:
    """Every doctest line of the package."""
    parser = doctest.DocTestParser()
    lines = []
    for file in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                lines += [e.source for e in parser.get_examples(ast.get_docstring(node) or "")]
    return "".join(lines)


EXAMPLES = examples()


def public_names():
    for name in sorted({*dir(br)} - ERRORS - MARKERS - {"TYPE_CHECKING", "Any"}):
        if not name.startswith("_") and not inspect.ismodule(getattr(br, name)):
            yield name


def methods(cls):
    return [name for name in vars(cls) if not name.startswith("_")]


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_has_an_example_that_runs(name):
    assert re.search(rf"\bbr\.{name}\b", EXAMPLES), f"no doctest shows br.{name}"


@pytest.mark.parametrize("name", sorted({*methods(br.Module), *methods(br.Optimizer), *methods(At)}))
def test_every_method_has_an_example_that_runs(name):
    assert re.search(rf"\.{name}\b|\bdef {name}\b", EXAMPLES), f"no doctest shows .{name}"


def test_the_readme_runs(tmp_path, monkeypatch):
    if any(importlib.util.find_spec(name) is None for name in ("flax", "haiku")):
        pytest.skip("the README uses flax and dm-haiku")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 6
    if importlib.util.find_spec("torch") is None:
        blocks = [block for block in blocks if "import torch" not in block]
        assert len(blocks) == 5
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
