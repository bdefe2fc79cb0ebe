r"""Plans as the tables of NNX projects: regular expressions for keys, templates for paths, transforms.

    r"layers\.([0-9]+)\.fc\.weight": (r"layers.\1.fc.kernel", ((1, 0), None, False))

The transform is that of `bridge.weights.transforms`. A path is the place in the Module as it is written
everywhere, but for the collection of a wrapped model, `params` or `state`, so that it is that of the
attribute of an NNX model; with it where another array would have the same path.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.paths import Path
from bridge.weights.following import target_faults
from bridge.weights.matching import buffers
from bridge.weights.report import Match, Pair, by_path
from bridge.weights.sources import open_source
from bridge.weights.targets import targets_of
from bridge.weights.transforms import Transform, transform_of, translation_of

Table = Mapping[str, tuple[str, Any]]

COLLECTIONS = ("params", "state")
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class _Line:
    """What a table says of one key: the numbers among its segments, and those in its place."""

    key: str
    place: str
    transform: Transform

    @property
    def numbers(self) -> tuple[str, ...]:
        return tuple(one for one in self.key.split(".") if _NUMBER.fullmatch(one))

    @property
    def found(self) -> tuple[str, ...]:
        return tuple(_NUMBER.findall(self.place))

    @property
    def form(self) -> tuple[Any, ...]:
        """What lines have in common that differ in numbers alone."""
        key = tuple("#" if _NUMBER.fullmatch(one) else one for one in self.key.split("."))
        return key, _NUMBER.sub("#", self.place), self.transform


def table_of(match: Match) -> dict[str, tuple[str, Transform]]:
    """The table that says what a plan does; see `Match.to_table`."""
    problems = list(match.problems)
    lines: list[_Line] = []
    names = _names(pair.path for pair in match.pairs)
    placed = by_path(match.pairs)
    count = Counter(pair.key for pair in match.pairs)
    for pair in match.pairs:
        try:
            if len(placed[pair.path]) > 1 or count[pair.key] > 1 or pair.offset:
                raise WeightsError(_unsaid(pair, len(placed[pair.path]), count[pair.key]))
            lines.append(_Line(pair.key, names[pair.path], transform_of(pair.translation)))
        except WeightsError as error:
            problems.append(f"{pair.key} -> {paths.join(pair.path)}: {error}")
    if problems:
        raise WeightsError(f"a table cannot say this; save the plan instead:\n{listed(problems)}")
    keys = [*count, *match.unused, *match.left_over, *match.ties]
    forms: dict[Any, list[_Line]] = {}
    for line in lines:
        forms.setdefault(line.form, []).append(line)
    return {
        regex: (template, group[0].transform)
        for group in forms.values()
        for regex, template in _rules(group, keys)
    }


def _unsaid(pair: Pair, arrays: int, places: int) -> str:
    if pair.offset:
        return f"{pair.offset:+g} is added to it"
    return f"{arrays} arrays of the source are there" if arrays > 1 else f"it goes to {places} places"


def _names(places: Iterable[Path]) -> dict[Path, str]:
    """What a table calls each path: without its collection, where that is no other's name."""
    short = {path: paths.join(_short(path)) for path in places}
    count = Counter(short.values())
    return {path: name if count[name] == 1 else paths.join(path) for path, name in short.items()}


def _short(path: Path) -> Path:
    first = next((place for place, name in enumerate(path[:-1]) if name in COLLECTIONS), None)
    return path if first is None else (*path[:first], *path[first + 1 :])


