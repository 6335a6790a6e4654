"""An output folder in object storage: files are made in a local folder and go up as they are finished.

The local folder (*staging*) is an image of the place at the URL, so that everything that is decided about a folder
(finished? interrupted? somebody else's?) is decided as it is on a disk. What was uploaded is *hollow* there: its first
bytes and its size, without its blocks, so the disk holds what is open and a few finished files, not all of the output.

| object                 | what                                                                                |
|------------------------|-------------------------------------------------------------------------------------|
| files, tokenizer       | as in a folder; each appears whole (multipart)                                       |
| the manifest           | last, as in a folder                                                                 |
| ``.lock``              | the lease of who writes (``storage.lease``)                                          |
| ``.upload.json``       | while a run is under way: its journal, the size and hash of each file that is there  |
| ``.open/NAME/START-STOP`` | pieces of files that were open when the last one was finished                     |

(With a prefix, as Megatron's: ``.PREFIX.lock`` and so on.)

Killed anywhere, the same command goes on: on this machine from the local journal, on another from ``.upload.json``,
that is, from the last finished file. A run without a journal (documents) goes on where its folder is, or begins anew.
A change of ``.upload.json`` gets a token that the local folder knows before the object does; so a folder whose token
is another one has been overtaken, and is made anew from what is at the URL.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import xxhash
from pydantic import ConfigDict

from automodel_cli.corpus.formats.manifest import size_and_hash
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import TEMP_SUFFIX, exclusive_lock, make_folder, write_text
from automodel_cli.json_files import MAX_JSON_BYTES, Count, FileModel, PlainName, Xxh3, parse_json, validated
from automodel_cli.storage.lease import Lease
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectInfo
from automodel_cli.storage.urls import is_remote, join_url, local_path, relative_to, split_url

_HEAD_BYTES = 4096  # of a hollow file: the header of a token file
_HOLLOW_FROM = 1 << 20  # smaller files stay as they are
_PIECE_BYTES = 64 << 20
_AHEAD = 2  # finished files whose upload is waited for
_PIECE = re.compile(r"(.+)/(\d{16})-(\d{16})")


class _Facts(FileModel):
    bytes: Count
    xxh3: Xxh3


class _State(FileModel):
    """``.upload.json``: ``open`` has the sizes of temporaries that the journal speaks of."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["automodel-upload/1"] = "automodel-upload/1"
    token: str
    journal: str | None
    files: dict[PlainName, _Facts]
    open: dict[PlainName, Count]


class _Grown(NamedTuple):
    """A temporary, opened before it gets its name or goes, and how much of it counts."""

    name: str
    handle: IO[bytes]
    size: int


