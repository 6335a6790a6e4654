"""The choices that make a run fast on this machine, made once, printed with their reasons, kept for a resume.

Contract 13 of docs/architecture.md: a resumed run takes the same path, so that its numbers do not change half-way.
What the configuration says outright wins over what was stored, and is reported as a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from automodel_cli.train.loss_choice import OWN_LOSSES, pick_loss
from automodel_cli.train.optimizers import ADAMW, MUON_ADAMW, pick_kernel

_AS_STORED = "as stored with the run"
_KERNEL_KEYS = frozenset({"fused", "foreach", "differentiable"})


@dataclass(frozen=True)
class StepPath:
    """The choices that the memory of a step depends on."""

    precision: str  # bf16, fp16 or fp32: matrix products
    residual: str  # the stream between blocks, in the same names
    compile: bool
    compile_scope: str  # model or blocks
    head_loss: str  # plain, chunked, or chunked_capped of a model with a softcap
    orthogonalization: str  # Muon's: bfloat16 or float32; none: another optimizer


@dataclass(frozen=True)
class FastPath(StepPath):
    """What was chosen. ``reasons`` explains each in a few words and is not compared on resume."""

    compile_mode: str  # torch.compile's
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
    choices = Choices(cfg, model, device, rows=rows, seq_len=seq_len, stored=stored or {}, processes=processes)
    step = {**choices.of_step(), "compile": choices.compile(training_length)}
    same = choices.stored.get("processes", processes) == processes
    return FastPath(
        **step,
        compile_mode=choices.compile_mode(),
        attention=choices.attention(),
        optimizer=choices.optimizer(),
        threads=int(choices.stored.get("threads", 0) if same else 0) or torch.get_num_threads(),
        processes=processes,
        fp8=choices.fp8(),
        reasons=choices.reasons,
    )


class Choices:
    """The choices one by one, a value and a reason each; what the run has stored comes before what is chosen now."""

    def __init__(
        self,
        cfg: PretrainConfig,
        model: CausalLM,
        device: torch.device,
        *,
        rows: int,
        seq_len: int,
        stored: Mapping[str, Any],
        processes: int,
    ) -> None:
        self.cfg, self.model, self.device = cfg, model, device
        self.rows, self.seq_len, self.processes = rows, seq_len, processes
        self.stored = stored
        self.reasons: dict[str, str] = {}

    def take(self, name: str, chosen: tuple[Any, str], *, configured: bool = False) -> Any:
        """The value that was ``chosen``, with its reason, unless the run has one stored and nothing is configured."""
        if name in self.stored and not configured:
            chosen = self.stored[name], _AS_STORED
        value, self.reasons[name] = chosen
        return value

    def of_step(self) -> dict[str, Any]:
        """``StepPath`` without whether it is compiled."""
        precision = self.precision()
        return {
            "precision": precision,
            "residual": self.residual(precision),
            "compile_scope": self.compile_scope(),
            "head_loss": self.head_loss(precision),
            "orthogonalization": self.orthogonalization(),
        }

    def precision(self) -> str:
        """bf16, fp16 or fp32."""
        wanted = self.cfg.compute_precision
        chosen = this_machine.choose_precision(wanted, self.device)
        precision: str = self.take("precision", chosen, configured=wanted != "auto")
        return precision

    def residual(self, precision: str) -> str:
        """bf16 or fp32: the stream between blocks; in bf16 it makes no sense between products in another type."""
        if not self.model.takes_residual_dtype:
            fixed = "fp32", f"{type(self.model).__name__} decides by itself"
            return str(self.take("residual", fixed, configured=True))
        wanted = self.cfg.residual_precision
        chosen = this_machine.choose_residual(wanted, precision=precision, device=self.device)
        return str(self.take("residual", chosen, configured=wanted != "auto" or precision != "bf16"))

    def compile(self, length: TrainingLength) -> bool:
        """Whether the model is compiled."""
        wanted = self.cfg.compile.enabled
        chosen = this_machine.choose_compile(
            wanted,
            device=self.device,
            total_tokens=length.total_tokens,
            total_steps=length.total_steps,
            seconds=length.seconds,
            parameters=self._parameters(),
            backend=self.cfg.compile.backend,
        )
        return bool(self.take("compile", chosen, configured=wanted != "auto"))

    def compile_mode(self) -> str:
        """torch.compile's."""
        wanted = self.cfg.compile.mode
        chosen = this_machine.choose_compile_mode(wanted, parameters=self._parameters(), device=self.device)
        return str(self.take("compile_mode", chosen, configured=wanted is not None))

    def compile_scope(self) -> str:
        """model or blocks: what is compiled as one."""
        wanted, blocks = self.cfg.compile.scope, len(self.model.blocks())
        chosen = this_machine.choose_compile_scope(wanted, blocks=blocks, processes=self.processes)
        return str(self.take("compile_scope", chosen, configured=wanted != "auto"))

    def head_loss(self, precision: str) -> str:
        """plain or in chunks: as ``loss_fn`` names it where that says all; timed on a CPU, at the model's own head."""
        name, kept = self.cfg.loss_fn.name if self.cfg.loss_fn is not None else "", self.stored.get("head_loss")
        is_ours = not name or present_name(name) in OWN_LOSSES
        # A run that is "chunked" in spite of a softcap is from before losses could cap logits: it keeps whole ones.
        chunks = "chunked_capped" if self.model.softcap and is_ours and kept != "chunked" else "chunked"
        if name.startswith("torch.nn.") or name.endswith(".ChunkedCrossEntropy"):
            kind = "plain" if name.startswith("torch.nn.") else chunks
            return str(self.take("head_loss", (kind, "as configured"), configured=True))
        if kept is not None:
            return str(self.take("head_loss", ("", "")))
        size = self.model.padded_vocab_size
        heads = (one for one in self.model.parameters() if one.dim() == 2 and one.shape[0] == size)
        chosen = pick_loss(
            vocab_size=size,
            tokens=self.rows * self.seq_len,
            width=next((one.shape[1] for one in heads), 1),
            dtype=autocast_dtype(precision),
            device=self.device,
        )
        chosen = chunks if chosen[0] == "chunked" else chosen[0], chosen[1]
        return str(self.take("head_loss", chosen, configured=True))

    def optimizer(self) -> str:
        """AdamW's kernel, or own."""
        name, arguments = self._optimizer()
        chosen = pick_kernel(self.device.type, name, arguments)
        is_named = name not in ADAMW or not _KERNEL_KEYS.isdisjoint(arguments)
        return str(self.take("optimizer", chosen, configured=is_named))

    def orthogonalization(self) -> str:
        """bfloat16 or float32, as Muon's matrices are orthogonalized; none without Muon."""
        name, arguments = self._optimizer()
        if name != MUON_ADAMW:
            return str(self.take("orthogonalization", ("none", "no Muon"), configured=True))
        wanted = str(arguments.get("orthogonalization_dtype", "auto"))
        chosen = this_machine.choose_orthogonalization(wanted, self.device)
        if self.stored and "orthogonalization" not in self.stored and wanted == "auto":
            chosen = "bfloat16", "as in all runs of the version that began this one"
        return str(self.take("orthogonalization", chosen, configured=wanted != "auto"))

    def _optimizer(self) -> tuple[str, Mapping[str, Any]]:
        section = self.cfg.optimizer or Target(ADAMW[0])
        return present_name(section.name), section.arguments

    def fp8(self) -> Mapping[str, Any]:
        """What of fp8; as stored too it is refused where it cannot be."""
        chosen = choose_fp8(
            self.cfg,
            stored=self.stored.get("fp8"),
            model=self.model,
            device=self.device,
            precision=self.precision(),
            tokens=self.rows * self.seq_len,
        )
        found: Mapping[str, Any] = self.take("fp8", chosen, configured=True)
        return found

    def attention(self) -> str:
        """A kernel, or model; a stored one holds where the model lets it be chosen and this machine has it."""
        kept, is_open = self.stored.get("attention"), self.model.attention_shape() is not None
        holds = kept is not None and is_open and attention_kernels.is_here(kept, self.device)
        if kept == "model" or holds:
            return str(self.take("attention", ("", "")))
        return str(self.take("attention", self._chosen_attention(), configured=True))

    def _chosen_attention(self) -> tuple[str, str]:
        """(kernel, why); timed on a CUDA device, on a CPU the model's own rule by shape and dtype holds."""
        shape, dtype = self.model.attention_shape(), autocast_dtype(self.precision())
        if shape is None:
            return "model", "as the model section says"
        if self.device.type != "cuda" or dtype is None:
            return "model", "by shape and dtype" if self.device.type == "cpu" else "fp32 has one fused kernel"
        probed = attention_kernels.probe(
            self.device, rows=self.rows, heads=shape[0], tokens=self.seq_len, head_width=shape[1], dtype=dtype
        )
        return (probed.kernel, probed.reason) if probed else ("model", "no fused kernel takes these shapes")

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())
