"""The Megatron guide's configuration runs as it is; only sizes and places are overridden."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import nursery

from automodel_cli.corpus.formats.megatron_writer import MegatronWriter

GUIDE = """
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_config
  config:
    _target_: transformers.AutoConfig.from_pretrained
    pretrained_model_name_or_path: openai-community/gpt2

dataset:
  _target_: nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining
  paths: fineweb_edu/megatron_gpt2/processed_data_*_text_document*
  index_mapping_dir: fineweb_edu/megatron_gpt2/mapping_dir
  tokenizer:
    _target_: transformers.AutoTokenizer.from_pretrained
    pretrained_model_name_or_path: openai-community/gpt2
  seq_length: 1024
  split: "0.99, 0.01, 0.00"
  splits_to_build: "train"

validation_dataset:
  _target_: nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining
  paths: fineweb_edu/megatron_gpt2/processed_data_*_text_document*
  index_mapping_dir: fineweb_edu/megatron_gpt2/mapping_dir
  tokenizer:
    _target_: transformers.AutoTokenizer.from_pretrained
    pretrained_model_name_or_path: openai-community/gpt2
  seq_length: 1024
  split: "0.99, 0.01, 0.00"
  splits_to_build: "validation"
  num_val_samples: 1024

step_scheduler:
  global_batch_size: 512
  local_batch_size: 32
  ckpt_every_steps: 1000
  val_every_steps: 250
  num_epochs: 1
  max_steps: 18500

dist_env:
  backend: nccl
  timeout_minutes: 1

rng:
  _target_: nemo_automodel.components.training.rng.StatefulRNG
  seed: 1111
  ranked: true

checkpoint:
  enabled: true
  checkpoint_dir: checkpoints/
  model_save_format: torch_save
  save_consolidated: false

distributed:
  _target_: nemo_automodel.components.distributed.fsdp2.FSDP2Manager
  dp_size: none
  dp_replicate_size: 1
  tp_size: 1
  cp_size: 1
  sequence_parallel: false

loss_fn:
  _target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy

dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: torch.utils.data.default_collate

validation_dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: torch.utils.data.default_collate

optimizer:
  _target_: torch.optim.AdamW
  betas: [0.9, 0.95]
  lr: 0.0006
  weight_decay: 0.1

lr_scheduler:
  lr_decay_style: cosine
  lr_warmup_steps: 700
  min_lr: 0.0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The guide's folders, small: twelve shards of a stream over 60 words, and a stand-in for GPT-2's files."""
    data = tmp_path / "fineweb_edu" / "megatron_gpt2"
    data.mkdir(parents=True)
    for shard in range(12):
        random = np.random.default_rng(shard)
        writer = MegatronWriter(data / f"processed_data_{shard}_text_document", dtype=np.dtype("<u2"))
        for length in random.integers(40, 90, 100):
            tokens = np.cumsum(random.integers(0, 3, length)) % 60
            writer.write(np.append(tokens, 60).astype("<u2"), np.array([length + 1]))
        writer.close()
    _write_model_folder(tmp_path / "gpt2")
    (tmp_path / "guide.yaml").write_text(GUIDE)
    return tmp_path


def _write_model_folder(folder: Path) -> None:
    import tokenizers

    words = {f"w{number}": number for number in range(60)} | {"<|endoftext|>": 60}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        '{"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 32, "vocab_size": 64, '
        '"bos_token_id": 60, "eos_token_id": 60}'
    )


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    small = (
        "--model.config.pretrained_model_name_or_path=gpt2",
        *(
            f"--{section}.{key}={value}"
            for section in ("dataset", "validation_dataset")
            for key, value in (("seq_length", 32), ("tokenizer.pretrained_model_name_or_path", "gpt2"))
        ),
        "--validation_dataset.num_val_samples=10",
        "--step_scheduler.global_batch_size=8",
        "--step_scheduler.local_batch_size=4",
        "--step_scheduler.val_every_steps=2",
    )
    command = [
        sys.executable,
        "-m",
        "automodel_cli",
        "pretrain",
        "llm",
        "-c",
        "guide.yaml",
        *small,
        *overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return nursery.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


def test_the_guide_as_it_is_with_validation_and_a_resume(folder: Path) -> None:
    done = train(folder, "--step_scheduler.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "step 3/" in done.stdout
    assert "[val] step 2/" in done.stdout
    log = (folder / "checkpoints/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {row["tokens"] for row in map(json.loads, log) if row["kind"] == "val"} == {320}
    shown = re.findall(r"processed_data_\d+_text_document", done.stdout)
    order = [0, 10, 11, *range(1, 10)]  # as text, which is how NeMo reads them too
    assert shown == [f"processed_data_{number}_text_document" for number in order] * 2
    again = train(folder, "--step_scheduler.max_steps=5")
    assert again.returncode == 0, again.stderr
    assert "step 4/" in again.stdout
    assert "step 3/" not in again.stdout
    assert "built again" not in again.stdout


def test_dry_run_shows_the_blend_and_trains_nothing(folder: Path) -> None:
    done = train(folder, "--dry-run", "--dataset.order=stateless")
    assert done.returncode == 0, done.stderr
    assert "processed_data_0_text_document" in done.stdout
    assert "148,000 sequences of 32" in done.stdout
    assert not (folder / "checkpoints").exists()
