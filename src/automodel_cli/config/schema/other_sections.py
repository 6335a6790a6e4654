"""Sections of users' files that have no counterpart here, or little effect.

The keys are those of NeMo AutoModel up to 0.7.0. A section that is switched off there (``null``, ``enabled: false``)
asks for nothing and is dropped; one that is on and has no counterpart is an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

from automodel_cli.config.schema.base import Positive, Section, ignored
from automodel_cli.device import is_known_device

_OWN_SCRIPT = "jobs are not submitted from here; `automodel slurm` writes a batch file"
_FINE_TUNING = "this toolkit pretrains whole models; remove the section"

UNSUPPORTED_SECTIONS: dict[str, str] = {
    "slurm": _OWN_SCRIPT,
    "skypilot": "jobs are not submitted from here; call automodel in your own task",
    "nemo_run": "jobs are not submitted from here; call automodel in your own script",
    "peft": f"parameter-efficient fine-tuning is not part of this toolkit: {_FINE_TUNING}",
    "quantization": f"training on quantized weights is not part of this toolkit: {_FINE_TUNING}",
    "qat": "quantization-aware training is not part of this version; train without it, quantize the exported model",
    "mtp": "multi-token prediction heads are not part of this toolkit; the loss is that of the next token",
    "embedding_row_repair": f"repairing rows of a pretrained embedding is a step of fine-tuning: {_FINE_TUNING}",
    "neftune": f"noise on embeddings is a technique of fine-tuning: {_FINE_TUNING}",
    "tool_call_eval": f"evaluation of tool calls is for chat models: {_FINE_TUNING}",
    "benchmark": "there is no benchmark recipe; --profile N shows where the time of a run goes",
}
"""Top-level sections without a counterpart here, and what to do instead."""


def without_switched_off(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` without the unsupported sections that ask for nothing: null, empty, or switched off."""

    def asks_something(value: Any) -> bool:
        is_off = isinstance(value, Mapping) and any(value.get(key) is False for key in ("enabled", "enable"))
        return bool(value) and not is_off

    return {key: value for key, value in data.items() if key not in UNSUPPORTED_SECTIONS or asks_something(value)}


class MfuConfig(Section):
    """Peak that model FLOPs utilization is measured against. Absent: that of the device."""

    known_targets = ("MFUConfig", "MfuConfig")

    device: str | None = None
    """Name to look up in the table of peaks, such as `H100`; null: the device's own name."""
    peak_tflops: Positive | None = None
    """Peak of one device in TFLOP/s, instead of the table's."""

    @field_validator("device")
    @classmethod
    def _is_in_the_table(cls, value: str | None) -> str | None:
        if value is not None and not is_known_device(value):
            raise ValueError(f"{value!r} is not in the table of peaks; give mfu.peak_tflops instead")
        return value


_PREWARM = "the first update warms up what it needs, under the long time limit of set-up"


class PrewarmConfig(Section):
    """Work before the first update, so that it takes no longer than the others."""

    cublas_backward: bool = ignored(False, _PREWARM)
    fla_gdn_autotune: bool = ignored(False, "no model here has such a kernel")
    mamba_ssd_autotune: bool = ignored(False, "no model here has such a kernel")
    comm_groups: bool = ignored(False, _PREWARM)
    pipeline_stage_compile: bool = ignored(False, "there are no pipeline stages")


_DENSE = "models here are dense: there are no experts to count"


class MoeMetricsConfig(Section):
    """Load of experts in the log."""

    enabled: bool = ignored(False, _DENSE)
    mode: str | None = ignored(None, _DENSE)
    top_k_experts: int | None = ignored(None, _DENSE)
    detailed_every_steps: int | None = ignored(None, _DENSE)
