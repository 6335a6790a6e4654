"""The start-up table and the plan of ``--dry-run``: every number a user checks before a long run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from automodel_cli.assembly.facts import PrecisionFacts
from automodel_cli.assembly.machine import memory as memory_assembly
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.assembly.machine.memory import DeviceMemory
from automodel_cli.assembly.reporter import Columns, Rows
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.config.schema.commands import PretrainConfig
from automodel_cli.data.megatron.parts import BlendStats
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.distributed.world import World
from automodel_cli.models.interface import CausalLM, count_parameters
from automodel_cli.sizing import shape as sizing
from automodel_cli.sizing.memory import PeakMemory
from automodel_cli.text import human, plural
from automodel_cli.train.schedules import Schedule

_SHOWN_PARTS = 16  # files of a blend in the table; of more, the first and the last


def model_rows(model: CausalLM, *, weights_from: str | None) -> Rows:
    """Size by group of parameters, and where the weights are from."""
    counts = count_parameters(model)
    groups = ", ".join(f"{role} {human(number)}" for role, number in counts.items())
    rows = [
        (
            "model",
            f"{model.model_config().get('family', type(model).__name__)}, {sum(counts.values()):,} parameters",
        ),
        ("", groups),
        ("vocabulary", f"{model.vocab_size:,} (stored as {model.padded_vocab_size:,})"),
    ]
    return rows if weights_from is None else [*rows, ("weights", weights_from)]


def data_row(name: str, dataset: Any) -> tuple[str, str]:
    """Tokens, windows and documents of a data set, as far as it can say."""
    parts = []
    if (tokens := getattr(dataset, "num_tokens", None)) is not None:
        parts.append(f"{tokens:,} tokens")
    if (shards := getattr(dataset, "token_files", None)) is not None:
        parts.append(plural(len(shards), "file"))
    if hasattr(dataset, "__len__"):
        parts.append(f"{len(dataset):,} sequences of {getattr(dataset, 'seq_len', '?')}")
    return name, ", ".join(parts) or type(dataset).__name__


def packing_rows(loader: Any, world: World) -> Rows:
    """How rows are packed; only rank 0, which shows it, looks at some for that."""
    if not (isinstance(loader, PackedLoader) and world.is_main):
        return []
    return [("packing", loader.in_words())]


BLEND_HEADINGS = ("data", "prefix", "documents", "first", "last", "tokens", "weight", "samples", "epochs")


def blend_table(datasets: Mapping[str, Any]) -> tuple[str, Sequence[str], Columns] | None:
    """What each Megatron file gives to each data set: title, headings and rows; None where there are no such files.

    ``documents`` of the split, of which ``first`` and ``last`` are the numbers in the file; how many ``samples`` are
    drawn of them (``weight`` is their share), and how often their tokens are read for those (``epochs``).
    """
    rows: list[Sequence[str]] = []
    for name, dataset in datasets.items():
        if isinstance(dataset, MegatronPretraining):
            rows += _blend_rows(name, dataset)
    return ("Megatron files", BLEND_HEADINGS, rows) if rows else None


def _blend_rows(name: str, dataset: MegatronPretraining) -> list[Sequence[str]]:
    drawn = dataset.order.drawn(len(dataset))
    rows: list[Sequence[str]] = [_drawn_row(name, part) for part in drawn]
    if len(drawn) > _SHOWN_PARTS:
        half = _SHOWN_PARTS // 2
        left_out = (name, f"... {len(drawn) - _SHOWN_PARTS:,} more", *[""] * (len(BLEND_HEADINGS) - 2))
        rows = [*rows[:half], left_out, *rows[-half:]]
    if len(drawn) > 1:
        tokens, samples = dataset.num_tokens, len(dataset)
        counts = (f"{dataset.documents:,}", "", "", f"{tokens:,}", "1", f"{samples:,}")
        rows.append(
            (name, f"all {len(drawn):,}", *counts, f"{samples * dataset.seq_len / max(tokens, 1):.3g}")
        )
    return rows


def _drawn_row(name: str, drawn: BlendStats) -> Sequence[str]:
    part = drawn.part
    bounds = (f"{part.begin:,}", f"{part.end - 1:,}") if part.end > part.begin else ("", "")
    return (
        name,
        part.file.prefix.name,
        f"{part.end - part.begin:,}",
        *bounds,
        f"{part.tokens:,}",
        f"{drawn.weight:.4g}",
        f"{drawn.samples:,}",
        f"{drawn.epochs:.3g}",
    )


def schedule_rows(
    cfg: PretrainConfig,
    training_length: TrainingLength,
    schedule: Schedule,
    *,
    dp_world: int = 1,
    why: str = "",
) -> Rows:
    """Batch arithmetic, length and learning rate; ``dp_world`` ranks have different parts of a batch.

    ``why`` the local batch size was chosen, where it was.
    """
    scheduler = cfg.step_scheduler
    accumulation = scheduler.global_batch_size // (scheduler.local_rows * dp_world)
    places = f" on each of {dp_world} ranks" if dp_world > 1 else ""
    why = f"; {why}" if why else ""
    batches = plural(accumulation, "micro-batch", "micro-batches")
    return [
        (
            "batch",
            f"{scheduler.global_batch_size} sequences = {training_length.tokens_per_step:,} tokens per update"
            f" ({scheduler.local_rows} at a time{places}, {batches}{why})",
        ),
        (
            "length",
            f"{training_length.total_steps:,} updates ({training_length.reason}),"
            f" {human(training_length.total_tokens)} tokens",
        ),
        ("learning rate", schedule.describe()),
    ]


def fast_path_rows(path: FastPath, device: torch.device, precision: PrecisionFacts) -> Rows:
    """What was chosen for speed, and why."""
    why = path.reasons
    return [
        ("device", f"{device} ({path.threads} threads)" if device.type == "cpu" else str(device)),
        ("precision", f"{precision.describe()} ({why['precision']})"),
        ("residual", f"{path.residual} between blocks ({why['residual']})"),
        ("attention", f"{path.attention} ({why['attention']})"),
        ("compile", _compile_words(path)),
        *([("fp8", f"on ({why['fp8']})")] if path.fp8["recipe"] != "off" else []),
        ("optimizer", f"{path.optimizer} kernel ({why['optimizer']})"),
        ("loss", f"{path.head_loss} cross-entropy ({why['head_loss']})"),
    ]


def _compile_words(path: FastPath) -> str:
    if not path.compile:
        return f"off ({path.reasons['compile']})"
    reasons = [path.reasons[name] for name in ("compile", "compile_scope", "compile_mode")]
    return f"on, {path.compile_scope} ({'; '.join(filter(None, reasons))})"


def cost_rows(
    model: CausalLM,
    training_length: TrainingLength,
    seq_len: int,
    peak: PeakMemory | None,
    memory: DeviceMemory | None,
) -> Rows:
    """FLOPs and memory, computed and not measured."""
    flops = sizing.flops_per_token(model.model_config(), seq_len)
    if flops is None:
        return [("cost", "n/a: the shape of this model is not known")]
    return [
        (
            "FLOPs",
            f"{human(flops, billions='G')} per token, {flops * training_length.total_tokens:.3g} in all",
        ),
        memory_assembly.row(peak, memory),
    ]
