"""Pretraining on Megatron's files: sample counts from the run, the start-up table, resume and extension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.errors import CheckpointError, ConfigError

EOD = 63
TARGET = "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining"


def write_corpus(prefix: Path, *, documents: int, seed: int) -> None:
    """Documents of a learnable stream (each token is the last plus 0, 1 or 2), closed by EOD."""
    random = np.random.default_rng(seed)
    writer = MegatronWriter(prefix, dtype=np.dtype("<u2"))
    for length in random.integers(5, 120, documents):
        tokens = np.cumsum(random.integers(0, 3, length)) % EOD
        writer.write(np.append(tokens, EOD).astype("<u2"), np.array([length + 1]))
    writer.close()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    write_corpus(folder / "one_text_document", documents=150, seed=0)
    write_corpus(folder / "two_text_document", documents=100, seed=1)
    return folder


@pytest.fixture
def sections(corpora: Path, tmp_path: Path) -> dict[str, Any]:
    """The data sections of a configuration, without counts of samples."""
    common = {
        "_target_": TARGET,
        "paths": f"{corpora}/*_text_document*",
        "index_mapping_dir": str(tmp_path / "index"),
        "seq_length": 32,
        "split": "0.9, 0.1, 0.0",
    }
    validation = {**common, "splits_to_build": "validation", "num_val_samples": 20}
    return {"dataset": {**common, "splits_to_build": "train"}, "validation_dataset": validation}


pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_learns_and_validates_and_says_what_it_reads(tiny_training, sections):
    recipe = tiny_training.recipe(**sections)
    result = recipe.run_train_validation_loop()
    losses = tiny_training.losses()
    assert losses[12] < losses[1] - 0.3
    assert set(result.val_losses) == {"default"}
    assert {record["tokens"] for record in tiny_training.records("val")} == {640}
    (table,) = recipe.tables
    assert table[0] == (
        "data",
        "prefix",
        "documents",
        "first",
        "last",
        "tokens",
        "weight",
        "samples",
        "epochs",
    )
    assert [row[:5] for row in table[1:]] == [
        ("training data", "one_text_document", "135", "0", "134"),
        ("training data", "two_text_document", "90", "0", "89"),
        ("training data", "all 2", "225", "", ""),
        ("validation: default", "one_text_document", "15", "135", "149"),
        ("validation: default", "two_text_document", "10", "90", "99"),
        ("validation: default", "all 2", "25", "", ""),
    ]
    assert sum(int(row[7]) for row in table[1:3]) == int(table[3][7]) == 12 * 8


def test_samples_follow_from_the_run_and_the_seed_is_megatrons(tiny_training, sections):
    recipe = tiny_training.recipe("--rng.seed", "7", **sections)
    assert len(recipe.dataset) == 12 * 8
    assert recipe.dataset.order.settings.seed == 1234
    (held_out, _) = recipe.val_sets["default"]
    assert (held_out.split, len(held_out)) == ("valid", 20)
    batch = next(iter(recipe.loader))[0]
    assert torch.equal(batch.input_ids[1], recipe.dataset[1]["tokens"])


def test_a_budget_becomes_updates_before_there_is_a_model(tiny_training, sections):
    recipe = tiny_training.recipe("--step_scheduler.tokens_per_param", "0.1", **sections)
    steps = recipe.training_length.total_steps
    assert steps == int(0.1 * recipe.model.config.counts().scaling) // (8 * 32)
    assert len(recipe.dataset) == steps * 8


def test_without_splits_to_build_each_section_is_its_own_split(tiny_training, sections):
    for section in sections.values():
        del section["splits_to_build"]
    recipe = tiny_training.recipe(**sections)
    assert recipe.dataset.split == "train"
    assert recipe.val_sets["default"][0].split == "valid"


def test_validation_samples_of_the_whole_run_by_default_with_a_note(tiny_training, sections):
    del sections["validation_dataset"]["num_val_samples"]
    recipe = tiny_training.recipe(**sections)
    (held_out, _) = recipe.val_sets["default"]
    assert len(held_out) == (12 // 6) * 1 * 8
    assert any("each validation reads up to 16 samples" in line for line in recipe.said)


@pytest.mark.parametrize("order", ["megatron", "stateless"])
def test_a_longer_run_goes_on_as_if_it_had_been_longer_from_the_start(tiny_training, sections, order):
    sections["dataset"]["order"] = order
    constant = {"lr_scheduler": None, **sections}
    tiny_training.recipe("--step_scheduler.max_steps", "8", **constant).run_train_validation_loop()
    tiny_training.recipe(**constant).run_train_validation_loop()
    losses = tiny_training.losses()
    assert list(losses) == list(range(1, 13))
    again = tiny_training.recipe("--checkpoint.checkpoint_dir", str(tiny_training.folder / "again"), **constant)
    again.run_train_validation_loop()
    assert losses == {record["step"]: record["loss"] for record in _records(tiny_training, "again")}


def _records(tiny_training, folder):
    tiny_training.folder = tiny_training.folder / folder
    (tiny_training.folder / "run").symlink_to(tiny_training.folder)
    return tiny_training.records()


def test_an_order_that_more_epochs_change_is_refused_with_the_difference(tiny_training, sections):
    sections["dataset"]["paths"] = sections["dataset"]["paths"].replace("*_text", "one_text")
    tiny_training.recipe("--step_scheduler.max_steps", "4", **sections).run_train_validation_loop()
    with pytest.raises(CheckpointError, match=r"epochs: \[1\] -> \[2\]"):
        tiny_training.recipe("--step_scheduler.max_steps", "40", **sections)


def test_weights_and_intra_document_attention(tiny_training, sections, corpora, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    _write_tokenizer(tokenizer)
    sections["dataset"] |= {
        "paths": ["30", f"{corpora}/one_text_document", "70", f"{corpora}/two_text_document"],
        "tokenizer": {
            "_target_": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": str(tokenizer),
        },
        "reset_position_ids": True,
        "reset_attention_mask": True,
        "eod_mask_loss": True,
    }
    recipe = tiny_training.recipe(**sections)
    recipe.run_train_validation_loop()
    losses = tiny_training.losses()
    assert losses[12] < losses[1] - 0.3
    labels = tiny_training.records()[0]["num_label_tokens"]
    assert labels < 8 * 32  # those after an EOD do not count
    batch = next(iter(recipe.loader))[0]
    assert batch.segment_ids is not None and batch.segment_ids.max() > 0
    assert recipe.tokenizer is not None
    assert load_tokenizer(recipe.tokenizer.folder).fingerprint() == load_tokenizer(tokenizer).fingerprint()


def _write_tokenizer(folder: Path) -> None:
    """A word tokenizer of 64 ids whose last is the end of a text."""
    import tokenizers

    words = {f"w{number}": number for number in range(EOD)} | {"<|endoftext|>": EOD}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|endoftext|>"])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))


def test_a_flag_that_needs_a_tokenizer_says_so(tiny_training, sections):
    sections["dataset"]["eod_mask_loss"] = True
    with pytest.raises(ConfigError, match="which token ends a document"):
        tiny_training.recipe(**sections)


def test_arguments_that_do_not_exist(tiny_training, sections):
    sections["dataset"]["sequence_length"] = 3
    with pytest.raises(ConfigError, match=r"no such argument, did you mean seq_length"):
        tiny_training.recipe(**sections)
