"""``checkpoint.mirror``: saved steps copied to a URL while the run goes on, so that a lost machine loses no run.

    URL/step_00001000/...              as in the run folder; manifest.json comes last, so a step that has one is whole
    URL/config.yaml, metrics.jsonl, metrics.superseded.jsonl, branch.json, LATEST, BEST

The order of a copy: the manifest of another step by that name goes; the files, each against its hash; the log, which
then reaches to that step at least; the manifest; BEST and LATEST; then the steps go that ``keep_last`` does not keep.
So whatever is lost at any instant, what LATEST names and every step with a manifest is whole. One run writes to a URL.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import layout, lineage
from automodel_cli.checkpoint.layout import Say
from automodel_cli.checkpoint.newest_first import NewestFirst, link
from automodel_cli.checkpoint.retention import to_keep
from automodel_cli.checkpoint.run_files import CONFIG_NAME
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.metrics.log_file import METRICS_NAME, SUPERSEDED_NAME
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.urls import join_url, relative_to
from automodel_cli.text import named_error

ASIDE = ".mirror"
RUN_FILES = (CONFIG_NAME, METRICS_NAME, SUPERSEDED_NAME, lineage.NAME)
_AT_ONCE = 4
_LONGEST_END_S = 1800.0  # that the end of a run waits for
_LONGEST_STOP_S = 60.0  # and of one that was told to stop


@dataclass(frozen=True)
class _Job:
    """What is copied at a time, put aside in ``folder``: a step, where there is one, and what tells of the run."""

    folder: Path
    name: str  # of the step; "" for the log alone
    pointers: Mapping[str, bytes]  # contents of LATEST and BEST

    @property
    def step(self) -> Path:
        """The files of the step."""
        return self.folder / "step"

    def of_run(self, name: str) -> Path:
        """A file of the run folder."""
        return self.folder / f"run.{name}"

    def pointed(self, pointer: str) -> str | None:
        """The step folder that a pointer names."""
        return layout.name_in_pointer(self.pointers.get(pointer, b"").decode(errors="replace"))


class Mirror:
    """Takes finished steps of one run, on rank 0.

    Args:
        keep_last, keep_every: which steps stay at the URL, as in the run folder.
    """

    def __init__(self, run: Path, url: str, *, keep_last: int | None, keep_every: int | None, say: Say) -> None:
        self._run, self._url, self._say = run, url, say
        self._keep_last, self._keep_every = keep_last, keep_every
        self._copies: NewestFirst[_Job] = NewestFirst(self._work)
        self._whole: set[str] = set()  # hashes of manifests that are known to be there
        self._number = itertools.count()
        for left in run.glob(f"step_*{ASIDE}*"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)

    def add(self, step: Path) -> None:
        """Copy a step that has just been saved, in the background; whatever is wrong is said, not raised."""
        self._put_aside(step)

    def finish(self, stopped: Callable[[], bool]) -> Iterator[bool]:
        """Copy what is not copied yet, the end of the log too; whether to wait on, as often as somebody asks."""
        name = self._latest()
        self._put_aside(None if name is None else self._run / name)
        began = time.monotonic()
        if self._copies.busy:
            self._say(f"waiting for the copy to {self._url}")
        while self._copies.busy and time.monotonic() - began < (_LONGEST_STOP_S if stopped() else _LONGEST_END_S):
            yield True
        if self._copies.busy:
            self._say(f"warning: the copy to {self._url} is not waited for any longer; all is in {self._run}")
        while True:
            yield False

    def _latest(self) -> str | None:
        try:
            name = layout.read_pointer(self._run, "LATEST")
        except CheckpointError:
            return None
        return name if name is not None and layout.is_complete(self._run / name) else None

    def _put_aside(self, step: Path | None) -> None:
        name = "" if step is None else step.name
        folder = self._run / f"{name or layout.step_name(0)}{ASIDE}{next(self._number)}"
        try:
            pointers = {one: (self._run / one).read_bytes() for one in layout.POINTERS if (self._run / one).exists()}
            job = _Job(folder, name, pointers)
            if step is not None:
                for record in [*_manifest(step)["files"], {"name": layout.MANIFEST}]:
                    link(step / record["name"], job.step / record["name"])
            for one in RUN_FILES:
                if (self._run / one).exists():
                    link(self._run / one, job.of_run(one))
        except Exception as error:  # a full disk: the checkpoint itself is safe
            shutil.rmtree(folder, ignore_errors=True)
            self._failed(name, error)
            return
        passed = self._copies.hand_over(job)
        if passed is not None:
            shutil.rmtree(passed.folder, ignore_errors=True)
            if passed.name not in ("", name):
                self._say(f"{passed.name} is not copied to {self._url}: copies are slower than saves")

    # ------------------------------------------------------------------------------------------ the copy

    def _work(self, job: _Job) -> None:
        began = time.monotonic()
        try:
            if self._copy(job):
                self._say(f"copied {job.name} to {self._url} in {time.monotonic() - began:.1f} s")
        except Exception as error:
            self._failed(job.name, error)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _copy(self, job: _Job) -> bool:
        """Whether there was a step to copy."""
        manifest = _manifest(job.step) if job.name else None
        is_new = manifest is not None and self._upload_files(job.name, job.step, manifest)
        for name in RUN_FILES:
            if job.of_run(name).is_file():
                open_store(self._url).upload(self._to(name), job.of_run(name))
        if manifest is not None:
            self._upload_manifest(job.name, job.step, manifest)
        self._upload_pointers(job)
        self._prune(job)
        return is_new

    def _upload_files(self, name: str, step: Path, manifest: Mapping[str, Any]) -> bool:
        """The files of a step, but the manifest, unless that is there (False); one of another step goes first."""
        store, target = open_store(self._url), self._to(name)
        url = join_url(target, layout.MANIFEST)
        if manifest["self"] in self._whole or self._is_there(url, step / layout.MANIFEST):
            self._whole.add(manifest["self"])
            return False
        store.delete([url])

        def upload(record: Mapping[str, Any]) -> None:
            store.upload(join_url(target, record["name"]), step / record["name"], xxh3=record["xxh3"])

        with ThreadPoolExecutor(_AT_ONCE, "mirror") as threads:
            list(threads.map(upload, manifest["files"]))
        return True

    def _is_there(self, url: str, manifest: Path) -> bool:
        store, content = open_store(self._url), manifest.read_bytes()
        info = store.info(url)
        return info is not None and info.size == len(content) and store.read(url) == content

    def _upload_manifest(self, name: str, step: Path, manifest: Mapping[str, Any]) -> None:
        if manifest["self"] not in self._whole:
            open_store(self._url).upload(self._to(name, layout.MANIFEST), step / layout.MANIFEST)
            self._whole.add(manifest["self"])

    def _upload_pointers(self, job: _Job) -> None:
        """BEST and LATEST; what they name is copied first, where it was passed over."""
        store = open_store(self._url)
        for pointer in reversed(layout.POINTERS):
            name = job.pointed(pointer)
            if name is None:
                store.delete([self._to(pointer)])
                continue
            step = self._run / name
            if name != job.name and layout.is_complete(step):
                manifest = _manifest(step)
                self._upload_files(name, step, manifest)
                self._upload_manifest(name, step, manifest)
            if store.info(self._to(name, layout.MANIFEST)) is not None:
                store.put(self._to(pointer), job.pointers[pointer])

    def _prune(self, job: _Job) -> None:
        if self._keep_last is None:
            return
        found = urls_by_step(self._url)
        numbers = [layout.step_of(job.pointed(pointer) or "") for pointer in layout.POINTERS]
        pointed = {number for number in numbers if number is not None}
        kept = to_keep(found, keep_last=self._keep_last, keep_every=self._keep_every, pointed=pointed)
        for step in set(found) - kept:  # the manifest first: what is half gone is not whole
            open_store(self._url).delete(sorted(found[step], key=lambda url: not url.endswith(f"/{layout.MANIFEST}")))

    def _to(self, *names: str) -> str:
        return join_url(self._url, *names)

    def _failed(self, name: str, error: Exception) -> None:
        why = error.message if isinstance(error, AutomodelError) else named_error(error)
        what = name or "the log"
        self._say(
            f"warning: {what} was not copied to {self._url}: {why}; training goes on, and all is in {self._run}. "
            "The next save tries again"
        )


def urls_by_step(url: str) -> dict[int, list[str]]:
    """The URLs of each step's files at a mirror, whole or not."""
    found: dict[int, list[str]] = {}
    for info in open_store(url).list_all(url):
        number = layout.step_of(relative_to(info.url, url).partition("/")[0])
        if number is not None:
            found.setdefault(number, []).append(info.url)
    return found


def whole_steps(found: Mapping[int, Sequence[str]]) -> list[int]:
    """The steps that have a manifest, of those that ``urls_by_step`` found; ascending."""
    return sorted(step for step, urls in found.items() if any(url.endswith(f"/{layout.MANIFEST}") for url in urls))


def _manifest(step: Path) -> dict[str, Any]:
    """The manifest of a step, which was checked when it was saved.

    Raises:
        CheckpointError: it is damaged since.
    """
    try:
        return layout.read_step_manifest(step)
    except CheckpointError as error:
        raise CheckpointError(error.message) from None
