"""Who may import whom, what `import bridge` costs, and what a missing library says."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = {"jax", "numpy", "optax", "ml_dtypes", "safetensors", "jaxtyping"}
LIBRARIES = {
    "linen": "flax",
    "nnx": "flax",
    "haiku": "haiku",
    "equinox": "equinox",
    "torch": "torch",
}
FILES = {"__init__.py", "_wrap.py", "_export.py", "_layers.py", "_dialect.py"}
BELOW = {"torch": ("bridge.lowering", "bridge.capture")}  # what an adapter stands on beside core
FRAMEWORKS = {*LIBRARIES.values(), "orbax", "treescope", "matplotlib", "typer", "rich"}
FRAMEWORKS |= {"transformers", "huggingface_hub", "sklearn", "tokenizers"}


@dataclass(frozen=True)
class Import:
    source: str
    target: str
    line: int
    eager: bool  # runs when the source is imported: in no function, and not for type checkers alone

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def sources(root: Path) -> dict[str, Path]:
    """The files of the package `bridge` below `root`, by module name."""
    names = {}
    for path in sorted((root / "bridge").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(root: Path) -> list[Import]:
    """Every import of the package, relative ones resolved, `import_module("literal")` included."""
    files = sources(root)
    return [
        Import(name, target, line, eager)
        for name, path in files.items()
        for node, eager in statements(ast.parse(path.read_text()), eager=True)
        for target, line in targets(node, name, path.stem == "__init__", files.keys())
    ]


def statements(node: ast.AST, eager: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield child, eager
        yield from statements(child, eager and not lazy and not typing_only)


def targets(node: ast.AST, source: str, is_package: bool, known: set[str]) -> Iterator[tuple[str, int]]:
    match node:
        case ast.Import(names=names):
            yield from ((alias.name, node.lineno) for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            parts = source.split(".")
            above = parts[: len(parts) - level + is_package] if level else []
            origin = ".".join([*above, *([module] if module else [])])
            for alias in names:
                full = f"{origin}.{alias.name}"
                yield (full if full in known else origin), node.lineno
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            if ast.unparse(function) in {"import_module", "importlib.import_module", "__import__"}:
                yield name, node.lineno


def violations(root: Path) -> list[str]:
    """One sentence for each import that breaks a rule, and one for a cycle."""
    found = imports(root)
    broken = [f"{one}: {rule}" for one in found for rule in broken_rules(one)]
    return broken + cycles(found)


def broken_rules(one: Import) -> Iterator[str]:
    inside = one.library == "bridge"
    third_party = not inside and one.library not in sys.stdlib_module_names
    match one.source.split("."):
        case ["bridge", "core", *_]:
            if inside and not within(one.target, "bridge.core"):
                yield "above core"
            if third_party and one.library not in CORE:
                yield "not a library of core"
        case ["bridge", "lowering", *_]:
            if inside and not within(one.target, "bridge.core", "bridge.lowering"):
                yield "above the lowering"
            if third_party and one.library not in CORE:
                yield "not a library of core"
        case ["bridge", "dataflow", *_]:
            if inside and not within(one.target, "bridge.core", "bridge.dataflow"):
                yield "above the dataflow"
            if third_party and one.library not in CORE:
                yield "not a library of core"
        case ["bridge", "capture", *_]:
            if inside and not within(one.target, "bridge.core", "bridge.lowering", "bridge.capture"):
                yield "above the capture"
            if third_party and one.library not in CORE | {"torch"}:
                yield "a library neither of core nor torch"
        case ["bridge", "adapters", adapter, *rest]:
            below = ("bridge.core", f"bridge.adapters.{adapter}", *BELOW.get(adapter, ()))
            if inside and not within(one.target, *below):
                yield "neither core nor this adapter"
            if third_party and rest == ["_dialect"]:
                yield "a dialect is pure data"
            elif third_party and one.library not in CORE | {LIBRARIES.get(adapter)}:
                yield "a library neither of core nor of this adapter"


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def cycles(found: list[Import]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for one in found:
        if one.eager and one.library == "bridge":
            graph.setdefault(one.source, set()).add(one.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return ["a cycle: " + " <- ".join(error.args[1])]
    return []


def test_bridge_keeps_the_import_rules():
    assert sources(ROOT), "there is no bridge/ to read"
    assert violations(ROOT) == []


BROKEN = {
    "core/tree.py: import flax.linen": ("bridge.core.tree:1 imports flax.linen: not a library of core"),
    "core/tree.py: def read(): import torch": (
        "bridge.core.tree:1 imports torch: not a library of core"
    ),
    "core/wrap.py: import importlib; importlib.import_module('bridge.adapters.nnx')": (
        "bridge.core.wrap:1 imports bridge.adapters.nnx: above core"
    ),
    "core/tree.py: from ..weights import match\nweights/match.py: ": (
        "bridge.core.tree:1 imports bridge.weights.match: above core"
    ),
    "core/tree.py: from bridge import Module": ("bridge.core.tree:1 imports bridge: above core"),
    "core/a.py: from . import b\ncore/b.py: from .c import C\ncore/c.py: import bridge.core.a": (
        "a cycle: bridge.core.a <- bridge.core.c <- bridge.core.b <- bridge.core.a"
    ),
    "core/__init__.py: from .a import A\ncore/a.py: from bridge.core import B": (
        "a cycle: bridge.core <- bridge.core.a <- bridge.core"
    ),
    "lowering/rows/shape.py: import torch": (
        "bridge.lowering.rows.shape:1 imports torch: not a library of core"
    ),
    "lowering/module.py: import bridge.adapters.torch": (
        "bridge.lowering.module:1 imports bridge.adapters.torch: above the lowering"
    ),
    "lowering/program.py: import bridge.capture.marks": (
        "bridge.lowering.program:1 imports bridge.capture.marks: above the lowering"
    ),
    "dataflow/reading.py: import bridge.weights.match": (
        "bridge.dataflow.reading:1 imports bridge.weights.match: above the dataflow"
    ),
    "dataflow/tracing.py: import flax": (
        "bridge.dataflow.tracing:1 imports flax: not a library of core"
    ),
    "capture/marks.py: import bridge.adapters.torch": (
        "bridge.capture.marks:1 imports bridge.adapters.torch: above the capture"
    ),
    "adapters/haiku/_wrap.py: import bridge.lowering.table": (
        "bridge.adapters.haiku._wrap:1 imports bridge.lowering.table: neither core nor this adapter"
    ),
    "adapters/haiku/_wrap.py: from bridge.adapters.linen import from_linen": (
        "bridge.adapters.haiku._wrap:1 imports bridge.adapters.linen: neither core nor this adapter"
    ),
    "adapters/nnx/_layers.py: from ...cli import show": (
        "bridge.adapters.nnx._layers:1 imports bridge.cli: neither core nor this adapter"
    ),
    "adapters/equinox/_wrap.py: import jax, flax": (
        "bridge.adapters.equinox._wrap:1 imports flax: a library neither of core nor of this adapter"
    ),
    "adapters/sixth/_wrap.py: import sixth": (
        "bridge.adapters.sixth._wrap:1 imports sixth: a library neither of core nor of this adapter"
    ),
    "adapters/linen/_dialect.py: import numpy": (
        "bridge.adapters.linen._dialect:1 imports numpy: a dialect is pure data"
    ),
    "adapters/linen/_dialect.py: from flax import linen": (
        "bridge.adapters.linen._dialect:1 imports flax: a dialect is pure data"
    ),
}

UNBROKEN = """\
__init__.py: from .core.a import A
wrap.py: def wrap(): import bridge.adapters.nnx
core/a.py: import jax.numpy, optax, ml_dtypes, safetensors, jaxtyping, json
core/b.py: from .a import A
core/c.py: if TYPE_CHECKING: from .d import D
core/d.py: from .c import C; from . import b
core/e.py: def late(): from .f import F
core/f.py: from .e import E
adapters/nnx/__init__.py: from ._wrap import from_nnx
adapters/nnx/_wrap.py: import jax; from flax import nnx; from bridge.core.a import A
adapters/nnx/_dialect.py: from types import MappingProxyType; from bridge.core.a import A"""


@pytest.mark.parametrize(("package", "sentence"), BROKEN.items(), ids=BROKEN)
def test_a_broken_rule_is_found(tmp_path, package, sentence):
    write(tmp_path, package)
    assert violations(tmp_path) == [sentence]


def test_what_is_allowed_is_not_found(tmp_path):
    write(tmp_path, UNBROKEN)
    assert violations(tmp_path) == []


def write(root: Path, package: str) -> None:
    """Writes a package given as lines of `file: its one line`."""
    for line in package.splitlines():
        name, _, text = line.partition(": ")
        path = root / "bridge" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("adapter", LIBRARIES)
def test_every_adapter_has_the_same_files(adapter):
    folder = ROOT / "bridge" / "adapters" / adapter
    if not folder.is_dir():
        pytest.skip(f"there is no adapter for {adapter} yet")
    files = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    assert files == FILES


def run_python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_bridge_imports_no_framework():
    program = "import sys, bridge; print(*sys.modules)"
    loaded = run_python(program).split()
    assert "jax" in loaded
    assert {name.partition(".")[0] for name in loaded} & FRAMEWORKS == set()
    assert [name for name in loaded if name.startswith("bridge.adapters.")] == []


def test_import_bridge_costs_little_over_import_jax():
    program = """
