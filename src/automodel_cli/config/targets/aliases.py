"""Aliases: names of older files and other tools, and what they mean here.

NeMo AutoModel moved its modules between versions, and one edition of its guide spells the package with capitals, so an
old name is known by its last component(s): ``nemo_automodel.<anything>.NanogptDataset`` and
``nemo_AutoModel.<anything>.NanogptDataset`` are one. torch's and torchdata's loaders mean our loader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from automodel_cli.config.problems import nearest

_OLD_PACKAGE = re.compile(r"nemo_automodel(?=\.)", re.IGNORECASE)


@dataclass(frozen=True)
class Alias:
    """What an old name means: our name, arguments that are called otherwise, without effect, or refused (and why)."""

    name: str
    note: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    """Arguments that ask for something this version does not have, and what to do instead."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Our arguments that have other defaults there."""


_HF_DROPPED = {
    "sdpa_method": "attention follows attn_implementation",
    "force_hf": "models of transformers are always transformers' own",
    "backend": "models of transformers are always transformers' own",
    "freeze_config": "all parameters are trained",
    "output_hidden_states": "the loss takes hidden states where it needs them",
}
_LOADER = Alias(
    "automodel_cli.data.loader.TorchLoader",
    dropped={
        "dataloader_type": "the order of samples is the dataset's",
        "group_by_length": "the order of samples is the dataset's",
        "packing": "token files are read in full windows, so there is nothing to pack",
        "emits_thd": "batches are rows of equal length",
        "shuffle_buffer_size": "the order of samples is the dataset's",
    },
)
_MEGATRON = Alias("automodel_cli.data.megatron_dataset.MegatronPretraining")
_ADAMW = "torch.optim.AdamW"
NOT_HERE: dict[str, str] = {
    **dict.fromkeys(
        ("dion", "dion2", "dion.Dion", "dion.Dion2"),
        "Dion's optimizers are not part of this version; muon_adamw and torch.optim.AdamW are",
    ),
}
"""Optimizers that NeMo AutoModel 0.7.0 knows by these names, and what to do instead."""
_CHUNKED = "automodel_cli.train.losses.ChunkedCrossEntropy"

BY_TAIL: dict[str, Alias] = {
    "build_gpt2_model": Alias("automodel_cli.models.gpt2.build_gpt2_model"),
    "NeMoAutoModelForCausalLM.from_config": Alias("automodel_cli.models.hf.from_config", dropped=_HF_DROPPED),
    "NeMoAutoModelForCausalLM.from_pretrained": Alias("automodel_cli.models.hf.from_pretrained", dropped=_HF_DROPPED),
    "NeMoAutoTokenizer.from_pretrained": Alias("transformers.AutoTokenizer.from_pretrained"),
    "NanogptDataset": Alias("automodel_cli.data.nanogpt_dataset.NanogptDataset"),
    "NanogptDatasetConfig": Alias("automodel_cli.data.nanogpt_dataset.NanogptDataset"),
    "MegatronPretraining": _MEGATRON,
    "MegatronPretrainingConfig": _MEGATRON,
    "MaskedCrossEntropy": Alias("automodel_cli.train.losses.MaskedCrossEntropy"),
    "ChunkedCrossEntropy": Alias(_CHUNKED, renamed={"chunk_len": "chunk_tokens"}),
    "FusedLinearCrossEntropy": Alias(
        _CHUNKED,
        note="FusedLinearCrossEntropy runs as ChunkedCrossEntropy, which saves the same memory",
        dropped={"logit_softcapping": "logits are not capped", "filter_eps": "no gradient is left out"},
    ),
    "TEParallelCrossEntropy": Alias(
        "automodel_cli.train.losses.MaskedCrossEntropy",
        note="TEParallelCrossEntropy runs as MaskedCrossEntropy",
        dropped={"tp_group": "the mesh decides"},
    ),
    "default_collater": Alias("automodel_cli.data.collate.default_collate"),
    "StatefulDataLoader": _LOADER,
    "ParallelAwareDataloader": _LOADER,
}
"""Names of NeMo AutoModel, by their last component(s)."""

