"""A tiny byte-level run on disk: corpus with a validation split, a checkpoint with its tokenizer and config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.token_files import write_token_file

from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.corpus.formats.manifest import CorpusManifest, describe_file
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.models.gpt2 import GPT2, build_gpt2_model

SEQ_LEN = 16


@dataclass(frozen=True)
class TinyRun:
    """Where the pieces lie, and the model in memory to compare with."""

    corpus: Path
    run: Path
    model: GPT2

    @property
    def val(self) -> Path:
        return self.corpus / "val.bin"


def make_corpus(folder: Path) -> Path:
    """Bytes of a repeating text, the last part as validation; with a tokenizer and a manifest."""
    folder.mkdir()
    tokenizer = ByteTokenizer()
    tokenizer.save(folder / "tokenizer")
    text = " ".join(f"line {number} of a small text." for number in range(400))
    ids = np.array([256, *tokenizer.encode(text)], dtype=np.uint16)
    write_token_file(folder / "dataset.bin", ids[:9000])
    write_token_file(folder / "val.bin", ids[9000:9500])
    files = (
        describe_file(folder, "dataset.bin", "tokens", "train", tokens=9000, documents=1),
        describe_file(folder, "val.bin", "tokens", "val", tokens=500),
        describe_file(folder, "tokenizer/automodel_tokenizer.json", "tokenizer"),
    )
    described = tokenizer.describe()
    CorpusManifest(
        folder=folder,
        layout="bin",
        dtype="uint16",
        eot="prepend",
        tokenizer=described,
        documents=1,
        tokens=9500,
        bad_rows=0,
        files=files,
    ).write()
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Made once: nothing in it may be changed (results go elsewhere)."""
    root = tmp_path_factory.mktemp("tiny")
    corpus = make_corpus(root / "corpus")
    model = build_gpt2_model(vocab_size=257, n_positions=32, n_embd=32, n_layer=1, n_head=2, dropout=0.3)
    model.materialize("cpu", seed=1)
    config = (
        f"dataset: {{file_pattern: {corpus}/dataset.bin, seq_len: {SEQ_LEN}}}\n"
        f"validation_dataset: {{file_pattern: {corpus}/val.bin, seq_len: {SEQ_LEN}}}\n"
    )
    Checkpointer(root / "run").save(
        7,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        state={"train": {"step": 7}},
        loader_state={},
        config_yaml=config,
        facts={"model": model.model_config(), "tokenizer": ByteTokenizer().describe()},
        tokenizer_folder=corpus / "tokenizer",
        metrics={},
        is_best=True,
    )
    return TinyRun(corpus, root / "run", model)