import time
import jax
start = time.process_time()  # what another process takes of the machine is not ours
import bridge
bridge.Module
print(time.process_time() - start)
"""
    costs = []
    while len(costs) < 7 and min(costs, default=1.0) > 0.3:  # a busy machine gets another try
        costs.append(float(run_python(program)))
    assert min(costs) <= 0.3, f"import bridge took {min(costs):.2f} s more than import jax"


MISSING = {
    "from_linen": ("Linen", "flax", "flax"),
    "from_nnx": ("NNX", "flax", "flax"),
    "from_haiku": ("Haiku", "dm-haiku", "haiku"),
    "from_equinox": ("Equinox", "equinox", "equinox"),
}


@pytest.fixture(scope="module")
def messages_without_libraries() -> dict[str, str]:
    """What each function raises in a Python that has none of the libraries."""
    program = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"flax", "haiku", "equinox"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import bridge

messages = {}
for name in sys.argv[1:]:
    try:
        getattr(bridge, name)(None)
    except bridge.MissingLibraryError as error:
        messages[name] = str(error)
print(json.dumps(messages))
"""
    return json.loads(run_python(program, *MISSING))


@pytest.mark.parametrize("function", MISSING)
def test_a_missing_library_is_a_sentence_with_the_pip_line(messages_without_libraries, function):
    adapter, distribution, extra = MISSING[function]
    assert messages_without_libraries[function] == (
        f"The {adapter} adapter needs {distribution}. "
        f'Install it with: pip install "bridge-jax[{extra}]"'
    )