_FUSED_ADAM = Alias(
    "torch.optim.AdamW",
    note="Transformer Engine's FusedAdam runs as torch's AdamW, whose kernel is fused too",
    dropped={
        "adam_w_mode": "weight decay acts on the weights, not through the gradient",
        "bias_correction": "moments are always corrected",
        "set_grad_none": "gradients are freed after each update",
        "use_decoupled_grad": "gradients are those of the weights",
        **dict.fromkeys(
            (
                "master_weights", "master_weight_dtype", "exp_avg_dtype", "exp_avg_sq_dtype",
                "store_param_remainders",
            ),
            "weights and moments are stored in fp32",
        ),
    },
)  # fmt: skip

_MUON = Alias(
    "automodel_cli.train.muon.rules.muon_adamw",
    renamed={"mu": "momentum", "betas": "scalar_betas", "muon_beta2": "normuon_beta2"},
    dropped={
        "flatten": "matrices only are made orthogonal",
        "use_triton": "torch's own matrix products are used",
    },
    defaults={
        "lr": 5e-4,
        "nesterov": False,
        "adjust_lr": "spectral_norm",
        "scalar_lr": None,
        "epsilon": 1e-8,
    },
)
_NORMUON = replace(_MUON, defaults={**_MUON.defaults, "normuon_beta2": 0.95})

_EXACT: dict[str, Alias] = {
    "muon_adamw": Alias(_MUON.name),
    **dict.fromkeys(("muon", "dion.Muon"), _MUON),
    **dict.fromkeys(("normuon", "dion.NorMuon"), _NORMUON),
    "adamw": Alias(_ADAMW),
    "adam": Alias(_ADAMW, note="adam runs as AdamW: weight decay acts on the weights, not through the gradient"),
    "fused_adam": Alias(_ADAMW, note="fused_adam runs as torch's AdamW, whose kernel is fused too"),
    "flash_adamw": Alias(_ADAMW, note="flash_adamw runs as torch's AdamW; weights are stored in fp32 already"),
    "transformer_engine.pytorch.optimizers.fused_adam.FusedAdam": _FUSED_ADAM,
    "transformer_engine.pytorch.optimizers.FusedAdam": _FUSED_ADAM,
    "NanogptDataset": Alias("automodel_cli.data.nanogpt_dataset.NanogptDataset"),
    "MegatronPretraining": _MEGATRON,
    "ChatDataset": Alias("automodel_cli.data.chat_dataset.ChatDataset"),
    "Mixture": Alias("automodel_cli.data.mixture.dataset.Mixture"),
    "automodel_cli.data.loader.default_collate": Alias("automodel_cli.data.collate.default_collate"),
    "torch.utils.data.DataLoader": _LOADER,
    "torch.utils.data.dataloader.DataLoader": _LOADER,
    "torchdata.stateful_dataloader.StatefulDataLoader": _LOADER,
    "torchdata.stateful_dataloader.stateful_dataloader.StatefulDataLoader": _LOADER,
}

SECTION_CLASSES = {
    "FSDP2Manager": "distributed", "DDPManager": "distributed", "MegatronFSDPManager": "distributed",
    "StatefulRNG": "rng", "StepScheduler": "step_scheduler", "CheckpointingConfig": "checkpoint",
    "OptimizerParamScheduler": "lr_scheduler",
}  # fmt: skip
"""Old classes that are sections here, and which."""


def find_alias(name: str) -> Alias | None:
    """What an old name means, None where it is no name we know."""
    if name in _EXACT:
        return _EXACT[name]
    if not _OLD_PACKAGE.match(name):
        return None
    parts = name.split(".")
    return BY_TAIL.get(".".join(parts[-2:])) or BY_TAIL.get(parts[-1])


def present_name(name: str) -> str:
    """The name that is called today."""
    alias = find_alias(name)
    return name if alias is None else alias.name


def is_old_name(name: str) -> bool:
    """True for names of NeMo AutoModel's package, known or not."""
    return _OLD_PACKAGE.match(name) is not None


def explain_unknown(name: str) -> str:
    """What to say of a name of NeMo AutoModel's package that has no meaning here."""
    tail = name.rpartition(".")[2]
    if tail in SECTION_CLASSES:
        return f"{tail} belongs in the section {SECTION_CLASSES[tail]}"
    match = nearest(tail, BY_TAIL)
    return f"{name} has no counterpart here" + (f", did you mean {match}?" if match else "")
