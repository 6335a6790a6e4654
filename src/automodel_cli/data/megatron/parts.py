"""What one split takes from each Megatron file: a range of sequences, which is also a range of tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from automodel_cli.corpus.formats.megatron_bin import (
    HEADER_BYTES,
    MegatronFile,
    bin_path,
    idx_path,
    inspect_prefix,
    tokens_before,
)
from automodel_cli.data.files.token_files import sample_hash, stage_samples
from automodel_cli.data.interface import BlendStats
from automodel_cli.data.megatron.gpt_index import SplitBounds, split_range
from automodel_cli.files import hash_bytes
from automodel_cli.storage.cache.local_view import LocalView


@dataclass(frozen=True)
class Part:
    """Sequences ``begin`` to ``end`` of one file: ``tokens`` tokens from ``first_token`` of its ``.bin`` on."""

    file: MegatronFile
    begin: int
    end: int
    first_token: int
    tokens: int

    @property
    def prefix(self) -> str:
        """The path without ``.bin`` or ``.idx``."""
        return str(self.file.prefix)

    def stats(self, weight: float, samples: float, seq_len: int) -> BlendStats:
        """What becomes of this part where so many samples are drawn of it."""
        epochs = samples * seq_len / max(self.tokens, 1)
        return BlendStats(self.file.prefix.name, self.begin, self.end, self.tokens, weight, round(samples), epochs)


def open_parts(prefixes: Sequence[str], bounds: SplitBounds, view: LocalView | None = None) -> list[Part]:
    """The part of each file between ``bounds``; a few small reads a file. Of those in ``view`` the ``.idx`` is fetched.

    Raises:
        DataError: a file that is missing, damaged or cut off.
    """
    parts = []
    view = view or LocalView()
    view.fetch(map(idx_path, prefixes))
    for prefix in prefixes:
        file = inspect_prefix(prefix, view.object(bin_path(prefix)))
        begin, end = split_range(bounds, file.num_sequences)
        first, last = tokens_before(file, (begin, end))
        parts.append(Part(file, begin, end, first, last - first))
    return parts


def fingerprint(parts: Sequence[Part]) -> str:
    """Identity of the files' content, wherever they lie: sizes, counts and a sample of the tokens of each."""
    stage_samples(part.file.tokens for part in parts)
    found = [(part.file.num_sequences, part.file.num_documents, sample_hash(part.file.tokens)) for part in parts]
    return hash_bytes(json.dumps(found).encode())


def state_of_index(file: MegatronFile) -> dict[str, int | str]:
    """What shows that an ``.idx`` was replaced: its size, time and header."""
    with file.idx.open("rb") as handle:
        header = handle.read(HEADER_BYTES)
        status = os.fstat(handle.fileno())
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "header": hash_bytes(header)}
