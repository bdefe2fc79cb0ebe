"""Checkpoints of the Hugging Face hub by name: `hub:org/model`, `hub:org/model@revision`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.core.errors import MissingLibraryError, WeightsError
from bridge.weights.files.folder import CONFIG, INDEX, NAMES

PREFIX = "hub:"


def fetched(name: str) -> Path:
    """The folder in huggingface_hub's cache that has a model's weights and config.json.

    One form of the weights is fetched, safetensors where there are any. Without a network it is what
    the cache has. Raises MissingLibraryError without huggingface_hub, WeightsError where the hub gives
    nothing.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise MissingLibraryError(
            f"{name} is fetched by huggingface_hub, which is not installed. Install it with:"
            f' pip install "bridge-jax[hub]"'
        ) from None
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    at = revision or None
    try:
        files = huggingface_hub.list_repo_files(repository, revision=at)
    except Exception as error:  # noqa: BLE001 - of HTTP, of the network and of the hub itself
        return _cached(name, repository, at, error)
    wanted = _wanted(files)
    if not wanted:
        raise WeightsError(f"{name}: there is no file of weights there; it has {', '.join(files)}")
    return Path(
        huggingface_hub.snapshot_download(repository, revision=at, allow_patterns=[*wanted, CONFIG])
    )


def _cached(name: str, repository: str, revision: str | None, error: Exception) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
        )
    except Exception:  # noqa: BLE001 - whatever it is, nothing is there
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{name} cannot be fetched, and is not in the cache: {why}") from error


def _wanted(files: Sequence[str]) -> list[str]:
    """The files of the first form of weights that a repository has, the shards beside an index."""
    for name in NAMES:
        if name in files:
            return [name]
        if name + INDEX in files:
            stem, _, suffix = name.rpartition(".")
            shards = [one for one in files if one.startswith(f"{stem}-") and one.endswith(f".{suffix}")]
            return [name + INDEX, *shards]
    return []