class Mirror:
    """What keeps an output folder and the place at a URL alike.

    Args:
        url: the folder.
        prefix: what the names of a run's own objects begin with, after a dot.
        temp_dir: where files are on their way; None: in the user's cache.

    Attributes:
        folder: the local image.
        in_cache: it is in the user's cache, which other machines may not see.
    """

    def __init__(self, url: str, prefix: str = "", temp_dir: str | None = None) -> None:
        self.url = str(split_url(url))
        mark = xxhash.xxh3_64_hexdigest(f"{self.url}\n{prefix}".encode())
        self.in_cache = temp_dir is None
        base = Path(temp_dir) if temp_dir is not None else _cache_folder()
        self._staging = base / f".automodel-upload-{mark}"
        self.folder = self._staging / "files"
        self._store = open_store(self.url)
        self._lock_url, self._state_url = (
            join_url(self.url, f".{prefix}lock"),
            join_url(self.url, f".{prefix}upload.json"),
        )
        self._pieces_url = join_url(self.url, f".{prefix}open")
        self._own = {f".{prefix}lock", f".{prefix}upload.json"}
        self.files: dict[str, _Facts] = {}
        self._open: dict[str, int] = {}
        self._lease: Lease | None = None
        self._uploads = ThreadPoolExecutor(1, "upload")
        self._waiting: list[Future[None]] = []
        self._taken: set[str] = set()  # finished files whose upload has been asked for

    # ------------------------------------------------------------------------------------ beginning

    @contextlib.contextmanager
    def held(self, busy: str, *, wait: bool = False) -> Iterator[None]:
        """Nobody else writes there or in the local folder, for which is waited if ``wait``.

        Raises:
            AutomodelError: somebody does.
        """
        make_folder(self._staging, "--temp-dir")
        with exclusive_lock(self._staging / "lock", busy=busy, wait=wait):
            owner_path = self._staging / "owner"
            if not owner_path.exists():
                write_text(owner_path, uuid.uuid4().hex)
            with Lease(self._lock_url, owner_path.read_text(), busy) as self._lease:
                try:
                    yield
                finally:
                    self._uploads.shutdown(cancel_futures=True)

    def fetch(
        self,
        names: Callable[[], re.Pattern[str]],
        listed: Callable[[], list[str]],
        manifest: str,
        journal: str,
        tokenizer: str,
        has_begun: Callable[[], bool],
    ) -> None:
        """Make the local folder an image of the place, unless it is that of the run that is under way there.

        Args:
            names: which names are those of the run; asked when the manifest or journal is here.
            listed: the names that the manifest here lists; a listing of the place may lag behind.
            journal, tokenizer: their names, "" where there is none.
            has_begun: whether the local folder holds a run that goes on without a journal.

        Raises:
            ConfigError: a run with a journal is under way there, and this one has none.
        """
        state = self._read_state()
        if state is not None:  # a run was under way, perhaps in the middle of an upload
            if state.journal is not None and not journal:
                raise ConfigError(
                    f"{self.url} holds the interrupted run of another command", "finish it, or use another --output-dir"
                )
            self._store.abort_uploads(self.url, lambda name: names().fullmatch(name) is not None)
        if state is not None and state.token in self._known_tokens() and self._is_image(state, manifest, has_begun):
            self.files, self._open = dict(state.files), dict(state.open)
            self._taken = set(self.files)
            self._mend()
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if (data := self._read(manifest)) is not None:
            (self.folder / manifest).write_bytes(data)
        elif state is not None and state.journal is None:  # nothing to go on from, or it was being cleared
            self._clear_place(state, names())
            state = None
        elif state is not None:
            self._restore(state, state.journal or "", journal)
        there = self._listed()
        for name in listed():
            if name not in there and (info := self._store.info(join_url(self.url, name))) is not None:
                there[name] = info
        self._imitate(there, names(), manifest, state)
        for name, info in there.items():
            if name.startswith(f"{tokenizer}/") and name.count("/") == 1 and info.size <= MAX_JSON_BYTES:
                (self.folder / tokenizer).mkdir(exist_ok=True)
                (self.folder / name).write_bytes(self._store.read(info.url, etag=info.etag))
        self._taken |= {path.name for path in self.folder.iterdir()}
        self._save_tokens([state.token] if state is not None else [])

    def _mend(self) -> None:
        """A process may have died between the two steps of making a file hollow."""
        for name, facts in self.files.items():
            if (path := self.folder / name).is_file() and path.stat().st_size != facts.bytes:
                os.truncate(path, facts.bytes)

    def _is_image(self, state: _State, manifest: str, has_begun: Callable[[], bool]) -> bool:
        """Whether the folder is what the run of ``state`` made, and not being cleared."""
        goes_on = state.journal is not None or (self.folder / manifest).exists() or has_begun()
        return self.folder.is_dir() and goes_on

    def _clear_place(self, state: _State, names: re.Pattern[str]) -> None:
        """What a run left that nobody can go on with; its mark goes last."""
        gone = {name for name in self._listed() if names.fullmatch(name)} | set(state.files)
        self._store.delete(join_url(self.url, name) for name in sorted(gone))
        self._delete_pieces()
        self._store.delete([self._state_url])

    def _restore(self, state: _State, text: str, journal: str) -> None:
        """What another machine needs to go on: the journal, what is open, and facts of what is finished."""
        write_text(self.folder / journal, text)
        for name, size in state.open.items():
            self._join_pieces(name, size)
        self.files, self._open = dict(state.files), dict(state.open)
        self._taken = set(self.files)

    def _join_pieces(self, name: str, size: int) -> None:
        with (self.folder / name).open("wb") as handle:
            for info in sorted(self._store.list_all(join_url(self._pieces_url, name)), key=lambda info: info.url):
                start, stop = _piece_range(info.url)
                if start <= handle.tell() < stop and stop <= size:
                    handle.write(self._store.read(info.url, etag=info.etag)[handle.tell() - start :])

    def _imitate(
        self, there: dict[str, ObjectInfo], names: re.Pattern[str], manifest: str, state: _State | None
    ) -> None:
        """A hollow file for each object that the run may have made or that stands in its way."""
        begun = state is not None and (self.folder / manifest).exists() is False
        for name, info in there.items():
            path = self.folder / name
            if "/" in name or path.exists() or not names.fullmatch(name) or (begun and name not in self.files):
                continue
            if name.endswith(".idx") and not name.endswith(".bos.idx"):
                self._store.download(info.url, path, etag=info.etag)
            else:
                _make_hollow(
                    path, info.size, self._store.read(info.url, 0, _HEAD_BYTES, etag=info.etag) if begun else b""
                )

    def _listed(self) -> dict[str, ObjectInfo]:
        """Objects by their names in the folder, without those of the mirror itself."""
        found = {relative_to(info.url, self.url): info for info in self._store.list_all(self.url)}
        pieces = relative_to(self._pieces_url, self.url)
        return {k: v for k, v in found.items() if k not in self._own and not k.startswith(f"{pieces}/")}

    # -------------------------------------------------------------------------------------- going on

    def begin(self) -> None:
        """A run without a journal begins in the local folder: others see that, and cannot go on with it."""
        if not self._known_tokens():
            self._put_state(None, {})

    def note(self, names: re.Pattern[str], fixed: frozenset[str], journal: Path) -> None:
        """After the journal was written: what was finished since goes up, in the background.

        Args:
            names: of the run's files.
            fixed: names among them that go last.

        Raises:
            AutomodelError: an earlier upload failed.
        """
        finished = [
            path
            for path in sorted(self.folder.iterdir())
            if names.fullmatch(path.name)
            and path.name not in fixed | self._taken
            and path.is_file()
            and not path.name.endswith(TEMP_SUFFIX)
        ]
        if not finished and self._waiting_or_done():
            self._raise_failed()
            return
        self._taken |= {path.name for path in finished}
        grown = [_Grown(path.name, path.open("rb"), path.stat().st_size) for path in self._temporaries()]
        self._ask(functools.partial(self._upload, finished, grown, journal.read_text(encoding="utf-8")))

    def _temporaries(self) -> list[Path]:
        """Files that are open and hold something; all of it is durable when a journal was written."""
        found = [path for path in sorted(self.folder.iterdir()) if path.name.endswith(TEMP_SUFFIX)]
        return [path for path in found if path.stat().st_size]

    def _waiting_or_done(self) -> bool:
        """Whether the mark of this run is at the URL, or on its way."""
        return bool(self._waiting) or bool(self._known_tokens())

    def _ask(self, job: Callable[[], None]) -> None:
        self._raise_failed()
        while len(self._waiting) >= _AHEAD:
            self._waiting.pop(0).result()
        self._waiting.append(self._uploads.submit(job))

    def _raise_failed(self) -> None:
        for future in self._waiting:
            if future.done():
                future.result()

    def _upload(self, finished: list[Path], grown: list[_Grown], journal: str) -> None:
        if not self._known_tokens():
            self._put_state(journal, {})  # a mark, before the first file
        for path in finished:
            self._send(path.name)
        for file in grown:
            with file.handle:
                self._send_pieces(file, self._open.get(file.name, 0))
        opened = {file.name: file.size for file in grown}
        closed = [name for name in self._open if name not in opened]
        self._put_state(journal, opened)
        for path in finished:
            if path.suffix == ".bin" or path.name.endswith(".bos.idx"):
                _hollow_out(path)
        for name in closed:
            self._store.delete(info.url for info in self._store.list_all(join_url(self._pieces_url, name)))

    def _send(self, name: str) -> None:
        path = self.folder / name
        facts = _Facts(**size_and_hash(path))
        assert self._lease is not None
        self._lease.check()
        self._store.upload(join_url(self.url, name), path, xxh3=facts.xxh3)
        self.files[name] = facts

    def _send_pieces(self, file: _Grown, start: int) -> None:
        """The bytes that an open file got since the last time."""
        at = start if start <= file.size else 0
        while at < file.size:
            stop = min(at + _PIECE_BYTES, file.size)
            data = os.pread(file.handle.fileno(), stop - at, at)
            self._store.put(join_url(self._pieces_url, file.name, f"{at:016}-{stop:016}"), data)
            at = stop

    def facts(self, path: Path) -> dict[str, Any]:
        """``bytes`` and ``xxh3`` of a finished file, of one that is hollow too."""
        for future in self._waiting:
            future.result()
        known = self.files.get(path.name) if path.parent == self.folder else None
        return size_and_hash(path) if known is None else known.model_dump()

    # ------------------------------------------------------------------------------------- the end

    def removed(self, names: re.Pattern[str], manifest: str, tokenizer: str) -> None:
        """The local folder was cleared: so is the place, the manifest first. Marked as begun meanwhile."""
        for future in self._waiting:
            future.result()
        self._put_state(None, {})
        self._store.delete([join_url(self.url, manifest)])
        gone = {name for name in self._listed() if names.fullmatch(name) or name.startswith(f"{tokenizer}/")}
        gone = {name for name in gone | set(self.files) if not (self.folder / name).exists()}
        self._store.delete(join_url(self.url, name) for name in sorted(gone))
        self._delete_pieces()
        self.files, self._open, self._taken = {}, {}, set()
        self._put_state(None, {})

    def finish(self, manifest: str) -> None:
        """The local folder is complete: the rest goes up, the manifest last, and what was temporary goes."""
        for future in self._waiting:
            future.result()
        if self._read(manifest) != (self.folder / manifest).read_bytes():
            left = [
                path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*")) if path.is_file()
            ]
            left = [name for name in left if name not in self.files and name != manifest and "/." not in f"/{name}"]
            if not self._known_tokens():
                self._put_state(None, {})
            for name in left:
                self._send(name)
            self._put_state(self._journal_there(), self._open)
            assert self._lease is not None
            self._lease.check()
            self._store.put(join_url(self.url, manifest), (self.folder / manifest).read_bytes())
        self._store.delete([self._state_url])
        self._delete_pieces()
        shutil.rmtree(self.folder)
        (self._staging / "tokens").unlink(missing_ok=True)

    def _journal_there(self) -> str | None:
        state = self._read_state()
        return None if state is None else state.journal

    def _delete_pieces(self) -> None:
        self._store.delete(info.url for info in self._store.list_all(self._pieces_url))

    # --------------------------------------------------------------------------------------- state

    def _put_state(self, journal: str | None, opened: dict[str, int]) -> None:
        assert self._lease is not None
        self._lease.check()
        token = uuid.uuid4().hex
        self._save_tokens([*self._known_tokens()[-1:], token])
        state = _State(token=token, journal=journal, files=self.files, open=opened)
        self._store.put(self._state_url, state.model_dump_json().encode())
        self._open = opened

    def _read_state(self) -> _State | None:
        data = self._read(relative_to(self._state_url, self.url))
        if data is None:
            return None
        hint = "if no run is under way there, remove it"
        return validated(parse_json(data, self._state_url, DataError, hint=hint), _State, self._state_url, hint=hint)

    def _read(self, name: str) -> bytes | None:
        info = self._store.info(join_url(self.url, name))
        return None if info is None else self._store.read(info.url, etag=info.etag)

    def _known_tokens(self) -> list[str]:
        path = self._staging / "tokens"
        return path.read_text(encoding="utf-8").split() if path.exists() else []

    def _save_tokens(self, tokens: list[str]) -> None:
        write_text(self._staging / "tokens", "\n".join(tokens))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "automodel"


