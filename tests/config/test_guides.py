"""Configurations as users' guides have them run as they are written: NeMo AutoModel's names, keys and spellings."""

import re
from pathlib import Path

import pytest
import yaml

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import check_foreign

SHARED = Path(__file__).resolve().parents[2] / "../shared"

NANOGPT = """\
step_scheduler: {global_batch_size: 4, local_batch_size: 2, ckpt_every_steps: 1000, num_epochs: 1}
dist_env: {backend: nccl, timeout_minutes: 1}
rng: {_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1111, ranked: true}
model:
  _target_: nemo_automodel.components.models.gpt2.build_gpt2_model
  vocab_size: 50258
  n_positions: 2048
  n_embd: 768
  n_layer: 12
  n_head: 12
  bos_token_id: 50256
  eos_token_id: 50256
dataset:
  _target_: nemo_automodel.components.datasets.llm.nanogpt_dataset.NanogptDataset
  file_pattern: "tools/fineweb_max_tokens_500M/dataset.bin"
  seq_len: 1024
  shuffle_files: true
  align_to_bos: true
  bos_token: 50256
dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  shuffle: false
  collate_fn: nemo_automodel.components.datasets.utils.default_collater
loss_fn: {_target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy}
optimizer: {_target_: torch.optim.AdamW, betas: [0.9, 0.95], lr: 0.0002, weight_decay: 0.1}
distributed:
  _target_: nemo_automodel.components.distributed.fsdp2.FSDP2Manager
  dp_size: none
  tp_size: 1
  cp_size: 1
checkpoint: {enabled: false, checkpoint_dir: checkpoints/, model_save_format: torch_save, save_consolidated: false}
"""

MEGATRON = """\
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_config
  config: {_target_: transformers.AutoConfig.from_pretrained, pretrained_model_name_or_path: openai-community/gpt2}
dataset: &data
  _target_: nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining
  paths: processed_data_*_text_document*
  index_mapping_dir: mapping_dir
  tokenizer:
    _target_: transformers.AutoTokenizer.from_pretrained
    pretrained_model_name_or_path: openai-community/gpt2
  seq_length: 1024
  split: "0.99, 0.01, 0.00"
  splits_to_build: "train"
validation_dataset: {<<: *data, splits_to_build: "validation", num_val_samples: 1024}
step_scheduler:
  global_batch_size: 512
  local_batch_size: 32
  ckpt_every_steps: 1000
  val_every_steps: 250
  num_epochs: 1
  max_steps: 18500
dist_env: {backend: nccl, timeout_minutes: 1}
rng: {_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1111, ranked: true}
distributed:
  _target_: nemo_automodel.components.distributed.fsdp2.FSDP2Manager
  dp_size: none
  dp_replicate_size: 1
  tp_size: 1
  cp_size: 1
  sequence_parallel: false
dataloader:
  {_target_: torchdata.stateful_dataloader.StatefulDataLoader, collate_fn: torch.utils.data.default_collate}
validation_dataloader:
  {_target_: torchdata.stateful_dataloader.StatefulDataLoader, collate_fn: torch.utils.data.default_collate}
optimizer: {_target_: torch.optim.AdamW, betas: [0.9, 0.95], lr: 0.0006, weight_decay: 0.1}
lr_scheduler: {lr_decay_style: cosine, lr_warmup_steps: 700, min_lr: 0.0}
wandb: {project: p, entity: e, name: n, save_dir: d}
"""


def load(text, tmp_path, *overrides):
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    return load_config(PretrainConfig, path, overrides)


@pytest.mark.parametrize("package", ["nemo_automodel", "nemo_AutoModel"])
def test_the_nanogpt_guide(tmp_path, package):
    cfg = load(NANOGPT.replace("nemo_automodel", package), tmp_path)
    check_foreign(cfg)
    assert cfg.rng_seed == 1111
    assert cfg.distributed.strategy == "fsdp2"
    assert cfg.distributed.dp_size is None
    assert cfg.dist_backend == "nccl"
    assert cfg.checkpoint.save_consolidated is False
    assert load(to_yaml(cfg), tmp_path) == cfg


def test_the_megatron_guide(tmp_path):
    cfg = load(MEGATRON, tmp_path)
    check_foreign(cfg)
    assert cfg.dataset.arguments["split"] == "0.99, 0.01, 0.00"
    assert cfg.validation_datasets["default"].arguments["num_val_samples"] == 1024
    assert (cfg.step_scheduler.max_steps, cfg.step_scheduler.val_every_steps) == (18500, 250)
    assert cfg.wandb.save_dir == "d"
    assert cfg.lr_scheduler.min_lr == 0.0


def test_advice_of_the_guides_is_taken(tmp_path):
    """`dtype: bfloat16` under distributed, DDPManager as the alternative, is_meta_device, torch's dtype names."""
    cfg = load(
        NANOGPT,
        tmp_path,
        "--distributed.dtype=bfloat16",
        "--distributed._target_=nemo_automodel.components.distributed.ddp.DDPManager",
        "--model.is_meta_device=true",
        "--loss_fn._target_=nemo_automodel.components.loss.linear_ce.FusedLinearCrossEntropy",
    )
    assert (cfg.compute_precision, cfg.distributed.strategy) == ("bf16", "ddp")
    assert any("ChunkedCrossEntropy" in note for note in cfg.notes)


@pytest.mark.parametrize(
    "model",
    [
        "{_target_: transformers.AutoModelForCausalLM.from_config, config: {_target_: transformers.GPT2Config,"
        " n_layer: 1, n_head: 2, n_embd: 8, n_positions: 16, vocab_size: 32}}",
        "{_target_: transformers.GPT2LMHeadModel.from_config, config: {_target_: transformers.GPT2Config, n_layer: 1}}",
        "{_target_: nemo_automodel.NeMoAutoModelForCausalLM.from_config, config: {_target_: transformers.LlamaConfig}}",
    ],
)
def test_the_models_of_the_guides(tmp_path, model):
    text = re.sub(r"(?s)model:\n.*?dataset:", f"model: {model}\ndataset:", NANOGPT)
    check_foreign(load(text, tmp_path))


def yaml_blocks(text: str):
    """Fenced YAML of a guide that is a mapping with a _target_ somewhere."""
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        if "_target_" in block and isinstance(yaml.safe_load(block), dict):
            yield block


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with the guides is not here")
def test_every_configuration_in_the_guides_themselves(tmp_path):
    known = {"dataset": "{_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x, seq_len: 8}"}
    blocks = [block for path in sorted((SHARED / "seeds").glob("*.txt")) for block in yaml_blocks(path.read_text())]
    assert len(blocks) >= 2
    for block in blocks:
        missing = "".join(f"{key}: {value}\n" for key, value in known.items() if f"\n{key}:" not in f"\n{block}")
        load(block + "\n" + missing, tmp_path)
