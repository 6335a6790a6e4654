"""The choices that make a run fast on this machine, made once, printed with their reasons, kept for a resume.

Contract 13 of docs/architecture.md: a resumed run takes the same path, so that its numbers do not change half-way.
What the configuration says outright wins over what was stored, and is reported as a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.machine.fp8 import choose_fp8
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.aliases import present_name
from automodel_cli.config.targets.target import Target
from automodel_cli.dtypes import autocast_dtype
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.layers import attention_kernels, fp8
from automodel_cli.train.loss_choice import pick_loss
from automodel_cli.train.optimizers import ADAMW, pick_kernel

_AS_STORED = "as stored with the run"


@dataclass(frozen=True)
class FastPath:
    """What was chosen. ``reasons`` explains each in a few words and is not compared on resume."""

    precision: str  # bf16, fp16 or fp32: matrix products
    residual: str  # the stream between blocks, in the same names
    compile: bool
    compile_mode: str  # torch.compile's
    compile_scope: str  # model or blocks
    head_loss: str  # plain or chunked
    attention: str  # a name of ``attention_kernels``, or "model": as the model was built
    optimizer: str  # AdamW's kernel: fused, foreach or loop; own: another optimizer
    threads: int
    processes: int
    fp8: Mapping[str, Any]  # recipe (off or tensorwise) and keywords of models.layers.fp8.convert
    reasons: Mapping[str, str]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The compute dtype of matrix products; None is fp32 throughout."""
        return autocast_dtype(self.precision)

    def stored(self) -> dict[str, Any]:
        """The part that a checkpoint keeps."""
        return {key: value for key, value in asdict(self).items() if key != "reasons"}

    def apply(self, model: CausalLM) -> None:
        """Bring to ``model`` what concerns its layers; before it is spread over ranks and compiled."""
        if self.attention != "model":
            attention_kernels.activate(self.attention)
            model.prefer_attention(self.attention)
        if self.residual == "bf16":
            model.keep_residual_in(torch.bfloat16)
        if self.fp8["recipe"] != "off":
            fp8.convert(model, filter_fqns=self.fp8["filter_fqns"], emulate=self.fp8["emulate"])


_KERNEL_KEYS = frozenset({"fused", "foreach", "differentiable"})


@dataclass
class _Choices:
    """One value and one reason a choice; what the run has stored comes before what would be chosen now."""

    stored: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, chosen: tuple[Any, str], *, configured: bool = False) -> Any:
        value, reason = chosen
        if name in self.stored and not configured:
            value, reason = self.stored[name], _AS_STORED
        self.values[name], self.reasons[name] = value, reason
        return value


def choose_fast_path(
    cfg: PretrainConfig,
    *,
    device: torch.device,
    training_length: TrainingLength,
    model: CausalLM,
    rows: int,
    seq_len: int,
    stored: Mapping[str, Any] | None,
    processes: int = 1,
) -> FastPath:
    """Every choice: from the configuration, else as stored, else by what is here.

    Args:
        rows, seq_len: of a micro-batch; attention is timed on such.
        stored: the choices of the run that goes on; ones that an older checkpoint lacks are made anew.
        processes: stored threads are those of a process beside so many others and hold for as many only.
    """
    choices = _Choices(stored or {})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = choices.take(
        "precision",
        this_machine.choose_precision(cfg.compute_precision, device),
        configured=cfg.compute_precision != "auto",
    )
    choices.take(
        "residual",
        choose_residual(cfg, model, precision, device),
        configured=cfg.residual_precision != "auto" or not _residual_is_open(model, precision),
    )
    choices.take(
        "compile",
        this_machine.choose_compile(
            cfg.compile.enabled,
            device=device,
            total_tokens=training_length.total_tokens,
            total_steps=training_length.total_steps,
            parameters=parameters,
        ),
        configured=cfg.compile.enabled != "auto",
    )
    choices.take(
        "compile_mode",
        this_machine.choose_compile_mode(cfg.compile.mode, parameters=parameters, device=device),
        configured=cfg.compile.mode is not None,
    )
    choices.take(
        "compile_scope",
        choose_compile_scope(cfg, model, processes),
        configured=cfg.compile.scope != "auto",
    )
    if (named := named_loss(cfg)) is not None:
        choices.take("head_loss", named, configured=True)
    elif (kept_loss := choices.stored.get("head_loss")) is not None:
        choices.take("head_loss", (kept_loss, ""))
    else:
        choices.take("head_loss", choose_loss(model, precision, device, tokens=rows * seq_len))
    section = cfg.optimizer or Target(ADAMW[0])
    choices.take(
        "optimizer",
        pick_kernel(device.type, present_name(section.name), section.arguments),
        configured=present_name(section.name) not in ADAMW or not _KERNEL_KEYS.isdisjoint(section.arguments),
    )
    choices.take(
        "fp8",
        choose_fp8(
            cfg,
            stored=choices.stored.get("fp8"),
            model=model,
            device=device,
            precision=precision,
            tokens=rows * seq_len,
        ),
        configured=True,  # or stored: it refuses either where it cannot be
    )
    dtype = autocast_dtype(precision) or torch.float32
    kept, is_open = choices.stored.get("attention"), model.attention_shape() is not None
    if kept == "model" or (kept is not None and is_open and attention_kernels.is_here(kept, device)):
        choices.take("attention", (kept, ""))
    else:  # none stored, the model section decides now, or the run went on elsewhere
        choices.take("attention", _choose_attention(model, device, rows, seq_len, dtype), configured=True)
    same = choices.stored.get("processes", processes) == processes
    threads = (
        int(choices.stored["threads"]) if same and "threads" in choices.stored else torch.get_num_threads()
    )
    return FastPath(**choices.values, threads=threads, processes=processes, reasons=choices.reasons)


