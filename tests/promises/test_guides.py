"""Configurations with the keys and targets that NeMo AutoModel's users have run here as they are.

Only sizes and paths are overridden, on the command line. The files hold every section of the guides' examples.
"""

import json
import os
import sys

import pytest
from tests import nursery

NANOGPT = """
model:
  _target_: {package}.components.models.gpt2.build_gpt2_model
  vocab_size: 50258
  n_positions: 2048
  n_embd: 768
  n_layer: 12
  n_head: 12
  bos_token_id: 50256
  eos_token_id: 50256

dataset:
  _target_: {package}.components.datasets.llm.nanogpt_dataset.NanogptDataset
  file_pattern: "tools/fineweb_max_tokens_500M/dataset.bin"
  seq_len: 1024
  shuffle_files: true

dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  shuffle: false
  collate_fn: {package}.components.datasets.utils.default_collater

distributed:
  _target_: {package}.components.distributed.fsdp2.FSDP2Manager
  dp_size: none
  tp_size: 1
  cp_size: 1
  sequence_parallel: false
"""
REST = """
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

loss_fn:
  _target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy

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
HUGGING_FACE = """
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_config
  config:
    _target_: transformers.AutoConfig.from_pretrained
    pretrained_model_name_or_path: openai-community/gpt2
    n_layer: 12
    n_positions: 2048
    vocab_size: 50258

dataset:
  _target_: nemo_automodel.components.datasets.llm.nanogpt_dataset.NanogptDataset
  file_pattern: "tools/fineweb_max_tokens_500M/dataset.bin"
  seq_len: 1024

distributed:
  _target_: nemo_automodel.components.distributed.ddp.DDPManager
"""
SMALL = {"n_positions": "32", "n_embd": "32", "n_layer": "1", "n_head": "2"}


def train(folder, text, *overrides):
    config = folder / "guide.yaml"
    config.write_text(text)
    command = [sys.executable, "-m", "automodel_cli", "pretrain", "llm", "-c", str(config), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return nursery.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


def common(tokens):
    return (
        f"--dataset.file_pattern={tokens / 'train.bin'}",
        "--dataset.seq_len=32",
        "--step_scheduler.global_batch_size=8",
        "--step_scheduler.local_batch_size=4",
        "--step_scheduler.max_steps=3",
    )


@pytest.mark.parametrize("package", ["nemo_automodel", "nemo_AutoModel"])
def test_the_nanogpt_guide(tmp_path, tiny_tokens, package):
    small = [f"--model.{key}={value}" for key, value in SMALL.items()]
    done = train(tmp_path, NANOGPT.format(package=package) + REST, *small, *common(tiny_tokens))
    assert done.returncode == 0, done.stderr
    assert "step 3/" in done.stdout
    assert "nccl" in done.stdout + done.stderr
    assert (tmp_path / "checkpoints" / "step_00000003" / "model" / ".metadata").exists()


def test_a_hugging_face_model_by_its_config(tmp_path, tiny_tokens):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_embd": 32, "n_head": 2}')
    done = train(
        tmp_path,
        HUGGING_FACE + REST,
        *common(tiny_tokens),
        f"--model.config.pretrained_model_name_or_path={folder}",
        "--model.config.n_layer=1",
        "--model.config.n_positions=32",
        "--model.config.vocab_size=64",
    )
    assert done.returncode == 0, done.stderr
    assert "step 3/" in done.stdout
    assert "dropout" in done.stdout  # Hugging Face's default of 0.1 is said, once


def test_two_processes_as_the_guide_starts_them(tmp_path, tiny_tokens):
    """The same file as in one process, and the same losses."""
    small = [f"--model.{key}={value}" for key, value in SMALL.items()]
    text = NANOGPT.format(package="nemo_automodel") + REST
    losses = []
    for name, launch in (("one", []), ("two", ["--nproc-per-node", "2"])):
        (tmp_path / name).mkdir()
        fp32 = ["--precision=fp32", "--model.dropout=0.0"]
        done = train(tmp_path / name, text, *launch, *small, *fp32, *common(tiny_tokens))
        assert done.returncode == 0, done.stderr
        records = map(json.loads, (tmp_path / name / "checkpoints" / "metrics.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if record["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
