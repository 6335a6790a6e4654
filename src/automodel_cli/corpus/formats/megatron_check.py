"""Check Megatron's files: index, ids, document ends and, where there is a manifest, every byte.

Files of Megatron, NeMo and datatrove have no manifest: of them everything is checked that the two files say of each
other. ``.bin`` is read once, for the largest id, the document ends and the hash together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from automodel_cli.corpus.formats.journal import interrupted_in_words, unfinished
from automodel_cli.corpus.formats.megatron_bin import MAGIC, MegatronFile, bin_path, idx_path, inspect_prefix
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.corpus.formats.megatron_manifest import (
    SUFFIX,
    Listed,
    MegatronManifest,
    PairEntry,
    find_megatron_manifests,
    is_megatron_manifest,
)
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.corpus.formats.verify_report import FileReport, VerifyReport
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.errors import DataError

_BLOCK_TOKENS = 8 << 20
ProgressCallback = Callable[[int, int, str], None]


def holds_megatron_files(path: Path) -> bool:
    """Whether ``path`` is a pair (with or without suffix), a manifest of pairs, or a folder with pairs."""
    if path.is_dir():
        return any(map(is_megatron_manifest, path.glob(f"*{SUFFIX}"))) or any(map(_is_index, path.glob("*.idx")))
    if is_megatron_manifest(path):
        return True
    prefix = _prefix_of(path)
    return _is_index(idx_path(prefix)) or (bin_path(prefix).exists() and _listed(prefix))


def _is_index(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def _listed(prefix: Path) -> bool:
    try:
        return find_megatron_manifests([prefix]) != [None]
    except DataError:
        return True


def _prefix_of(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def check_megatron(path: Path, *, tokenizer: str | None, documents: int, progress: ProgressCallback) -> VerifyReport:
    """Check what ``path`` names; see ``holds_megatron_files``.

    Args:
        tokenizer: to check and decode with, instead of the manifest's.
        documents: how many to decode from the start of each key's first pair.
    """
    folder = path if path.is_dir() else path.parent
    journals = [journal for journal in unfinished(folder) if path.is_dir() or _may_be_of(path, journal)]
    report = VerifyReport(path, problems=[interrupted_in_words(journal) for journal in journals])
    check = _Check(report, tokenizer, documents, progress)
    if path.is_dir():
        for manifest_path in sorted(path.glob(f"*{SUFFIX}")):
            if is_megatron_manifest(manifest_path):
                check.manifest(manifest_path)
        check.strangers(path)
    elif is_megatron_manifest(path):
        check.manifest(path)
    else:
        check.one(_prefix_of(path))
    return report


def _may_be_of(path: Path, journal: Path) -> bool:
    """Whether a pair could be one that the run of ``journal`` writes."""
    return path.name.startswith(f"{journal.name.removesuffix('.progress.json')}_")


@dataclass(frozen=True)
class _Scan:
    """What one pass over a ``.bin`` tells."""

    smallest: int
    largest: int
    xxh3: str
    wrong_ends: int  # documents with tokens that do not end in the end-of-document id
    with_tokens: int


class _Check:
    """One run of checks, which fills the report."""

    def __init__(self, report: VerifyReport, tokenizer: str | None, documents: int, progress: ProgressCallback) -> None:
        self.report, self.documents, self.progress = report, documents, progress
        self.tokenizer = None if tokenizer is None else open_tokenizer(tokenizer)
        self.known: set[str] = set()  # names of pairs that a manifest lists
        self.shown: set[str] = set()  # keys of which documents were shown: of the first pair only
        self.done_bytes = self.all_bytes = 0

    def manifest(self, path: Path) -> None:
        """A manifest and all that it lists."""
        try:
            manifest = MegatronManifest.read(path)
        except DataError as error:
            self.report.problems.append(error.message)
            return
        self.report.manifest, self.shown = manifest, set()
        tokenizer = self.tokenizer or self._tokenizer_of(manifest)
        self.all_bytes += sum(pair.bin_bytes for pair in manifest.pairs)
        for pair in manifest.pairs:
            self.known.add(pair.name)
            self.pair(manifest.prefix(pair), Listed(manifest, pair), tokenizer)
        if not manifest.pairs:
            self.report.problems.append(f"{path} lists no pair of files: nothing was checked")
        sums = [sum(getattr(p, name) for p in manifest.pairs) for name in ("tokens", "sequences", "documents")]
        if sums != [manifest.tokens, manifest.sequences, manifest.documents]:
            self.report.problems.append(f"{path}: the counts of its pairs do not add up to its own")

    def one(self, prefix: Path) -> None:
        """One pair, and what a manifest beside it says of it."""
        listed, tokenizer = None, self.tokenizer
        try:
            (listed,) = find_megatron_manifests([prefix])
        except DataError as error:
            self.report.problems.append(error.message)
        if listed is not None:
            self.report.manifest = listed.manifest
            tokenizer = tokenizer or self._tokenizer_of(listed.manifest)
        self.all_bytes = bin_path(prefix).stat().st_size if bin_path(prefix).exists() else 0
        self.pair(prefix, listed, tokenizer)

    def strangers(self, folder: Path) -> None:
        """Pairs in a folder that no manifest lists."""
        found = {_prefix_of(p) for p in folder.glob("*.idx") if _is_index(p)}
        found |= {_prefix_of(p) for p in folder.glob("*.bin")}
        prefixes = sorted(prefix for prefix in found if prefix.name not in self.known)
        if prefixes and not self.known:
            self.report.warnings.append(f"{folder} has no manifest: nothing to compare hashes with")
        self.all_bytes += sum(bin_path(p).stat().st_size for p in prefixes if bin_path(p).exists())
        for prefix in prefixes:
            if self.known:
                self.report.warnings.append(f"{prefix} is listed in no manifest")
            self.pair(prefix, None, self.tokenizer)

    def _tokenizer_of(self, manifest: MegatronManifest) -> Tokenizer | None:
        folder = manifest.tokenizer_folder
        for file in manifest.tokenizer_files:
            self.report.compare(folder / file.name, file.bytes, file.xxh3)
        return self.report.open_tokenizer(folder, manifest.tokenizer)

    # ------------------------------------------------------------------------------------ one pair

    def pair(self, prefix: Path, listed: Listed | None, tokenizer: Tokenizer | None) -> None:
        """Everything about one pair: sizes and the index's hash first, so that a damaged one is not looked into."""
        report, entry = self.report, None if listed is None else listed.pair
        if entry is not None and not (
            report.has_size(bin_path(prefix), entry.bin_bytes)
            and report.compare(idx_path(prefix), entry.idx_bytes, entry.idx_xxh3)
        ):
            return
        try:
            file = inspect_prefix(prefix)
            index = MegatronIndex(file)
            index.check()
        except DataError as error:
            report.problems.append(error.message)
            return
        manifest = None if listed is None else listed.manifest
        eod_id = manifest.eod_id if manifest is not None else getattr(tokenizer, "eot_id", None)
        scan = self._scan(file, index, eod_id)
        if entry is not None:
            self._compare(prefix, file, scan, entry)
        vocab_size = manifest.tokenizer["vocab_size"] if manifest else getattr(tokenizer, "vocab_size", None)
        if file.num_tokens:
            report.check_ids(bin_path(prefix), scan.smallest, scan.largest, vocab_size)
        if eod_id is not None and scan.wrong_ends:
            self._judge_ends(prefix, listed, scan, eod_id)
        key = entry.key if entry is not None else ""
        if tokenizer is not None and self.documents and key not in self.shown:
            self.shown.add(key)
            self._show(index, tokenizer)
        counts = (file.num_tokens, file.num_documents, scan.largest)
        report.files.append(FileReport(prefix.name, "megatron", file.dtype.name, *counts))

    def _compare(self, prefix: Path, file: MegatronFile, scan: _Scan, entry: PairEntry) -> None:
        self.report.compare_hash(bin_path(prefix), scan.xxh3, entry.bin_xxh3)
        found = (file.num_tokens, file.num_sequences, file.num_documents)
        if found != (entry.tokens, entry.sequences, entry.documents):
            self.report.problems.append(
                f"{idx_path(prefix)} lists {found[0]:,} tokens, {found[1]:,} sequences and {found[2]:,} documents, "
                f"the manifest says {entry.tokens:,}, {entry.sequences:,} and {entry.documents:,}"
            )

    def _scan(self, file: MegatronFile, index: MegatronIndex, eod_id: int | None) -> _Scan:
        """Read all tokens once."""
        ends = _document_ends(index) if eod_id is not None else np.zeros(0, dtype=np.int64)
        smallest, largest, wrong = 0, 0, 0
        digest = xxhash.xxh3_64()
        reader = TokenReader(file.tokens, mmap=False)
        for first in range(0, file.num_tokens, _BLOCK_TOKENS):
            tokens = reader.read(first, min(_BLOCK_TOKENS, file.num_tokens - first))
            digest.update(tokens.data)
            smallest, largest = min(smallest, int(tokens.min())), max(largest, int(tokens.max()))
            low, high = np.searchsorted(ends, (first, first + len(tokens)), side="right")
            wrong += int(np.count_nonzero(tokens[ends[low:high] - 1 - first] != eod_id))
            self.done_bytes += tokens.nbytes
            self.progress(self.done_bytes, self.all_bytes, file.prefix.name)
        return _Scan(smallest, largest, f"xxh3:{digest.hexdigest()}", wrong, len(ends))

    def _judge_ends(self, prefix: Path, listed: Listed | None, scan: _Scan, eod_id: int) -> None:
        """Each document of ours must end as the manifest says; of others a mixture is worth a word."""
        line = f"{prefix}: {scan.wrong_ends:,} of {scan.with_tokens:,} documents do not end in id {eod_id}"
        if listed is None:
            if scan.wrong_ends < scan.with_tokens:
                self.report.warnings.append(line)
            return
        # The very last document of a run with --max-tokens may be cut.
        last = max(pair.part for pair in listed.manifest.pairs)
        cut = listed.manifest.options.get("max_tokens") and listed.pair.part == last
        if scan.wrong_ends > (1 if cut else 0):
            self.report.problems.append(line)

    def _show(self, index: MegatronIndex, tokenizer: Tokenizer) -> None:
        """The beginnings of the first documents that have tokens."""
        name, ends = index.file.prefix.name, _document_ends(index, self.documents)
        reader, start = TokenReader(index.file.tokens), 0
        for end in ends.tolist():
            self.report.show(name, tokenizer, reader, start, end)
            start = end


def _document_ends(index: MegatronIndex, first: int | None = None) -> np.ndarray:
    """Where documents with tokens end, in tokens, int64; of the ``first`` ones or all."""
    bounds = index.document_bounds()
    if first is not None:
        # Empty documents are rare: four times as many are looked at, not all.
        bounds = bounds[: 4 * first + 1]
    ends = np.concatenate(([0], np.cumsum(index.lengths(0, int(bounds[-1])), dtype=np.int64)))[bounds]
    return ends[1:][np.diff(ends) > 0][:first]
