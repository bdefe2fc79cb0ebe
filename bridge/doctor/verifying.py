"""`verify`: both forwards on the same inputs, and where and why they differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import LoweringError
from bridge.core.tree import entries
from bridge.dataflow.comparing import distance
from bridge.dataflow.tracing import Traced
from bridge.doctor.arrays import changed, translated
from bridge.doctor.causes import causes
from bridge.doctor.locating import Step, located, unused
from bridge.doctor.outputs import nearest_run, torch_outputs
from bridge.doctor.report import Finding, Place, Report
from bridge.weights.following import plan_of
from bridge.weights.matching import match, model_of
from bridge.weights.report import Match
from bridge.weights.sources import Source, open_source
from bridge.weights.structure import captured

# Values that enter a layer are the same up to rounding where they are nearer than this, and parted
# where they are so much farther than those that they are made of.
_ROUNDING, _JUMP = 1e-5, 10.0
# What every library writes in its own way.
_PLAIN = frozenset(
    {"reshape", "transpose", "broadcast_in_dim", "squeeze", "convert_element_type", "copy"}
)

_TURNED = (
    "has the same numbers in another order, as a flatten of channels first and of channels last: type"
    " bridge.load_state_dict(module, torch_model, inputs=(x,)), which turns the weights"
)


def verify(
    module: Any,
    model: Any,
    *inputs: Any,
    plan: Match | str | os.PathLike[str] | None = None,
    rename: Mapping[Any, str] | None = None,
    tolerance: float = 1e-5,
) -> Report:
    """How far a Module is from a torch model on the same inputs, and why; print it.

    The inputs are arrays or tensors as the torch model takes them; the Module gets them so, or with
    the channels last where it wants that. Both run in eval mode, and the torch model is left as it is.
    They pass where the relative L2 distance of their outputs is within `tolerance`. The report says
    where they part: the first layer whose input is not the same, what sets the two apart there, which
    arrays are not torch's, and which hyper-parameters differ, even where the outputs are the same.
    `plan` is that of `match`, or its file; without it the two are matched, with `rename`.

    Raises WeightsError where the two have no outputs in common, or the Module cannot be called.

    >>> import bridge as br, equinox as eqx, jax, numpy as np, torch
    >>> torch_model = torch.nn.Linear(3, 2)
    >>> module = br.from_equinox(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    >>> report = br.verify(module, torch_model, np.ones(3, np.float32))
    >>> report.passed, report.findings[0].where, report.findings[0].cause
    (False, 'params.weight', 'weights')
    """
    model_of(model, inputs)
    plan = match(module, model, rename) if plan is None else plan_of(plan)
    expected, training = torch_outputs(model, inputs)
    run = nearest_run(module, inputs, expected)
    report = Report(run.far, run.largest, tolerance, notes=run.notes)
    findings = [
        *_training(training),
        *_settings(plan),
        *_changed(module, plan, open_source(model)),
    ]
    try:
        theirs = captured(model, inputs)
    except LoweringError as error:
        note = f"where they part is not known, since the torch model cannot be captured: {error}"
        return replace(report, findings=tuple(findings), notes=(*report.notes, note))
    steps = located(run.traced, theirs, plan.pairs)
    parted = [number for number, step in enumerate(steps) if _parts(step, steps)]
    findings += _missing(run.traced, theirs, plan)
    findings += _parting([steps[number] for number in parted], steps)
    findings += _buffers([steps[number] for number in parted], run.traced, theirs, plan)
    if parted and not findings:
        findings.append(_unknown(steps[parted[0]]))
    places = tuple(Place(paths.join(step.path), step.key, step.far) for step in steps)
    first = parted[0] if parted else None
    return replace(report, places=places, parted=first, findings=tuple(findings))


def _parts(step: Step, steps: Sequence[Step]) -> bool:
    """Whether two models part at a value: it differs, and what it is made of does not."""
    before = max((steps[number].far for number in step.before), default=0.0)
    return step.far > max(_ROUNDING, _JUMP * before)


def _training(names: Sequence[str]) -> Iterator[Finding]:
    drops = sorted({name for name in names if "Drop" in name or "BatchNorm" in name})
    if drops:
        yield Finding(
            "train mode",
            "the torch model",
            f"it is in train mode, where {' and '.join(drops)} give other values; here it ran in eval"
            f" mode: type model.eval() before you compare by hand",
            "settings",
        )


def _settings(plan: Match) -> Iterator[Finding]:
    for told in (*plan.problems, *plan.differences):
        where, _, rest = told.partition(": ")
        yield Finding("settings", where, rest, "settings")


def _changed(module: Any, plan: Match, source: Source) -> Iterator[Finding]:
    """What of the Module's arrays is not torch's."""
    held = {e.path: e.value for e in entries(module)}
    wanted = translated(plan.pairs, source)
    for path, cause, told in changed(held, wanted):
        yield Finding(cause, paths.join(path), told, "arrays")


def _missing(mine: Traced, theirs: Traced, plan: Match) -> Iterator[Finding]:
    """Arrays that the forward of one of the two alone uses: an input is missing, or a branch."""
    for pair, here in unused(mine, theirs, plan.pairs):
        users = ("the Module", "torch") if here else ("torch", "the Module")
        yield Finding(
            "missing input",
            paths.join(pair.path),
            f"{users[0]} uses it with these inputs ({pair.key}) and {users[1]} does not: an input is"
            f" missing there or has another default, as token type ids may; give it to both",
            "program",
        )


def _parting(parted: Sequence[Step], steps: Sequence[Step]) -> Iterator[Finding]:
    """The causes that show where two models part; one at several places once."""
    places: dict[tuple[str, str], list[str]] = {}
    for step in parted:
        for cause in causes(step.mine, step.theirs):
            places.setdefault(cause, []).append(step.where)
    for (name, told), (first, *others) in places.items():
        more = f" and {len(others)} more" if others else ""
        yield Finding(name, first + more, told, "program")
    for number in dict.fromkeys(number for step in parted for number in step.before):
        if steps[number].turned:
            yield Finding("flatten order", steps[number].where, _TURNED, "numbers")


def _unknown(step: Step) -> Finding:
    """What is left to say of a place where nothing known shows."""
    ours, others = step.mine.names - _PLAIN, step.theirs.names - _PLAIN
    alone = [", ".join(sorted(one)) or "none" for one in (ours - others, others - ours)]
    return Finding(
        "unknown",
        step.where,
        f"nothing shows of what usually does it; ops on the way there that the Module alone has:"
        f" {alone[0]}; that torch alone has: {alone[1]}",
        "program",
    )


def _buffers(parted: Sequence[Step], mine: Traced, theirs: Traced, plan: Match) -> Iterator[Finding]:
    """Arrays of torch's that are no weights, and that the Module has otherwise."""
    weights = {pair.key for pair in plan.pairs}
    for step in parted:
        here = [np.asarray(mine.arrays[path]) for path in step.mine.arrays] + list(step.mine.known)
        for path in step.theirs.arrays:
            name, buffer = ".".join(path), np.asarray(theirs.arrays[path])
            alike = [one for one in here if one.size == buffer.size and one.size > 1]
            if name in weights or not alike or any(_same(one, buffer) for one in alike):
                continue
            yield Finding(
                "buffer",
                step.where,
                f"{name} of torch's, which no state_dict has, is {_least(alike, buffer):.1e} away from"
                f" what the Module has in its place",
                "numbers",
            )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return _least([one], other) < _ROUNDING


def _least(candidates: Sequence[np.ndarray], buffer: np.ndarray) -> float:
    two = np.sort(np.asarray(buffer, np.float64), axis=None)
    return min(distance(np.sort(np.asarray(one, np.float64), axis=None), two) for one in candidates)
