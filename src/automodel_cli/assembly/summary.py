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
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.interface import BlendStats, DataSource, source_of
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.distributed.world import World
from automodel_cli.models.interface import CausalLM, count_parameters
from automodel_cli.sizing import shape as sizing
from automodel_cli.sizing.memory import PeakMemory
from automodel_cli.text import human, plural
from automodel_cli.train.schedules import Schedule

_SHOWN_FILES = 16  # files of a blend in the table; of more, the first and the last


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
    """Tokens, files and sequences of a data set, as far as it can say."""
    known = source_of(dataset).describe()
    words = []
    if known.tokens is not None:
        words.append(f"{known.tokens:,} tokens")
    if known.files is not None:
        words.append(plural(known.files, "file"))
    if known.sequences is not None:
        words.append(f"{known.sequences:,} sequences of {known.seq_len or '?'}")
    return name, ", ".join(words) or known.kind


def packing_rows(loader: Any, world: World) -> Rows:
    """How rows are packed; only rank 0, which shows it, looks at some for that."""
    if not (isinstance(loader, PackedLoader) and world.is_main):
        return []
    return [("packing", loader.in_words())]


BLEND_HEADINGS = ("data", "prefix", "documents", "first", "last", "tokens", "weight", "samples", "epochs")


def blend_table(datasets: Mapping[str, Any]) -> tuple[str, Sequence[str], Columns] | None:
    """What each file gives to each blend: title, headings and rows; None where no data set is one.

    ``documents`` of the split, of which ``first`` and ``last`` are the numbers in the file; how many ``samples`` are
    drawn of them (``weight`` is their share), and how often their tokens are read for those (``epochs``).
    """
    rows = [row for name, dataset in datasets.items() for row in _blend_rows(name, source_of(dataset))]
    return ("Megatron files", BLEND_HEADINGS, rows) if rows else None


def _blend_rows(name: str, source: DataSource) -> list[Sequence[str]]:
    found = source.blend_stats()
    rows: list[Sequence[str]] = [_blend_row(name, stats) for stats in found]
    if len(found) > _SHOWN_FILES:
        half = _SHOWN_FILES // 2
        left_out = (name, f"... {len(found) - _SHOWN_FILES:,} more", *[""] * (len(BLEND_HEADINGS) - 2))
        rows = [*rows[:half], left_out, *rows[-half:]]
    if len(found) > 1:
        known = source.describe()
        tokens, samples, seq_len = known.tokens or 0, known.sequences or 0, known.seq_len or 0
        documents = sum(stats.end - stats.begin for stats in found)
        counts = (f"{documents:,}", "", "", f"{tokens:,}", "1", f"{samples:,}")
        rows.append((name, f"all {len(found):,}", *counts, f"{samples * seq_len / max(tokens, 1):.3g}"))
    return rows


def _blend_row(name: str, stats: BlendStats) -> Sequence[str]:
    count = stats.end - stats.begin
    bounds = (f"{stats.begin:,}", f"{stats.end - 1:,}") if count else ("", "")
    numbers = (f"{stats.tokens:,}", f"{stats.weight:.4g}", f"{stats.samples:,}", f"{stats.epochs:.3g}")
    return (name, stats.name, f"{count:,}", *bounds, *numbers)


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
        ("device", f"{device} ({plural(path.threads, 'thread')})" if device.type == "cpu" else str(device)),
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
    flops = sizing.flops_per_token(model.shape(), seq_len)
    if flops is None:
        return [("cost", "n/a: the shape of this model is not known")]
    return [
        (
            "FLOPs",
            f"{human(flops, billions='G')} per token, {flops * training_length.total_tokens:.3g} in all",
        ),
        memory_assembly.row(peak, memory),
    ]
