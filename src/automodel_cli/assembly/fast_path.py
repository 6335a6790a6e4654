"""The choices that make a run fast on this machine, made once, printed with their reasons, kept for a resume.

Contract 13 of the design: a resumed run takes the same path, so that its numbers do not change half-way. What the
configuration says outright wins over what was stored, and is reported as a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.fp8 import choose_fp8
from automodel_cli.assembly.horizon import Horizon
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.models.interface import CausalLM
from automodel_cli.train.losses import pick_loss

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


@dataclass(frozen=True)
class FastPath:
    """What was chosen. ``reasons`` explains each in a few words and is not compared on resume."""

    precision: str  # bf16, fp16 or fp32
    compile: bool
    head_loss: str  # plain or chunked
    threads: int
    processes: int
    fp8: Mapping[str, Any]  # recipe (off or tensorwise) and keywords of models.fp8.convert
    reasons: Mapping[str, str]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The compute dtype of matrix products; None is fp32 throughout."""
        return _AUTOCAST[self.precision]

    def stored(self) -> dict[str, Any]:
        """The part that a checkpoint keeps."""
        return {key: value for key, value in asdict(self).items() if key != "reasons"}


def choose_fast_path(
    cfg: PretrainConfig,
    *,
    device: torch.device,
    horizon: Horizon,
    model: CausalLM,
    tokens_per_micro_batch: int,
    stored: Mapping[str, Any] | None,
    processes: int = 1,
) -> FastPath:
    """Precision, compilation, head loss and threads: from the configuration, else as stored, else by what is here.

    Stored threads are those of a process beside so many others: with another number of ``processes`` they do not hold.
    """
    stored = stored or {}
    reasons: dict[str, str] = {}

    precision, reasons["precision"] = this_machine.choose_precision(cfg.compute_precision, device)
    if cfg.compute_precision == "auto" and "precision" in stored:
        precision, reasons["precision"] = stored["precision"], "as stored with the run"

    compiled, reasons["compile"] = this_machine.choose_compile(
        cfg.compile.enabled,
        device=device,
        total_tokens=horizon.total_tokens,
        total_steps=horizon.total_steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    if cfg.compile.enabled == "auto" and "compile" in stored:
        compiled, reasons["compile"] = stored["compile"], "as stored with the run"

    fp8, reasons["fp8"] = choose_fp8(
        cfg,
        stored=stored.get("fp8"),
        model=model,
        device=device,
        precision=precision,
        tokens_per_micro_batch=tokens_per_micro_batch,
    )

    head_loss, reasons["head_loss"] = pick_loss(
        vocab_size=model.padded_vocab_size, tokens=tokens_per_micro_batch, device=device.type
    )
    if "head_loss" in stored:
        head_loss, reasons["head_loss"] = stored["head_loss"], "as stored with the run"
    same = stored.get("processes", processes) == processes
    threads = int(stored["threads"]) if same and "threads" in stored else torch.get_num_threads()
    return FastPath(
        precision=precision,
        compile=compiled,
        head_loss=head_loss,
        threads=threads,
        processes=processes,
        fp8=fp8,
        reasons=reasons,
    )
