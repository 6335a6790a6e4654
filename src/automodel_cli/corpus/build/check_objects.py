"""``preprocess verify`` of a place in object storage: every listed object is read once and hashed; nothing is stored.

What a manifest does not cover (token ids, the document index, documents as text) is checked of files on a disk only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from automodel_cli.corpus.formats.manifest import MANIFEST_NAME, CorpusManifest
from automodel_cli.corpus.formats.megatron_manifest import SUFFIX, MegatronManifest
from automodel_cli.corpus.formats.verify_report import VerifyReport
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest
from automodel_cli.errors import DataError
from automodel_cli.json_files import MAX_JSON_BYTES
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.reading import blocks
from automodel_cli.storage.store import ObjectInfo, Store
from automodel_cli.storage.urls import join_url, name_of, parent_url, relative_to, split_url

ProgressCallback = Callable[[int, int, str], None]
Listed = tuple[str, int, str]  # name, bytes, xxh3
_FORMATS: dict[str, type[Any]] = {
    kind.FORMAT: kind for kind in (CorpusManifest, DocumentsManifest, MegatronManifest)
}  # fmt: skip


def check_objects(url: str, progress: ProgressCallback) -> VerifyReport:
    """Check the folder at ``url``, or what the manifest at ``url`` lists; ``progress(bytes done, bytes in all, name)``.

    Raises:
        DataError: there is no manifest.
    """
    url = str(split_url(url))
    only = name_of(url) if url.endswith(MANIFEST_NAME) else None
    folder = url if only is None else parent_url(url)
    store = open_store(folder)
    there = {relative_to(info.url, folder): info for info in store.list_all(folder)}
    found = [only] if only else sorted(name for name in there if name.endswith(MANIFEST_NAME) and "/" not in name)
    report = VerifyReport(folder, problems=_interrupted(there, folder))
    listed = [entry for name in found for entry in _listed(report, store, join_url(folder, name))]
    if not found and not report.problems:
        raise DataError(
            f"{folder} holds no manifest.json, of {len(there):,} objects", "name a folder that automodel made"
        )
    total, done = sum(size for _, size, _ in listed), 0
    for name, size, xxh3 in listed:
        _compare(
            report, store, there.get(name) or store.info(join_url(folder, name)), join_url(folder, name), size, xxh3
        )
        done += size
        progress(done, total, name)
    known = {name for name, _, _ in listed}
    if only is None:
        report.warnings += [
            f"{join_url(folder, name)} is listed in no manifest"
            for name in sorted(there)
            if name.endswith(".bin") and name not in known
        ]
    return report


def _interrupted(there: dict[str, ObjectInfo], folder: str) -> list[str]:
    return [
        f"{join_url(folder, name)} is of an interrupted run, whose files are not all here: run its command again"
        for name in sorted(there)
        if name.startswith(".") and name.endswith("upload.json") and "/" not in name
    ]


def _listed(report: VerifyReport, store: Store, url: str) -> Iterator[Listed]:
    """The files of a manifest; what is wrong with it goes to ``report``."""
    with tempfile.TemporaryDirectory(prefix="automodel-manifest-") as scratch:
        path = Path(scratch, name_of(url))
        path.write_bytes(data := store.read(url, 0, MAX_JSON_BYTES))
        kind = next((kind for form, kind in _FORMATS.items() if form.encode() in data), None)
        if kind is None:
            report.problems.append(f"{url} is not a manifest of ours, or is damaged")
            return
        try:
            manifest = report.manifest = kind.read(path)
        except DataError as error:
            report.problems.append(error.message.replace(str(path), url))
            return
    if not isinstance(manifest, MegatronManifest):
        reports = manifest.reports if isinstance(manifest, DocumentsManifest) else ()
        yield from ((file.name, file.bytes, file.xxh3) for file in (*manifest.files, *reports))
        return
    for pair in manifest.pairs:
        yield f"{pair.name}.bin", pair.bin_bytes, pair.bin_xxh3
        yield f"{pair.name}.idx", pair.idx_bytes, pair.idx_xxh3
    tokenizer = f"{name_of(url).removesuffix(SUFFIX)}.tokenizer"
    yield from ((f"{tokenizer}/{file.name}", file.bytes, file.xxh3) for file in manifest.tokenizer_files)


def _compare(report: VerifyReport, store: Store, info: ObjectInfo | None, url: str, size: int, xxh3: str) -> None:
    """Size and hash of an object against the manifest's."""
    if info is None:
        report.problems.append(f"{url} is missing")
    elif info.size != size:
        report.problems.append(f"{url} is {info.size:,} bytes long, the manifest says {size:,}")
    else:
        digest = xxhash.xxh3_64()
        for block in blocks(store, info):
            digest.update(block)
        report.compare_hash(url, f"xxh3:{digest.hexdigest()}", xxh3)