def named_loss(cfg: PretrainConfig) -> tuple[str, str] | None:
    """(plain | chunked, why) where ``loss_fn`` names what cannot be anything else; MaskedCrossEntropy may be both."""
    name = cfg.loss_fn.name if cfg.loss_fn is not None else ""
    if name.startswith("torch.nn."):
        return "plain", "as configured"
    return ("chunked", "as configured") if name.endswith(".ChunkedCrossEntropy") else None


def choose_loss(model: CausalLM, precision: str, device: torch.device, *, tokens: int) -> tuple[str, str]:
    """(plain | chunked, why) for micro-batches of ``tokens``; timed on a CPU, at the size of the model's own head."""
    size = model.padded_vocab_size
    heads = (one for one in model.parameters() if one.dim() == 2 and one.shape[0] == size)
    width = next((one.shape[1] for one in heads), 1)
    return pick_loss(
        vocab_size=size, tokens=tokens, width=width, dtype=autocast_dtype(precision), device=device
    )


def choose_compile_scope(cfg: PretrainConfig, model: CausalLM, processes: int) -> tuple[str, str]:
    """(model | blocks, why): what is compiled as one."""
    return this_machine.choose_compile_scope(
        cfg.compile.scope, blocks=len(model.blocks()), processes=processes
    )


def _residual_is_open(model: CausalLM, precision: str) -> bool:
    """Whether there is a choice: a stream in bf16 makes no sense between products in another type."""
    return model.takes_residual_dtype and precision == "bf16"


def choose_residual(
    cfg: PretrainConfig, model: CausalLM, precision: str, device: torch.device
) -> tuple[str, str]:
    """(bf16 | fp32, why): the stream between blocks, where the model lets it be chosen."""
    if not model.takes_residual_dtype:
        return "fp32", f"{type(model).__name__} decides by itself"
    return this_machine.choose_residual(cfg.residual_precision, precision=precision, device=device)


def _choose_attention(
    model: CausalLM, device: torch.device, rows: int, seq_len: int, dtype: torch.dtype
) -> tuple[str, str]:
    """(kernel, why); timed on a CUDA device, on a CPU the model's own rule by shape and dtype holds."""
    shape = model.attention_shape()
    if shape is None:
        return "model", "as the model section says"
    if device.type != "cuda" or dtype == torch.float32:
        return "model", "by shape and dtype" if device.type == "cpu" else "fp32 has one fused kernel"
    probed = attention_kernels.probe(
        device, rows=rows, heads=shape[0], tokens=seq_len, head_width=shape[1], dtype=dtype
    )
    return (
        ("model", "no fused kernel takes these shapes") if probed is None else (probed.kernel, probed.reason)
    )
