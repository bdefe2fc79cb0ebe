"""What names say: words with one meaning in every library, and the numbers of repeated blocks."""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

H = TypeVar("H", bound=Hashable)

# A meaning and how models spell it; longer spellings are read first.
MEANINGS: Mapping[str, tuple[str, ...]] = {
    "attention": (
        *("multi head dot product attention", "multi head attention", "multihead attention"),
        *("self attention", "self attn", "attention self", "attention", "attn", "mha", "self"),
    ),
    "query": ("query", "queries", "q"),
    "key": ("key", "keys", "k"),
    "value": ("value", "values", "v"),
    "out": ("output", "out", "o"),
    "norm": (
        *("layer norm", "layernorm", "batch norm", "batchnorm", "norm", "ln", "bn"),
        "normalization",
    ),
    "segment": ("token type", "segment", "segments"),
    "token embedding": ("wte",),
    "position embedding": ("wpe",),
    "token": ("token", "tokens", "word", "words", "tok", "vocab"),
    "position": ("position", "positions", "positional", "pos"),
    "embedding": ("embedding", "embeddings", "embed", "embeds", "embedder", "emb"),
    "mlp up": ("intermediate",),
    "mlp": ("feed forward", "feedforward", "ffn", "ff", "mlp"),
    "up": ("up", "expand"),
    "down": ("down", "contract"),
    "block": ("block", "blocks", "layer", "layers", "h"),
    "convolution": ("conv", "conv1d", "conv2d", "conv3d", "convolution"),
    "head": ("head", "classifier", "logits"),
    "pool": ("pool", "pooler", "pooling"),
}
# What says only that there is a layer.
FILLERS = frozenset(
    {"dense", "linear", "fc", "proj", "projection", "lin", "params", "state", "module", "modules"}
    | {"model", "table", "weight"}
)
# Two of one line are never the same layer, whatever else speaks for it.
EXCLUSIVE = (
    frozenset({"query", "key", "value"}),
    frozenset({"token", "position", "segment"}),
)

_SPELLINGS = sorted(
    ((spelling, meaning) for meaning, spellings in MEANINGS.items() for spelling in spellings),
    key=lambda pair: -len(pair[0]),
)
_MEANING_OF = dict(_SPELLINGS)
_SPELLING = re.compile("|".join(rf"\b{re.escape(spelling)}\b" for spelling, _ in _SPELLINGS))
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def words(name: str) -> tuple[str, ...]:
    """The meanings in a name, numbers among them, in order.

    >>> words("encoder.layer.0.attention.self.query")
    ('encoder', 'block', '0', 'attention', 'query')
    >>> words("h0_attn/q_proj")
    ('block', '0', 'attention', 'query')
    """
    text = " ".join(_PIECE.findall(name)).lower()
    meanings = _SPELLING.sub(lambda match: _MEANING_OF[match[0]], text).split()
    return tuple(word for word in meanings if word not in FILLERS)


def alike(one: frozenset[str], other: frozenset[str]) -> float:
    """How much two sets of words have in common, 0 to 1; 0 where they exclude each other."""
    union = one | other
    return 0.0 if contradict(one, other) or not union else len(one & other) / len(union)


def telling(one: frozenset[str], other: frozenset[str], everywhere: frozenset[str]) -> float:
    """How many words speak for two names being one; what stands in all names says nothing.

    Half a word more where the names agree in every word.
    """
    common = (one & other) - everywhere
    if contradict(one, other) or not common:
        return 0.0
    return len(common) + 0.5 * (one == other)


def exclusive(names: frozenset[str]) -> frozenset[str]:
    """The words that may keep a name apart from others, whatever else speaks for them."""
    return names & frozenset().union(*EXCLUSIVE)


def contradict(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two sets of words name different things of one exclusive line."""
    pairs = ((one & exclusive, other & exclusive) for exclusive in EXCLUSIVE)
    return any(mine and theirs and mine != theirs for mine, theirs in pairs)


@dataclass(frozen=True)
class Family(Generic[H]):
    """Members whose names differ in numbers alone, by their numbers."""

    words: frozenset[str]
    members: Mapping[tuple[int, ...], H]

    @functools.cached_property
    def ranks(self) -> Mapping[tuple[int, ...], H]:
        """The members by the rank of each number among its like, so that 0 2 4 and 1 2 3 agree."""
        columns = [sorted(set(column)) for column in zip(*self.members, strict=True)]
        ranks = [{number: rank for rank, number in enumerate(column)} for column in columns]
        return {
            tuple(rank[number] for rank, number in zip(ranks, numbers, strict=True)): member
            for numbers, member in self.members.items()
        }


def families(named: Iterable[tuple[H, Sequence[str]]], depth: int | None) -> list[Family[H]]:
    """Members grouped by their words.

    With `depth` 1 only the first number that differs counts the members, and any later one is a word;
    with None every number that differs counts.
    """
    grouped: dict[tuple[str, ...], list[tuple[H, tuple[str, ...]]]] = {}
    for member, texts in named:
        template = tuple("#" if word.isdigit() else word for word in texts)
        grouped.setdefault(template, []).append((member, tuple(w for w in texts if w.isdigit())))
    found: list[Family[H]] = []
    for template, members in grouped.items():
        columns = list(zip(*(numbers for _, numbers in members), strict=True))
        varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
        counted, literal = varying[:depth], varying[depth:] if depth else []
        split: dict[tuple[str, ...], dict[tuple[int, ...], H]] = {}
        for member, numbers in members:
            later = tuple(numbers[i] for i in literal)
            split.setdefault(later, {})[tuple(int(numbers[i]) for i in counted)] = member
        base = frozenset(template) - {"#"}
        found.extend(Family(base | set(later), byn) for later, byn in split.items())
    return found
