"""Plans in files: JSON that a person can read, a line for each pair.

    {"key": "fc.weight", "path": "params.Dense_0.kernel", "from": "out=7 in=5", "to": "in=5 out=7", ...}

Paths are written as everywhere, axes as `bridge.core.notation` says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import bridge.core.notation as notation
import bridge.core.paths as paths
import bridge.core.tensorfile as tensorfile
from bridge.core.errors import WeightsError
from bridge.core.filing import FilePath, replace_files
from bridge.weights.report import Match, Pair

FORMAT, VERSION = "bridge plan", 1
_PAIR = {"key": str, "path": str, "from": str, "to": str, "evidence": str}
_REASONS = ("unused", "left_over", "ties")
_SENTENCES = ("differences", "problems")
_FIELDS = {"format", "version", "pairs", "constants", *_REASONS, *_SENTENCES}


def write(match: Match, path: FilePath) -> None:
    """Writes a plan to a file; see `Match.save`."""
    text = text_of(match).encode()
    replace_files([(path, lambda file: file.write(text))])


def read(path: FilePath) -> Match:
    """The plan in a file; see `Match.load`."""
    try:
        return parsed(File(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise WeightsError(f"{path} is no plan: it is no text") from None
    except WeightsError as error:
        raise WeightsError(f"{path} is no plan that Match.save has written: {error}") from None


def text_of(match: Match) -> str:
    """A plan as the text of its file."""
    pairs = [_spelled(pair) for pair in match.pairs]
    head = {"format": FORMAT, "version": VERSION}
    tail = {"constants": {paths.join(path): value for path, value in match.constants.items()}}
    tail |= {name: dict(getattr(match, name)) for name in _REASONS}
    tail |= {name: [*getattr(match, name)] for name in _SENTENCES}
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(value, indent=4)}" for name, value in tail.items()
    )
    first = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items())
    rows = ",\n".join(f"    {json.dumps(pair)}" for pair in pairs)
    return f'{{\n{first},\n  "pairs": [\n{rows}\n  ],\n{lines}\n}}\n'


def _spelled(pair: Pair) -> dict[str, Any]:
    spelled: dict[str, Any] = {
        "key": pair.key,
        "path": paths.join(pair.path),
        "from": notation.written(pair.translation.source),
        "to": notation.written(pair.translation.target),
        "evidence": pair.evidence,
    }
    return {**spelled, "offset": pair.offset} if pair.offset else spelled


def parsed(text: str) -> Match:
    """The plan that a text tells; raises WeightsError where it tells none."""
    try:
        plan = tensorfile.unique_json(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"it is no JSON, or damaged: {error}") from None
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise WeightsError(f'it does not say "format": "{FORMAT}"')
    if plan.get("version") != VERSION:
        raise WeightsError(f"it is of version {plan.get('version')!r}, and this bridge reads {VERSION}")
    if wrong := sorted(_FIELDS ^ plan.keys()):
        raise WeightsError(
            f"it should have the fields {', '.join(sorted(_FIELDS))}; {wrong[0]} is wrong"
        )
    if not isinstance(plan["pairs"], list):
        raise WeightsError("pairs is no list")
    unused, left_over, ties = (_mapping(plan, name, str) for name in _REASONS)
    differences, problems = (_strings(plan, name) for name in _SENTENCES)
    pairs = tuple(_pair(number, one) for number, one in enumerate(plan["pairs"], 1))
    constants = {paths.split(path): value for path, value in _mapping(plan, "constants", int).items()}
    return Match(pairs, constants, unused, left_over, differences, problems, ties)


def _pair(number: int, spelled: Any) -> Pair:
    fields = {**_PAIR, "offset": (int, float)}
    spelled = {"offset": 0.0, **spelled} if isinstance(spelled, dict) else {}
    right = spelled.keys() == fields.keys() and all(
        isinstance(spelled[name], kind) for name, kind in fields.items()
    )
    if not right or not math.isfinite(spelled["offset"]):
        raise WeightsError(f"pair {number} does not tell {', '.join(_PAIR)}, and these alone")
    try:
        translation = notation.read(spelled["from"], spelled["to"])
    except WeightsError as error:
        raise WeightsError(f"pair {number}, {spelled['key']}: {error}") from None
    place = paths.split(spelled["path"])
    return Pair(spelled["key"], place, translation, spelled["evidence"], float(spelled["offset"]))


def _mapping(plan: Mapping[str, Any], name: str, kind: type) -> dict[str, Any]:
    found = plan[name]
    if not isinstance(found, dict) or not all(isinstance(value, kind) for value in found.values()):
        raise WeightsError(f"{name} is no mapping of names to {'numbers' if kind is int else 'text'}")
    return found


def _strings(plan: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = plan[name]
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise WeightsError(f"{name} is no list of sentences")
    return tuple(found)
