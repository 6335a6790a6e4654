"""Names of settings in nanoGPT and Megatron-LM, and what they are called here.

The guides' tables say the same with more words; a test compares them with these. A text is what to write instead: keys,
or ``nothing`` and why. Names that mean the same here (``compile``, ``device``, ``seed``) need no entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from automodel_cli.config.problems import did_you_mean, folded, nearest

_PER_UPDATE = "step_scheduler.global_batch_size: sequences per update, over all GPUs"
_DEPTH = "model.n_layer (GPT-2) or model.num_hidden_layers (Llama)"
_WIDTH = "model.n_embd (GPT-2) or model.hidden_size (Llama)"
_HEADS = "model.n_head (GPT-2) or model.num_attention_heads (Llama)"
_POSITIONS = "model.n_positions (GPT-2) or model.max_position_embeddings (Llama)"
_LLAMA = "model._target_: automodel_cli.models.llama.build_llama_model, which has it"
_ONE_DATASET = "dataset.file_pattern and validation_dataset.file_pattern"
_DTYPE = "precision: auto, bf16, fp16 or fp32; weights are fp32 in any case"
_RESUMES = "nothing: a run in checkpoint.checkpoint_dir resumes; --fresh starts over, init_from takes weights only"
_TIMED = "nothing: the fastest kernel that the hardware has is chosen; model.attn_implementation names one"
_ZERO = "distributed.strategy: fsdp2 shards weights, gradients and optimizer state; ddp copies them"

NANOGPT: Mapping[str, str] = {
    "out_dir": "checkpoint.checkpoint_dir",
    "dataset": _ONE_DATASET,
    "block_size": "dataset.seq_len and model.n_positions",
    "batch_size": "step_scheduler.local_batch_size",
    "gradient_accumulation_steps": _PER_UPDATE,
    **{name: f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "dropout", "bias", "vocab_size")},
    "learning_rate": "optimizer.lr",
    "max_iters": "step_scheduler.max_steps",
    "weight_decay": "optimizer.weight_decay",
    "beta1": "optimizer.betas: [beta1, beta2]",
    "beta2": "optimizer.betas: [beta1, beta2]",
    "grad_clip": "clip_grad_norm (null for 0.0)",
    "decay_lr": "lr_scheduler; without the section the learning rate is constant",
    "warmup_iters": "lr_scheduler.lr_warmup_steps",
    "lr_decay_iters": "lr_scheduler.lr_decay_steps",
    "min_lr": "lr_scheduler.min_lr",
    "eval_interval": "step_scheduler.val_every_steps and step_scheduler.ckpt_every_steps",
    "eval_iters": "step_scheduler.limit_val_batches",
    "eval_only": "automodel eval RUN",
    "always_save_checkpoint": "nothing: step_scheduler.ckpt_every_steps saves, and BEST names the best one saved",
    "log_interval": "step_scheduler.log_every_steps",
    "wandb_log": "wandb.project; without the section nothing is sent",
    "wandb_project": "wandb.project",
    "wandb_run_name": "wandb.name",
    "backend": "dist_env.backend",
    "dtype": _DTYPE,
}
"""The variables of nanoGPT's ``train.py``."""

