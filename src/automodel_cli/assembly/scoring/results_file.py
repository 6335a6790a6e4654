"""Where the results of ``automodel eval`` go: a file for each thing that was scored, and none into a folder of others.

    RUN/results_step_00001000_val.json      val.bin under step 1000 of a run
    EXPORT/results_core.json                the CORE tasks put to an exported folder

One file an evaluation, and not one file for all: an earlier result is never rewritten, and each file holds the settings
it was computed with. The same evaluation again replaces its own file; another one of that name gets the next number.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf.hashes import HASHES
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import make_folder, write_json
from automodel_cli.json_files import FileModel, Items, read_json, validated
from automodel_cli.metrics.log_file import json_safe

_LONGEST_LABEL = 80
_SUFFIXES = (".manifest.json", ".bin", ".idx", ".npy")
_WITHOUT_EFFECT = ("batch_size", "device", "processes")  # settings that change how fast, not what


@dataclass(frozen=True)
class StoredResults:
    """What was found and the file that holds it (None: there is no place for one)."""

    results: dict[str, Any]
    output: Path | None


def check_output(output: str | None) -> None:
    """Make room for a file that was asked for, before anything is computed.

    Raises:
        ConfigError: it cannot be written.
    """
    if output is None:
        return
    if Path(output).is_dir():
        raise ConfigError(f"--output {output} is a folder", "name a file in it, such as results.json")
    make_folder(Path(output).parent, "--output")
    if not os.access(Path(output).parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write --output {output}", "choose a folder that you may write to")


def store(results: Mapping[str, Any], output: str | None, checkpoint: Path, scored: Sequence[str]) -> Path | None:
    """Write ``results``; None where no file was named and the checkpoint lies in a folder that is not ours.

    Args:
        checkpoint: the step or Hugging Face folder.
        scored: names of token files or tasks.
    """
    content = json_safe(dict(results))
    path = Path(output) if output is not None else _beside(checkpoint, scored, content)
    if path is not None:
        write_json(path, content)
    return path


def _beside(checkpoint: Path, scored: Sequence[str], results: Mapping[str, Any]) -> Path | None:
    here = checkpoint.absolute()
    places = (here, here.parent)  # a step's own ``hf/`` is as sealed as the step
    step = next((one for one in places if layout.step_of(one.name) is not None and layout.is_complete(one)), None)
    folder = checkpoint if step is None else step.parent
    if step is not None and not checkpoint.is_absolute():  # as the user's own path
        folder = Path(os.path.relpath(folder))
    if not (is_ours(folder) and os.access(folder, os.W_OK)):
        return None
    weights = results["checkpoint"].get("weights")  # ema, of averaged ones
    where = [] if step is None else [step.name]
    stem = "_".join(["results", *where, *([weights] if weights else []), label(scored)])
    for number in itertools.count(1):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        if not path.exists() or _identity(path) == _identity_of(results, path):
            return path
    raise AssertionError("there is always a next number")


def is_ours(folder: Path) -> bool:
    """Whether a run or an export of ours made the folder; not so in the hub's cache, whoever made it."""
    in_cache = any(part.startswith("models--") for part in folder.resolve().parts)
    return not in_cache and any((folder / mark).is_file() for mark in ("LATEST", HASHES))


def label(scored: Sequence[str]) -> str:
    """The names of what was scored, as part of a file's name."""
    names = [_plain(name) for name in scored]
    joined = "+".join(names)
    return joined if len(joined) <= _LONGEST_LABEL else f"{names[0]}+{len(names) - 1}_more"


def _plain(name: str) -> str:
    last = Path(name).name
    for suffix in _SUFFIXES:
        last = last.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-._")[: _LONGEST_LABEL - 20] or "data"


# ------------------------------------------------------------------------------- the same evaluation again


class _Results(FileModel):
    format: str
    checkpoint: dict[str, Any]
    settings: dict[str, Any]
    sets: Items[dict[str, Any]] = ()
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    harness: dict[str, dict[str, Any]] = Field(default_factory=dict)
    judged: dict[str, dict[str, Any]] = Field(default_factory=dict)
    bigram: dict[str, Any] = Field(default_factory=dict)


def _identity(path: Path) -> Any:
    """What was evaluated how; None for a file that does not say so."""
    try:
        return _identity_of(read_json(path, DataError), path)
    except AutomodelError:
        return None


def _identity_of(content: Any, path: Path) -> Any:
    found = validated(content, _Results, path, DataError)
    return (
        found.format,
        (found.checkpoint.get("fingerprint"), found.checkpoint.get("weights")),
        {key: value for key, value in found.settings.items() if key not in _WITHOUT_EFFECT},
        [(one.get("data"), one.get("fingerprint")) for one in found.sets],
        {name: one.get("data") for name, one in found.tasks.items()},
        sorted(found.harness),
        {name: (one.get("count"), one.get("judge")) for name, one in found.judged.items()},
        found.bigram.get("data"),
    )