def _rules(lines: Sequence[_Line], keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Regular expressions with their templates for lines that differ in numbers alone."""
    columns = [*zip(*(line.numbers for line in lines), strict=True)]
    places = [*zip(*(line.found for line in lines), strict=True)]
    varying = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    sources = [next((n for n in varying if columns[n] == one), None) for one in places]
    lost = any(n is None and len(set(one)) > 1 for n, one in zip(sources, places, strict=True))
    idle = [number for number in varying if number not in sources]
    if not lost and not idle:
        for counted in (True, False):
            regex = _regex(lines, varying, counted)
            if sum(re.fullmatch(regex, key) is not None for key in keys) == len(lines):
                yield regex, _template(lines[0].place, sources, varying)
                return
    column = [*idle, *varying][0]
    for number in dict.fromkeys(columns[column]):
        yield from _rules([line for line in lines if line.numbers[column] == number], keys)


def _regex(lines: Sequence[_Line], varying: Sequence[int], counted: bool) -> str:
    """What matches the keys: any number in the places that vary, or the numbers that there are."""
    pieces, number = [], -1
    for piece in lines[0].key.split("."):
        number += bool(_NUMBER.fullmatch(piece))
        if _NUMBER.fullmatch(piece) and number in varying:
            there = "|".join(dict.fromkeys(line.numbers[number] for line in lines))
            pieces.append("([0-9]+)" if counted else f"({there})")
        else:
            pieces.append(re.escape(piece))
    return r"\.".join(pieces)


def _template(place: str, sources: Sequence[int | None], varying: Sequence[int]) -> str:
    groups = iter(sources)

    def group(found: re.Match[str]) -> str:
        source = next(groups)
        return found[0] if source is None else f"\\{varying.index(source) + 1}"

    return _NUMBER.sub(group, place.replace("\\", "\\\\"))


def match_of(table: Table, module: Any, source: Any) -> Match:
    """The plan that a table makes for a Module and a source; see `Match.from_table`."""
    opened, targets = open_source(source), targets_of(module)
    unused = dict(buffers(opened))
    named = {paths.join(path): path for path in targets.leaves}
    named |= {name: path for path, name in _names(targets.leaves).items() if name not in named}
    pairs: dict[str, Pair] = {}
    problems: list[str] = []
    left_over: dict[str, str] = {}
    hint = paths.hints([*named])
    for key, tensor in opened.tensors.items():
        lines = _matching(table, key)
        if len(lines) > 1:
            problems.append(
                f"{key}: {' and '.join(map(repr, lines))} match it, and say different things"
            )
        for regex, (place, transform) in lines.items() if len(lines) == 1 else ():
            try:
                turned = translation_of(transform, tensor.shape)
                pairs[key] = Pair(key, _path(place, named, hint), turned, f"the table: {regex}")
            except WeightsError as error:
                problems.append(f"{key}: {error}")
        if not lines and key not in unused:
            left_over[key] = f"{key}: left over: no line of the table matches it"
    unused = {key: why for key, why in unused.items() if key not in pairs}
    owners = {key: [one for one in keys if one in pairs] for keys in opened.ties for key in keys}
    ties = {key: owners[key][0] for key in left_over if owners.get(key)}
    left_over = {key: told for key, told in left_over.items() if key not in ties}
    slots = [slot for layer in targets.layers for slot in layer.slots]
    constants = {slot.path: slot.value for slot in slots if slot.value is not None}
    made = Match(tuple(pairs.values()), constants, unused, left_over, (), (), ties)
    return replace(made, problems=(*problems, *target_faults(made, targets)))


def _path(place: str, named: Mapping[str, Path], hint: Callable[[str], str]) -> Path:
    if place not in named:
        raise WeightsError(f"the table leads it to {place!r}, which is not in the Module{hint(place)}")
    return named[place]


def _matching(table: Table, key: str) -> dict[str, tuple[str, Any]]:
    """The lines of a table that match a key, each with the place that it leads to; equal ones once."""
    lines: dict[str, tuple[str, Any]] = {}
    for regex, line in table.items():
        try:
            template, transform = line
            found = re.fullmatch(regex, key)
            place = None if found is None else found.expand(template)
        except (ValueError, TypeError, IndexError, re.error) as error:
            raise WeightsError(
                f"{regex!r}: {line!r} is no line of a table, regex: (template, transform): {error}"
            ) from None
        transform = transform.value if isinstance(transform, enum.Enum) else transform
        if place is not None and (place, transform) not in lines.values():
            lines[regex] = place, transform
    return lines