MEGATRON: Mapping[str, str] = {
    "micro_batch_size": "step_scheduler.local_batch_size",
    "global_batch_size": "step_scheduler.global_batch_size",
    "train_iters": "step_scheduler.max_steps",
    "train_samples": "step_scheduler.max_steps: samples / global_batch_size",
    "eval_interval": "step_scheduler.val_every_steps",
    "eval_iters": "step_scheduler.limit_val_batches, or validation_dataset.num_val_samples",
    "log_interval": "step_scheduler.log_every_steps",
    "save_interval": "step_scheduler.ckpt_every_steps",
    "save": "checkpoint.checkpoint_dir",
    "load": _RESUMES,
    "finetune": "init_from: a folder of weights",
    "no_load_optim": "init_from: a folder of weights",
    "async_save": "checkpoint.is_async",
    "ckpt_format": "checkpoint.model_save_format",
    "lr": "optimizer.lr",
    "min_lr": "lr_scheduler.min_lr",
    "lr_decay_style": "lr_scheduler.lr_decay_style",
    "lr_decay_iters": "lr_scheduler.lr_decay_steps",
    "lr_decay_samples": "lr_scheduler.lr_decay_steps: samples / global_batch_size",
    "lr_warmup_iters": "lr_scheduler.lr_warmup_steps",
    "lr_warmup_samples": "lr_scheduler.lr_warmup_steps: samples / global_batch_size",
    "lr_warmup_fraction": "lr_scheduler.lr_warmup_steps: fraction x lr_decay_steps",
    "lr_warmup_init": "lr_scheduler.init_lr",
    "lr_wsd_decay_iters": "lr_scheduler.wsd_decay_steps",
    "optimizer": "optimizer.lr and its other arguments; without _target_ it is AdamW",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.betas: [beta1, beta2]",
    "adam_beta2": "optimizer.betas: [beta1, beta2]",
    "adam_eps": "optimizer.eps",
    "clip_grad": "clip_grad_norm",
    "bf16": "precision: bf16",
    "fp16": "precision: fp16",
    "fp8_format": "fp8: true",
    "num_layers": _DEPTH,
    "hidden_size": _WIDTH,
    "ffn_hidden_size": "model.intermediate_size (Llama; GPT-2 has 4 x n_embd)",
    "num_attention_heads": _HEADS,
    "group_query_attention": "model.num_key_value_heads (Llama)",
    "num_query_groups": "model.num_key_value_heads (Llama)",
    "max_position_embeddings": _POSITIONS,
    "seq_length": "dataset.seq_length",
    "hidden_dropout": "model.dropout (GPT-2)",
    "attention_dropout": "model.dropout (GPT-2)",
    "untie_embeddings_and_output_weights": "model.tie_word_embeddings: false (Llama; GPT-2's are tied)",
    "swiglu": _LLAMA,
    "normalization": _LLAMA,
    "use_rotary_position_embeddings": _LLAMA,
    "position_embedding_type": _LLAMA,
    "rotary_base": "model.rope_theta (Llama)",
    "norm_epsilon": "model.rms_norm_eps (Llama)",
    "init_method_std": "model.initializer_range (Llama)",
    "make_vocab_size_divisible_by": "nothing: weights are padded to a multiple of 128",
    "data_path": "dataset.paths",
    "train_data_path": "dataset.paths",
    "valid_data_path": "validation_dataset.paths",
    "split": "dataset.split and validation_dataset.split",
    "data_cache_path": "dataset.index_mapping_dir",
    "tokenizer_type": "tokenizer",
    "tokenizer_model": "tokenizer",
    "vocab_file": "tokenizer: the folder with both files",
    "merge_file": "tokenizer: the folder with both files",
    "reset_position_ids": "dataset.reset_position_ids",
    "reset_attention_mask": "dataset.reset_attention_mask",
    "eod_mask_loss": "dataset.eod_mask_loss",
    "num_workers": "nothing: token files are read ahead by a thread",
    "tensor_model_parallel_size": "distributed.tp_size",
    "context_parallel_size": "distributed.cp_size",
    "pipeline_model_parallel_size": "nothing: layers are not divided over ranks; distributed.tp_size divides each",
    "expert_model_parallel_size": "nothing: models here are dense",
    "sequence_parallel": "nothing: with distributed.tp_size above one it is always on",
    "use_distributed_optimizer": _ZERO,
    "use_torch_fsdp2": _ZERO,
    "use_custom_fsdp": _ZERO,
    "overlap_grad_reduce": "nothing: gradients are summed while the backward pass runs",
    "overlap_param_gather": "nothing: weights are gathered ahead of the block that needs them",
    "recompute_activations": "distributed.activation_checkpointing: selective",
    "recompute_granularity": "distributed.activation_checkpointing: full or selective",
    "use_flash_attn": _TIMED,
    "attention_backend": _TIMED,
    "transformer_impl": "nothing: kernels are chosen by what the hardware has",
    "use_mcore_models": "nothing: kernels are chosen by what the hardware has",
    "distributed_backend": "dist_env.backend",
    "distributed_timeout_minutes": "dist_env.timeout_minutes",
    "exit_duration_in_mins": "automodel slurm, whose jobs save before their time is over",
    "exit_signal_handler": "nothing: SIGTERM, SIGINT and SIGUSR1 save and leave",
    "tensorboard_dir": "tensorboard: true, which writes to the run folder",
    "wandb_project": "wandb.project",
    "wandb_exp_name": "wandb.name",
    "wandb_entity": "wandb.entity",
}
"""The flags of Megatron-LM's ``pretrain_gpt.py``, with underscores."""

NEMO: Mapping[str, str] = {"grad_acc_steps": _PER_UPDATE}
"""Keys of older NeMo AutoModel files."""


def counterpart(name: str) -> str:
    """``nanoGPT's name, here: optimizer.lr``; "" for a name that none of them has. Dashes are Megatron-LM's."""
    wanted = folded(name)
    tables = [("nanoGPT's", NANOGPT), ("Megatron-LM's", MEGATRON), ("NeMo's", NEMO)]
    if "-" in name:
        tables = [tables[1], tables[0], tables[2]]
    return next((f"{whose} name, here: {table[wanted]}" for whose, table in tables if wanted in table), "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say after "no such argument": the same name in another spelling, what others call so, or a near name."""
    known = list(known)
    match = nearest(name, known)
    other = counterpart(name)
    if (match and folded(match) == folded(name)) or other.endswith(f".{name}"):  # model.dropout is no news there
        other = ""
    return f"; {other}" if other else did_you_mean(name, known)
