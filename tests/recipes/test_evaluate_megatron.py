"""Scoring on Megatron files: a named prefix is read whole and in order, and the run's own sets as the run had them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.token_files import write_megatron_file

from automodel_cli.batch import Batch
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.results import EvaluateConfig
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer
from automodel_cli.errors import DataError
from automodel_cli.recipes.evaluation import likelihood as evaluate
from automodel_cli.recipes.preprocess import megatron as preprocess_megatron

EOD = 256
TEXTS = [f"document {number} " + "of some words " * (number % 7) for number in range(30)]


def preprocess(folder: Path, tokenizer: str = "byte", texts: list[str] = TEXTS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = PreprocessMegatronConfig(
        input=[str(folder / "rows.jsonl")],
        output_path=str(folder),
        output_prefix="x",
        tokenizer=tokenizer,
        append_eod=tokenizer == "byte",
        workers=0,
    )
    preprocess_megatron.run(cfg, progress=lambda _: None, say=lambda _: None)
    return folder / "x_0_text_document"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preprocess(tmp_path_factory.mktemp("data"))


def score(checkpoint: Path, tmp_path: Path, *data: str, **settings):
    output = str(tmp_path / "results.json")
    given = {"device": "cpu", "precision": "fp32", "output": output, **settings}
    return evaluate.run(EvaluateConfig(checkpoint=str(checkpoint), data=data, **given)).results


@torch.no_grad()
def plain_loss(model: torch.nn.Module, tokens: np.ndarray, seq_len: int) -> tuple[float, int]:
    """By torch's own cross-entropy, one window at a time."""
    model.eval()
    windows = (len(tokens) - 1) // seq_len
    nll = 0.0
    for start in range(0, windows * seq_len, seq_len):
        ids = torch.from_numpy(tokens[start : start + seq_len + 1].astype(np.int64))
        logits = model(Batch(ids[None, :-1]))[0].double()
        nll += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
    return nll / (windows * seq_len), windows * seq_len


def test_a_prefix_is_every_window_of_its_file(tiny_run, prefix, tmp_path):
    tokens = np.fromfile(f"{prefix}.bin", dtype="<u2")
    loss, count = plain_loss(tiny_run.model, tokens, 16)
    found = score(tiny_run.run, tmp_path, str(prefix))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["tokens"] == count
    labels = tokens[1 : count + 1]
    assert found["bytes"] == int((labels != EOD).sum())  # one byte a token, none for the end of a document
    assert found["bits_per_byte"] == pytest.approx(loss * count / math.log(2) / found["bytes"], rel=1e-5)
    (scored,) = found["sets"]
    assert (scored["files"], scored["split"]) == ([f"{prefix.name}.bin"], None)


@pytest.mark.parametrize(
    "name", ["x_0_text_document.bin", "x_0_text_document.idx", "x_*_document", "x_*", "x.manifest.json", ""]
)
def test_other_names_for_the_same(tiny_run, prefix, tmp_path, name):
    found = score(tiny_run.run, tmp_path, str(prefix.parent / name), limit_batches=2)
    assert found["loss"] == pytest.approx(score(tiny_run.run, tmp_path, str(prefix), limit_batches=2)["loss"], abs=0)


def test_bigram_of_megatron_files(tiny_run, prefix, tmp_path):
    found = score(tiny_run.run, tmp_path, str(prefix), bigram=str(prefix))
    assert found["bigram"]["tokens"] == found["tokens"]
    assert found["bigram"]["loss"] < 3


def test_files_without_a_manifest_have_bits_per_byte_by_the_checkpoints_tokenizer(tiny_run, tmp_path):
    tokens = ByteTokenizer().encode("some text, and more of it. " * 8)
    write_megatron_file(tmp_path / "theirs", [[tokens]], dtype="int32")
    found = score(tiny_run.run, tmp_path, str(tmp_path / "theirs"))
    assert found["loss"] == pytest.approx(plain_loss(tiny_run.model, np.array(tokens), 16)[0], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))


def test_another_tokenizer_is_refused(tiny_run, tmp_path):
    CharTokenizer("".join(TEXTS)).save(tmp_path / "chars")
    prefix = preprocess(tmp_path / "data", str(tmp_path / "chars"))
    with pytest.raises(DataError, match="was tokenized with char"):
        score(tiny_run.run, tmp_path, str(prefix))


def test_too_many_ids(tiny_run, tmp_path):
    write_megatron_file(tmp_path / "big", [[[1, 2, 50_000] * 20]], dtype="int32")
    with pytest.raises(DataError, match="50,000"):
        score(tiny_run.run, tmp_path, str(tmp_path / "big"))


def test_damaged_files(tiny_run, prefix, tmp_path):
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{prefix}{suffix}", tmp_path)
    (tmp_path / f"{prefix.name}.bin").write_bytes(b"\0\0")
    with pytest.raises(DataError, match="2 bytes long"):
        score(tiny_run.run, tmp_path, str(tmp_path / prefix.name))


def test_what_the_run_validated_on_and_its_tokenizer(tiny_training, prefix, tmp_path):
    """The split, the samples and the score of the last validation; the tokenizer travelled with the checkpoint."""
    data = {
        "_target_": "automodel_cli.data.megatron_dataset.MegatronPretraining",
        "paths": str(prefix),
        "index_mapping_dir": str(tmp_path / "index"),
        "seq_length": 16,
        "split": "0.5, 0.5, 0",
    }
    recipe = tiny_training.recipe(
        "--model.vocab_size=257",
        "--precision=fp32",
        "--step_scheduler.max_steps=2",
        dataset=data,
        validation_dataset={**data, "num_val_samples": 11},
    )
    last = recipe.run_train_validation_loop().val_losses["default"]
    found = score(tiny_training.run, tmp_path)
    assert found["loss"] == pytest.approx(last, rel=1e-6)
    assert found["tokens"] == 11 * 16
    assert found["bits_per_byte"] is not None
    assert found["sets"][0]["split"] == "valid"
    travelled = load_tokenizer(tiny_training.run / "step_00000002" / "tokenizer")
    assert travelled.fingerprint() == ByteTokenizer().fingerprint()
