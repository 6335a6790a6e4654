"""Check token files: headers, sizes, hashes, the largest id, document index, and the first documents as text.

With a manifest every file that it lists is hashed (of shuffled documents that is all), so one changed byte anywhere is
found and its file named. Without one (NeMo's and nanoGPT's files) the checks are those that the files themselves allow.
Pairs of .bin and .idx are ``megatron_check``'s; the sample indices beside them, or in a folder of their own, are hashed
too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.config.schema.preprocess import VerifyConfig
from automodel_cli.corpus.build.check_objects import check_objects
from automodel_cli.corpus.formats.bos_index import bos_index_fits, bos_index_path, read_bos_index
from automodel_cli.corpus.formats.journal import interrupted_in_words, unfinished
from automodel_cli.corpus.formats.manifest import (
    MANIFEST_NAME,
    CorpusFile,
    CorpusManifest,
    ListedFile,
    find_manifest,
    read_corpus_manifest,
)
from automodel_cli.corpus.formats.megatron_check import check_megatron, holds_megatron_files
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.corpus.formats.token_reader import TokenReader, iter_blocks
from automodel_cli.corpus.formats.verify_report import FileReport, VerifyReport
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.data.megatron.index_cache import CACHE_FOLDER, STAMP_SUFFIX, check_folder
from automodel_cli.errors import DataError
from automodel_cli.files import names_format
from automodel_cli.storage.urls import is_remote, local_path

ProgressCallback = Callable[[int, int, str], None]


def run(cfg: VerifyConfig, *, progress: ProgressCallback) -> VerifyReport:
    """Check what ``cfg.path`` names; ``progress(bytes done, bytes in all, file)``.

    Raises:
        DataError: there is nothing to check.
    """
    if is_remote(cfg.path):
        return check_objects(cfg.path, progress)
    path = Path(local_path(cfg.path))
    folder = path.parent if path.name == MANIFEST_NAME else path
    if not (folder / MANIFEST_NAME).exists() and holds_megatron_files(path):
        report = check_megatron(path, tokenizer=cfg.tokenizer, documents=cfg.documents, progress=progress)
        folder = path if path.is_dir() else path.parent
        return _with_indices(report, folder / CACHE_FOLDER)
    if not (folder / MANIFEST_NAME).exists() and next(folder.glob(f"*{STAMP_SUFFIX}"), None) is not None:
        return _with_indices(VerifyReport(folder), folder)
    if names_format(folder / MANIFEST_NAME, DocumentsManifest.FORMAT):
        return _verify_documents(folder, progress)
    if folder.is_dir():
        return _verify_folder(cfg, folder, progress)
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}", "name a corpus folder or a token file")
    return _verify_file(cfg, path, progress)


def as_json(report: VerifyReport) -> dict[str, Any]:
    """The report for programs; the manifest is in its own file."""
    found = {key: value for key, value in vars(report).items() if key != "manifest"}
    return {
        "ok": not report.problems,
        **found,
        "path": str(report.path),
        "files": [asdict(f) for f in report.files],
    }


def _with_indices(report: VerifyReport, folder: Path) -> VerifyReport:
    """``report`` with what is wrong with the sample indices in ``folder``."""
    hashed, problems = check_folder(folder)
    report.hashed += hashed
    report.problems += problems
    return report


def _verify_folder(cfg: VerifyConfig, folder: Path, progress: ProgressCallback) -> VerifyReport:
    report = VerifyReport(folder, problems=[interrupted_in_words(path) for path in unfinished(folder)])
    if not (folder / MANIFEST_NAME).exists():
        found = sorted(folder.glob("*.bin"))
        if not found and not report.problems:
            raise DataError(f"{folder} holds no manifest.json and no .bin file", "name a folder of token files")
        report.warnings.append(f"{folder} has no manifest.json: nothing to compare hashes with")
        tokenizer = _tokenizer(cfg, None, report)
        for token_file in found:
            _check_tokens(report, token_file, None, tokenizer, cfg)
        return report
    try:
        report.manifest = read_corpus_manifest(folder)
    except DataError as error:
        report.problems.append(error.message)
        return report
    _check_listed(report, folder, report.manifest.files, progress)
    tokenizer = _tokenizer(cfg, report.manifest, report)
    for file in report.manifest.token_files():
        if (folder / file.name).is_file():
            _check_tokens(report, folder / file.name, file, tokenizer, cfg)
    _check_totals(report, report.manifest)
    return report


def _verify_documents(folder: Path, progress: ProgressCallback) -> VerifyReport:
    """A folder of documents: its files against sizes and hashes."""
    report = VerifyReport(folder)
    try:
        manifest = report.manifest = DocumentsManifest.read(folder / MANIFEST_NAME)
    except DataError as error:
        report.problems.append(error.message)
        return report
    _check_listed(report, folder, (*manifest.files, *manifest.reports), progress)
    documents = sum(file.documents for file in manifest.files)
    if not manifest.files or documents != manifest.documents:
        report.problems.append(
            f"{folder / MANIFEST_NAME} says {manifest.documents:,} documents, its {len(manifest.files):,} files "
            f"sum to {documents:,}"
        )
    return report


def _verify_file(cfg: VerifyConfig, path: Path, progress: ProgressCallback) -> VerifyReport:
    report = VerifyReport(path, problems=[interrupted_in_words(found) for found in unfinished(path.parent)])
    try:
        report.manifest = find_manifest(path)
    except DataError as error:
        report.problems.append(error.message)
    listed = None
    if report.manifest is not None:
        names = (path.name, bos_index_path(path).name)
        files = [file for file in report.manifest.files if file.name in names]
        _check_listed(report, path.parent, files, progress)
        listed = next(file for file in files if file.name == path.name)
    _check_tokens(report, path, listed, _tokenizer(cfg, report.manifest, report), cfg)
    return report


def _check_listed(
    report: VerifyReport,
    folder: Path,
    files: Sequence[ListedFile],
    progress: ProgressCallback,
) -> None:
    """Size and hash of every file against the manifest."""
    total = sum(file.bytes for file in files)
    done = 0
    for file in files:
        report.compare(folder / file.name, file.bytes, file.xxh3)
        done += file.bytes
        progress(done, total, file.name)


def _tokenizer(cfg: VerifyConfig, manifest: CorpusManifest | None, report: VerifyReport) -> Tokenizer | None:
    if cfg.tokenizer is not None:
        return open_tokenizer(cfg.tokenizer)
    if manifest is None or manifest.tokenizer_folder is None:
        return None
    return report.open_tokenizer(manifest.tokenizer_folder, manifest.tokenizer)


def _check_tokens(
    report: VerifyReport,
    path: Path,
    listed: CorpusFile | None,
    tokenizer: Tokenizer | None,
    cfg: VerifyConfig,
) -> None:
    """Header, length, ids and index of one token file."""
    manifest = report.manifest
    raw_dtype = manifest.dtype if manifest is not None else cfg.raw_dtype
    try:
        file = inspect_token_file(path, raw_dtype=raw_dtype)
    except DataError as error:
        report.problems.append(error.message)
        return
    if listed is None and file.num_tokens == 0:
        report.problems.append(f"{path} holds no tokens")
    if listed is not None and file.num_tokens != listed.tokens:
        report.problems.append(f"{path} holds {file.num_tokens:,} tokens, the manifest says {listed.tokens:,}")
    with TokenReader(file, mmap=False) as reader:
        largest = max((int(chunk.max(initial=0)) for chunk in iter_blocks(reader)), default=0)
        vocab_size = manifest.tokenizer["vocab_size"] if manifest else getattr(tokenizer, "vocab_size", None)
        if file.num_tokens:
            report.check_ids(path, 0, largest, vocab_size)
        positions = _check_index(report, reader, listed)
        if tokenizer is not None and cfg.documents:
            # Of a file without index: its beginning.
            known = [0] if positions is None or not len(positions) else positions[: cfg.documents + 1].tolist()
            for start, stop in list(itertools.pairwise([*known, reader.num_tokens]))[: cfg.documents]:
                report.show(path.name, tokenizer, reader, start, stop)
    documents = None if positions is None else len(positions)
    counts = (file.num_tokens, documents, largest)
    report.files.append(FileReport(path.name, file.layout, file.dtype.name, *counts))


def _check_index(report: VerifyReport, reader: TokenReader, listed: CorpusFile | None) -> np.ndarray | None:
    """The document positions, if there is an index and it is right."""
    path = reader.file.path
    ours = report.manifest is not None and listed is not None
    complaints = report.problems if ours else report.warnings
    try:
        positions = read_bos_index(path, reader.num_tokens)
    except DataError as error:
        complaints.append(error.message)
        return None
    if positions is None or len(positions) == 0:
        return positions
    if ours:
        assert report.manifest is not None and listed is not None
        if len(positions) != listed.documents:
            complaints.append(
                f"{bos_index_path(path)} lists {len(positions):,} documents, the manifest says {listed.documents:,}"
            )
        separator_id, eot = report.manifest.separator_id, report.manifest.eot
        at = positions if eot == "prepend" else positions[positions > 0] - 1
        fits = eot == "none" or bos_index_fits(reader, at, separator_id)
    else:
        fits = bos_index_fits(reader, positions, int(reader.read(int(positions[0]), 1)[0]))
    if not fits:
        complaints.append(f"{bos_index_path(path)} does not point at the beginnings of documents")
        return None
    return positions


def _check_totals(report: VerifyReport, manifest: CorpusManifest) -> None:
    tokens = sum(file.tokens for file in manifest.token_files())
    documents = sum(file.documents for file in manifest.token_files())
    if (tokens, documents) != (manifest.tokens, manifest.documents):
        report.problems.append(
            f"{manifest.folder / MANIFEST_NAME} says {manifest.tokens:,} tokens in {manifest.documents:,} documents, "
            f"its files sum to {tokens:,} in {documents:,}"
        )
    if not manifest.token_files():
        report.problems.append(f"{manifest.folder / MANIFEST_NAME} lists no token file: nothing was checked")
    known = {file.name for file in manifest.token_files()}
    for path in sorted(manifest.folder.glob("*.bin")):
        if path.name not in known:
            report.warnings.append(f"{path} is not part of the corpus: the manifest does not list it")
