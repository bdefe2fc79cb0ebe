"""`bridge convert`: a checkpoint in another format or dtype, or a model with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.casting import DTYPES, with_dtype
from bridge.cli.ending import found_problems
from bridge.cli.factories import module_of
from bridge.cli.inspecting import File
from bridge.cli.matching import Rename, complaints, renaming
from bridge.cli.progress import bytes_done, counted, total_of, working
from bridge.cli.rendering import Json, show, show_json, size
from bridge.core.errors import WeightsError
from bridge.storing import save
from bridge.weights.files.folder import INDEX
from bridge.weights.loading import MODULE, SOURCE, load_state_dict
from bridge.weights.matching import match
from bridge.weights.report import Match
from bridge.weights.saving import SUFFIX, save_state_dict
from bridge.weights.sources import open_source
from bridge.weights.tensors import Source

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")]
To = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FACTORY", help="A model to load into; bridge.load reads OUT."),
]
Plan = Annotated[Path | None, typer.Option(help="The plan that `bridge match --save` wrote.")]
Dtype = Annotated[
    str | None,
    typer.Option(help=f"Of floating numbers: {', '.join(DTYPES)}; with --to also {SOURCE}, {MODULE}."),
]
ShardSize = Annotated[str | None, typer.Option(help="The most bytes of one file, such as 5GB.")]
Strict = Annotated[
    bool, typer.Option("--strict/--no-strict", help="Whether nothing in FILE may be left over.")
]


def convert(
    file: File,
    out: Out,
    to: To = None,
    plan: Plan = None,
    rename: Rename = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    strict: Strict = True,
    as_json: Json = False,
) -> None:
    """Writes a checkpoint as .safetensors, or a model with it.

    Without --to, names and layouts stay. With it, arrays go where `bridge match` says, and the file is
    that of bridge.save. It is there as a whole or not at all. Ends with 1 where file and model do not
    fit, or a number does not fit its dtype; then nothing is written.
    """
    _check_usage(out, to, shard_size, {"--plan": plan, "--rename": rename, "--no-strict": not strict})
    names = renaming(rename)
    if dtype not in (None, *DTYPES, *((SOURCE, MODULE) if to else ())):
        raise typer.BadParameter(f"--dtype is one of {', '.join(DTYPES)}; {dtype!r} was given")
    by = Match.load(plan) if plan is not None else None
    source = open_source(file)
    with bytes_done(f"converting {file}", total_of(source), as_json) as advance:
        read = counted(source, advance)
        if to is None:
            files = _rewrite(read, out, dtype, shard_size)
        else:
            with working(f"matching {file}", as_json):
                module = module_of(to)
                by = by or _matched(module, source, names, strict)
            _load(module, read, by, dtype, strict, out)
            files = [out]
    _report(files, [*source.notes, *(() if to else _untied(source))], as_json)


def _check_usage(
    out: Path, to: str | None, shard_size: str | None, of_models: Mapping[str, Any]
) -> None:
    given = [name for name, value in of_models.items() if value]
    if to is None and given:
        raise typer.BadParameter(f"{given[0]} is for models: give --to module:factory as well")
    if "--plan" in given and "--rename" in given:
        raise typer.BadParameter("a plan says where everything goes: leave --rename out")
    if to is not None and shard_size is not None:
        raise typer.BadParameter("--shard-size is for checkpoints; a model is saved to one file")
    if out.suffix != SUFFIX:
        raise typer.BadParameter(f"bridge writes {SUFFIX} files; {str(out)!r} is none")


def _rewrite(source: Source, out: Path, dtype: str | None, shard_size: str | None) -> list[Path]:
    """Writes the arrays of a source, read one by one; the files that hold them now."""
    try:
        save_state_dict(source if dtype is None else with_dtype(source, DTYPES[dtype]), out, shard_size)
    except WeightsError as error:
        raise found_problems(str(error)) from None
    return _written(out)


def _written(out: Path) -> list[Path]:
    """The one file of a checkpoint, or its index and its shards."""
    if out.is_file():
        return [out]
    index = out.with_name(out.name + INDEX)
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [index, *sorted(out.with_name(name) for name in {*names})]


def _matched(module: Any, source: Source, names: Mapping[str, str], strict: bool) -> Match:
    found = match(module, source, names)
    if found.complaints(strict):
        raise found_problems(complaints(found, module, source, strict))
    return found


def _load(module: Any, source: Source, by: Match, dtype: str | None, strict: bool, out: Path) -> None:
    """Writes a model with the arrays of a source in it."""
    try:
        loaded = load_state_dict(module, source, plan=by, strict=strict, dtype=dtype)
    except WeightsError as error:
        raise found_problems(str(error)) from None
    save(out, loaded)


def _untied(source: Source) -> Iterator[str]:
    for keys in source.ties:
        yield f"{' = '.join(keys)}: one array, written once for each name, as the format has no ties"


def _report(files: list[Path], notes: list[str], as_json: bool) -> None:
    count = sum(file.stat().st_size for file in files)
    if as_json:
        show_json({"files": [str(file) for file in files], "bytes": count, "notes": notes})
        return
    for note in notes:
        show(f"note: {note}")
    rest = f" and {len(files) - 1} shards" if len(files) > 1 else ""
    show(f"wrote {files[0]}{rest}: {size(count)}")
