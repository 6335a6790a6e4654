"""A run folder made from its mirror: the newest whole step, every file against its hash, then what tells of the run.

What is there is judged as on a disk: a step with a manifest is whole, LATEST says which one to go on from, and where
that one is damaged or half gone the newest sound one is taken. LATEST is written last, so that a killed start begins
again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from automodel_cli import files
from automodel_cli.checkpoint import layout, publishing
from automodel_cli.checkpoint.layout import Say
from automodel_cli.checkpoint.mirror import RUN_FILES, urls_by_step, whole_steps
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.metrics.log_file import SUPERSEDED_NAME, rewind
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectMissing
from automodel_cli.storage.urls import join_url

_AT_ONCE = 8


def newest_at(url: str) -> str | None:
    """The name of the step that a run would go on from; None where the mirror has none.

    Raises:
        AutomodelError: the store does not answer.
    """
    found = urls_by_step(url)
    steps = whole_steps(found)
    return layout.step_name(next(_in_order(url, steps))) if steps else None


def restore(run: Path, url: str, *, say: Say) -> Path | None:
    """Bring the step to go on from, and what BEST names, into ``run``; None where the mirror has no whole step.

    ``run`` is held by the caller and has no step of its own. What was logged in it is set aside.

    Raises:
        AutomodelError: the store does not answer, no step is sound, or the disk is full.
    """
    steps = whole_steps(urls_by_step(url))
    if not steps:
        return None
    name = _first_sound(run, url, steps, say)
    best: int | None = _pointed(url, "BEST")
    if best is not None and best in steps and best != layout.step_of(name):
        try:
            _fetch_step(run, url, best)
        except AutomodelError as error:
            say(f"the best step is left out: {error.message}")
            best = None
    rewind(run, 0)
    for file in RUN_FILES:
        if not (file == SUPERSEDED_NAME and (run / file).exists()):
            _fetch_if_there(url, run, file)
    if best is not None and best in steps:
        layout.write_pointer(run, "BEST", layout.step_name(best))
    layout.write_pointer(run, "LATEST", name)
    return run / name


def _first_sound(run: Path, url: str, steps: list[int], say: Say) -> str:
    problems = []
    for step in _in_order(url, steps):
        try:
            _fetch_step(run, url, step)
        except (CheckpointError, ObjectMissing) as error:
            problems.append(error.message)
            say(f"{layout.step_name(step)} of {url} is left out: {error.message}")
        else:
            return layout.step_name(step)
    raise CheckpointError(
        f"no step of {url} is sound: {problems[0]}", "name another mirror, or empty it to begin a new run"
    )


def _in_order(url: str, steps: list[int]) -> Iterator[int]:
    """Which to try first: what LATEST names, then the newest."""
    named = _pointed(url, "LATEST")
    yield from ([named] if named in steps else [])
    yield from (step for step in reversed(steps) if step != named)


def _pointed(url: str, pointer: str) -> int:
    """The step that a pointer at the mirror names; -1 where there is none, or it is damaged."""
    try:
        text = open_store(url).read(join_url(url, pointer), 0, 4096).decode(errors="replace")
    except ObjectMissing:
        return -1
    name = layout.name_in_pointer(text)
    step = None if name is None else layout.step_of(name)
    return -1 if step is None else step


def _fetch_step(run: Path, url: str, step: int) -> None:
    """Bring one step into ``run``.

    Raises:
        CheckpointError: a file is not what the manifest says.
    """
    target = layout.step_folder(run, step)
    temporary = target.with_name(target.name + layout.TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    source, store = join_url(url, target.name), open_store(url)
    with publishing.discarding(temporary), files.disk_errors_named(temporary):
        temporary.mkdir(parents=True)
        store.download(join_url(source, layout.MANIFEST), temporary / layout.MANIFEST)
        manifest = layout.read_step_manifest(temporary)

        def fetch(record: dict[str, Any]) -> None:
            path, place = temporary / record["name"], join_url(source, record["name"])
            path.parent.mkdir(parents=True, exist_ok=True)
            store.download(place, path)
            if (path.stat().st_size, files.hash_file(path)) != (record["bytes"], record["xxh3"]):
                raise CheckpointError(f"{place} is not what its manifest says")

        with ThreadPoolExecutor(_AT_ONCE, "mirror") as threads:
            list(threads.map(fetch, manifest["files"]))
        publishing.publish_step(temporary, target)


def _fetch_if_there(url: str, run: Path, name: str) -> None:
    place = join_url(url, name)
    if open_store(url).info(place) is not None:
        open_store(url).download(place, run / name)