def _piece_range(url: str) -> tuple[int, int]:
    found = _PIECE.fullmatch(url)
    return (int(found[2]), int(found[3])) if found else (0, 0)


def _make_hollow(path: Path, size: int, head: bytes) -> None:
    """A file of ``size`` bytes of which only the beginning is there."""
    with path.open("wb") as handle:
        handle.write(head[:size])
        handle.truncate(size)


def _hollow_out(path: Path) -> None:
    """Give the space of a file back, but for its beginning."""
    size = path.stat().st_size
    if size > _HOLLOW_FROM:
        os.truncate(path, _HEAD_BYTES)
        os.truncate(path, size)


@dataclass(frozen=True)
class Place:
    """Where an output goes: a folder, which a mirror keeps like the one at a URL if it is one."""

    folder: Path
    mirror: Mirror | None = None

    @staticmethod
    def of(place: str, *, prefix: str = "", temp_dir: str | None = None) -> Place:
        """What ``place``, a path or URL, stands for; ``prefix`` and ``temp_dir`` as of a :class:`Mirror`.

        Raises:
            ConfigError: the URL is of no kind that is known, or its package is missing.
        """
        if not is_remote(place):
            return Place(Path(local_path(place)))
        mirror = Mirror(place, prefix, temp_dir)
        return Place(mirror.folder, mirror)


def local_folder(place: str) -> Path:
    """The folder of an output that is small, and only written to disks.

    Raises:
        ConfigError: it is a URL.
    """
    if is_remote(place):
        raise ConfigError(
            f"--output-dir {place}: this command writes to a local folder", "write it, then copy it there"
        )
    return Path(local_path(place))
