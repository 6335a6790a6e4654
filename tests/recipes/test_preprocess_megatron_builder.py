"""preprocess megatron against megatron-core's own builder and reader, where it is installed (extra ``conformance``)."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.recipes.preprocess import megatron as preprocess_megatron

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder


def tokenizer_folder(folder: Path, vocab_size: int) -> Tokenizer:
    vocab = {f"w{k}": k for k in range(vocab_size - 1)} | {"</s>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def random_value(rng: random.Random, vocab_size: int) -> str | list[str]:
    def sentence() -> str:
        return " ".join(f"w{rng.randrange(vocab_size - 1)}" for _ in range(rng.choice([0, 1, 5, 40])))

    return sentence() if rng.random() < 0.7 else [sentence() for _ in range(rng.randint(0, 4))]


@pytest.mark.parametrize(
    ("vocab_size", "append_eod", "workers"),
    [(300, True, 2), (300, False, 1), (65_499, True, 1), (65_500, False, 1)],
)
def test_byte_identical_and_readable(tmp_path: Path, vocab_size: int, append_eod: bool, workers: int) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", vocab_size)
    rng = random.Random(vocab_size)
    values = [random_value(rng, vocab_size) for _ in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    cfg = PreprocessMegatronConfig(
        input=str(tmp_path / "a.jsonl"),
        tokenizer=str(tmp_path / "tokenizer"),
        append_eod=append_eod,
        output_path=str(tmp_path / "out"),
        workers=workers,
        chunk_size=1,
    )
    preprocess_megatron.run(cfg, progress=lambda event: None, say=lambda line: None)

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    documents = []
    for value in values:
        found = [tokenizer.encode(text).ids for text in (value if isinstance(value, list) else [value])]
        sequences = [ids for ids in found if ids]
        if sequences and append_eod:
            sequences[-1].append(vocab_size - 1)
        flat = [token for ids in sequences for token in ids]
        builder.add_document(torch.tensor(flat, dtype=torch.int64), [len(ids) for ids in sequences])
        documents += sequences
    builder.finalize(str(tmp_path / "theirs.idx"))

    prefix = tmp_path / "out/processed_data_0_text_document"
    for suffix in (".bin", ".idx"):
        assert Path(f"{prefix}{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    dataset = IndexedDataset(str(prefix))
    assert len(dataset) == len(documents)
    assert all(np.array_equal(dataset[k], ids) for k, ids in enumerate(documents))
