"""Small corpora on disk, made with the real writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.corpus.formats.manifest import CorpusManifest, describe_file

EOT = 50256


def make_corpus(
    folder: Path,
    shards: dict[str, np.ndarray],
    *,
    layout: str = "bin",
    vocab_size: int = 50257,
    eot: str = "prepend",
    bos_id: int | None = None,
) -> CorpusManifest:
    """Write ``{file name: tokens}`` and a manifest; names with "val" in them are the validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, tokens in shards.items():
        before = tokens[:-1] == EOT
        starts = np.flatnonzero(tokens == EOT) if eot == "prepend" else np.flatnonzero(np.r_[True, before])
        dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        write_token_file(folder / name, tokens, starts=starts, dtype=dtype, layout="raw" if layout == "raw" else "nemo")
        split = "val" if "val" in name else "train"
        files.append(describe_file(folder, name, "tokens", split, tokens=len(tokens), documents=len(starts)))
    manifest = CorpusManifest(
        folder=folder,
        layout=layout,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        eot=eot,  # type: ignore[arg-type]
        tokenizer={
            "name": "gpt2",
            "fingerprint": "xxh3:0123456789abcdef",
            "vocab_size": vocab_size,
            "eot_id": EOT,
            "bos_id": bos_id,
        },
        documents=sum(file.documents for file in files),
        tokens=sum(file.tokens for file in files),
        bad_rows=0,
        files=tuple(files),
    )
    manifest.write()
    return manifest


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., CorpusManifest]:
    """``make_corpus`` in a folder of this test: ``corpus({"dataset.bin": tokens}, ...)``."""

    def make(shards: dict[str, np.ndarray], folder: str = "corpus", **options: object) -> CorpusManifest:
        return make_corpus(tmp_path / folder, shards, **options)  # type: ignore[arg-type]

    return make
