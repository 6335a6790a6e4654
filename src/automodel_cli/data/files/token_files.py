"""From a ``file_pattern`` to the token files behind it, checked before anything is trained on them.

0. Show: what is named by a URL is shown in a local folder (``storage.cache.local_view``).
1. Resolve: a glob is sorted, a list keeps its order (its items may be globs), a folder means the training
   files that its manifest lists.
2. A plain name that is the first shard of a corpus (``dataset.bin``) means all shards of that split, and says
   so.
3. Inspect: each header against the size of its file, and against the manifest where there is one.
4. Refuse a selection that holds training and validation files at once.
5. Fingerprint: ordered hashes of the shards and the tokenizer, so moving data is legal; without a manifest,
   the number of tokens and a sample of each file stand in for its hash.

Nothing stays open; with 1,000 shards this takes some tens of milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automodel_cli.corpus.documents.globbing import expand, is_pattern
from automodel_cli.corpus.formats.manifest import (
    CorpusFile,
    CorpusManifest,
    find_manifest,
    read_corpus_manifest,
)
from automodel_cli.corpus.formats.nanogpt_bin import (
    HEADER_BYTES,
    Layout,
    TokenFile,
    inspect_remote_token_file,
    inspect_token_file,
)
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes
from automodel_cli.storage.cache.local_view import LocalView
from automodel_cli.storage.cache.remote_file import RemoteFile, RemoteObject

_SAMPLE_TOKENS = 2048
_HELD_OUT_WORDS = {"val", "valid", "validation", "test"}


@dataclass(frozen=True)
class TokenFiles:
    """The files of one data set in reading order, and what is known of them."""

    files: tuple[TokenFile, ...]
    entries: tuple[CorpusFile | None, ...]  # what a manifest says of each file, where there is one
    manifest: CorpusManifest | None  # the manifest, when one lists all the files
    split: str | None
    fingerprint: str
    notes: tuple[str, ...]


def open_token_files(file_pattern: str | Path | Sequence[str | Path], *, raw_dtype: str | None = None) -> TokenFiles:
    """Find, check and fingerprint the files of ``file_pattern``.

    Raises:
        DataError: no match, a damaged or empty file, or training and validation files together.
    """
    view = LocalView()
    with view.errors_by_url():
        return _opened(file_pattern, raw_dtype, view)


def _opened(file_pattern: str | Path | Sequence[str | Path], raw_dtype: str | None, view: LocalView) -> TokenFiles:
    notes: list[str] = []
    named = isinstance(file_pattern, str | Path)
    items = [str(file_pattern)] if isinstance(file_pattern, str | Path) else [str(item) for item in file_pattern]
    items = list(map(view.place, items))
    paths = _without_doubles([path for item in items for path in _resolve(item)], notes)
    manifests = _manifests(paths)
    known = {m.path(file): file for m in manifests.values() for file in m.token_files()}
    patterns = any(map(is_pattern, items))
    if named and len(paths) == 1 and not patterns and paths[0] in known:
        paths = _whole_split(paths[0], known[paths[0]], manifests[paths[0].parent], notes)
    entries = tuple(known.get(path) for path in paths)
    _refuse_mixed_splits(paths, entries, explicit=not named and not patterns)
    dtypes = {folder: manifest.dtype for folder, manifest in manifests.items()}
    remotes = list(map(view.object, paths))
    _stage_headers(remote for remote, entry in zip(remotes, entries, strict=True) if remote and not entry)
    files = tuple(
        _inspect(path, entry, raw_dtype or dtypes.get(path.parent), manifests.get(path.parent), remote)
        for path, entry, remote in zip(paths, entries, remotes, strict=True)
    )
    if assumed := [file.path.name for file in files if file.assumed]:
        what = f"{assumed[0]} has" if len(assumed) == 1 else f"{len(assumed)} files have"
        are = "is" if len(assumed) == 1 else "are"
        notes.append(f"{what} no header and {are} read as uint16 ids (raw_dtype can say otherwise)")
    manifest = split = None  # of all the files
    if entries[0] is not None and None not in entries and len({path.parent for path in paths}) == 1:
        manifest, split = manifests[paths[0].parent], entries[0].split
    return TokenFiles(files, entries, manifest, split, _fingerprint(files, entries, manifest), tuple(notes))


def _resolve(item: str) -> list[Path]:
    """The files that one pattern, file or folder stands for; sorted."""
    path = Path(item).expanduser()
    if path.is_dir():
        try:
            manifest = read_corpus_manifest(path)
        except DataError:
            raise DataError(
                f"{path} is a folder without a valid corpus manifest", f"name its files: {path}/*.bin"
            ) from None
        return [manifest.path(file) for file in manifest.token_files("train")]
    if path.is_file():
        return [path]
    files = [match for match in expand(str(path)) if match.is_file()]
    token_files = [match for match in files if match.suffix == ".bin"] or files
    if not token_files:
        makes = "`automodel preprocess nanogpt` makes token files"
        raise DataError(f"no file matches {item}", f"{what_is_there(path, '.bin')}. {makes}")
    return token_files


def what_is_there(path: Path, suffix: str) -> str:
    """What is there instead: the deepest folder that exists and its files of this kind."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    there = sorted(file.name for file in folder.glob(f"*{suffix}"))[:5]
    listing = f"it holds {', '.join(there)}" if there else f"it holds no {suffix} files"
    return f"the folder {folder} exists; {listing}"


def _without_doubles(paths: list[Path], notes: list[str]) -> list[Path]:
    unique = list(dict.fromkeys(paths))
    if len(unique) < len(paths):
        notes.append(f"{len(paths) - len(unique)} file(s) were named twice and are read once")
    if not unique:
        raise DataError("file_pattern is an empty list", "name at least one .bin file")
    return unique


