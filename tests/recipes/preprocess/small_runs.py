"""What the tests of every preprocessing command share: a folder's bytes, and that it is the same however it is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = ((1, 1, 1), (1, 7, 1))  # processes, documents in a chunk, chunks ahead: in this process alone
IN_WORKERS = ((1, 1, 1), (2, 1, 3), (3, 7, 1))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_same_bytes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    again: Callable[..., object],
    *,
    in_workers: bool,
    workers: str,
) -> None:
    """``again(name, **options)`` makes the same files as those in ``folder``; ``workers`` names that option.

    Units are smaller than the chunk of one document, so that many are cut from a small file.
    """
    monkeypatch.setattr("automodel_cli.corpus.documents.source.BYTES_PER_DOCUMENT", 37)
    for number, chunk_size, prefetch in IN_WORKERS if in_workers else HERE:
        again("again", **{workers: number, "chunk_size": chunk_size, "prefetch": prefetch})
        assert content(folder.with_name("again")) == content(folder), (number, chunk_size)
        shutil.rmtree(folder.with_name("again"))


def empty_sentence_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model for nltk that knows no abbreviation, in the form that it downloads."""
    model = folder / "nltk_data/tokenizers/punkt_tab/english"
    model.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (model / name).write_text("")
    monkeypatch.setattr("nltk.data.path", [str(folder / "nltk_data")])
    monkeypatch.setenv("NLTK_DATA", str(folder / "nltk_data"))