def _manifests(paths: list[Path]) -> dict[Path, CorpusManifest]:
    """The manifest of each folder that has one listing some of ``paths``; each is read once."""
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    found = {folder: find_manifest(own[0]) or find_manifest(own[-1]) for folder, own in by_folder.items()}
    return {folder: manifest for folder, manifest in found.items() if manifest is not None}


def _whole_split(path: Path, entry: CorpusFile, manifest: CorpusManifest, notes: list[str]) -> list[Path]:
    """All shards of the split that begins with ``path``; just ``path`` if it is another or the only one."""
    shards = [file for file in manifest.token_files(entry.split) if _stem(file.name) == _stem(entry.name)]
    if len(shards) == 1 or shards[0].name != entry.name:
        return [path]
    notes.append(
        f"{path} is the first of {len(shards)} shards of its corpus; all of them are read "
        "(name one in a list to read it alone)"
    )
    return [manifest.path(shard) for shard in shards]


def _stem(name: str) -> str:
    """What the shards of one corpus have in common: conversations have files of their own for each task."""
    return re.sub(r"(_\d{5})?\.bin$", "", name)


def _refuse_mixed_splits(paths: list[Path], entries: tuple[CorpusFile | None, ...], *, explicit: bool) -> None:
    """Training on the validation set is never meant; names count where no manifest speaks."""
    names: dict[bool, list[str]] = {True: [], False: []}  # by whether the file is held out
    for path, entry in zip(paths, entries, strict=True):
        if entry is not None and entry.split is not None:
            names[entry.split == "val"].append(path.name)
        elif not explicit:
            words = re.split(r"[^a-z]+", path.stem.lower())
            names[not _HELD_OUT_WORDS.isdisjoint(words)].append(path.name)
    if names[True] and names[False]:
        raise DataError(
            f"file_pattern mixes training and validation files: {names[False][0]} and {names[True][0]}",
            "narrow the pattern, for example to dataset*.bin, or list the files",
        )


def _stage_headers(remotes: Iterable[RemoteObject]) -> None:
    """Have the beginnings of files fetched side by side."""
    for remote in remotes:
        RemoteFile(remote).stage([(0, min(HEADER_BYTES, remote.size))])


def _inspect(
    path: Path,
    entry: CorpusFile | None,
    raw_dtype: str | None,
    manifest: CorpusManifest | None,
    remote: RemoteObject | None,
) -> TokenFile:
    if remote is None:
        file = inspect_token_file(path, raw_dtype=raw_dtype)
    elif entry is not None and manifest is not None:
        file = _as_listed(path, entry, manifest, remote)
    else:
        file = inspect_remote_token_file(path, remote, raw_dtype=raw_dtype)
    if file.num_tokens == 0:
        raise DataError(
            f"{file.name} holds no tokens", "its writer was stopped before it wrote the count; make the file again"
        )
    if entry is not None and entry.tokens != file.num_tokens:
        raise DataError(
            f"{file.name} holds {file.num_tokens:,} tokens, its manifest.json says {entry.tokens:,}",
            "the file was replaced or its copy is incomplete: `automodel preprocess verify` tells more",
        )
    return file


def _as_listed(path: Path, entry: CorpusFile, manifest: CorpusManifest, remote: RemoteObject) -> TokenFile:
    """A remote file as its manifest has it, which saves a request; its size has to be that."""
    if remote.size != entry.bytes:
        raise DataError(
            f"{remote.url} has {remote.size:,} bytes, its manifest.json says {entry.bytes:,}",
            "the file was replaced or its copy is incomplete: copy it again",
        )
    layout: Layout = "raw" if manifest.layout == "raw" else "nemo"
    offset = 0 if layout == "raw" else HEADER_BYTES
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    return TokenFile(path, layout, dtype, (entry.bytes - offset) // dtype.itemsize, offset, remote=remote)


def _fingerprint(
    files: tuple[TokenFile, ...], entries: tuple[CorpusFile | None, ...], manifest: CorpusManifest | None
) -> str:
    """Equal for equal data, wherever it lies; equal to the manifest's own for a whole split."""
    if manifest is not None:
        assert entries[0] is not None
        if entries == manifest.token_files(entries[0].split):
            return manifest.fingerprint(entries[0].split)
    stage_samples(file for file, entry in zip(files, entries, strict=True) if entry is None)
    parts = [sample_hash(f) if e is None else e.xxh3 for f, e in zip(files, entries, strict=True)]
    tokenizer = None if manifest is None else manifest.tokenizer["fingerprint"]
    return hash_bytes(json.dumps([*parts, tokenizer]).encode())


def sample_hash(file: TokenFile) -> str:
    """Stands in for the hash of a file that no manifest describes: its size, its head, middle and tail."""
    starts, count = _samples(file)
    with TokenReader(file, mmap=False) as reader:
        pieces = [reader.read(start, count).astype(np.uint32).tobytes() for start in starts]
    return hash_bytes(b"".join([str(file.num_tokens).encode(), *pieces]))


def stage_samples(files: Iterable[TokenFile]) -> None:
    """Have what ``sample_hash`` reads of remote files fetched side by side."""
    for file in files:
        if file.remote is not None:
            starts, count = _samples(file)
            width = file.dtype.itemsize
            first = [file.offset_bytes + start * width for start in dict.fromkeys(starts)]
            RemoteFile(file.remote).stage((start, start + count * width) for start in first)


def _samples(file: TokenFile) -> tuple[tuple[int, ...], int]:
    count = min(_SAMPLE_TOKENS, file.num_tokens)
    return (0, (file.num_tokens - count) // 2, file.num_tokens - count), count
