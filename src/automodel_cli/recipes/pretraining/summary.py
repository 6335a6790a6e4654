"""The start-up table of a run or of its plan: every number a user checks before a long run, and the notes above it."""

from __future__ import annotations

from typing import Any

from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly import mirror, summary, trackers, training
from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.hub import uploads
from automodel_cli.assembly.machine import memory as memory_assembly
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.assembly.reporter import Rows
from automodel_cli.batch_sizes import BatchSizes, Staged
from automodel_cli.checkpoint import nested_runs
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.files.overlap import notes_on_overlap
from automodel_cli.data.interface import source_of
from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.models.interface import count_parameters
from automodel_cli.recipes.pretraining.run import RunPlan
from automodel_cli.sizing import shape as sizing
from automodel_cli.text import human, plural
from automodel_cli.train.schedules import contradictions


def show_summary(plan: RunPlan, weights_from: str) -> None:
    """Show what a user checks before a long run."""
    for note in _notes(plan):
        plan.reporter.say(f"note: {note}")
    for table in (summary.blend_table(_datasets(plan)), summary.mixture_table(_datasets(plan))):
        if table is not None:
            plan.reporter.columns(*table)
    rows = [
        *_model_rows(plan),
        ("weights", weights_from),
        *((name, data_line(dataset)) for name, dataset in _datasets(plan).items()),
        *_stage_rows(plan),
        *_packing_rows(plan),
        *_schedule_rows(plan),
        *world_assembly.rows(plan.cfg, plan.world),
        *_fast_path_rows(plan),
        *_cost_rows(plan),
        ("run folder", f"{plan.run_folder}" if plan.saves else "none: checkpoints are off"),
        *trackers.rows(plan.cfg, plan.run_folder),
        *uploads.rows(plan.cfg),
        *mirror.rows(plan.cfg),
    ]
    plan.reporter.table("pretrain llm", rows)


def _notes(plan: RunPlan) -> list[str]:
    datasets = _datasets(plan)
    held_out = {name: dataset for name, dataset in datasets.items() if dataset is not plan.dataset}
    return [
        *plan.cfg.notes,
        *world_assembly.notes(plan.cfg, plan.device.type),
        *plan.model.notes,
        *_notes_on_sources(plan),
        *contradictions(plan.schedule, plan.training_length.total_steps),
        *memory_assembly.notes(plan.peak, plan.memory),
        *notes_on_overlap(plan.dataset, held_out),
        *(nested_runs.notes(plan.run_folder) if plan.saves and plan.world.is_main else []),
        *trackers.notes(plan.cfg),
        *uploads.notes(plan.cfg),
        *data_assembly.notes(plan.loader, *datasets.values()),
    ]


def _notes_on_sources(plan: RunPlan) -> list[str]:
    """That losses are not told apart by source, or that their mean by the objective cannot be."""
    data = source_of(plan.dataset)
    if data.source_names and not plan.sources:
        loss = training.loss_name(plan.head_loss)
        return [f"no loss by source: {loss} gives only the sum over all tokens"]
    scored = {*plan.val_sets}.union(*(source_of(dataset).source_names for dataset, _ in plan.val_sets.values()))
    missing = [name for name, share in (data.objective or {}).items() if share > 0 and name not in scored]
    if plan.val_sets and missing:
        return [f"no weighted validation loss: there is no validation_dataset_{missing[0]}"]
    return []


def _datasets(plan: RunPlan) -> dict[str, Any]:
    held_out = {f"validation: {name}": dataset for name, (dataset, _) in plan.val_sets.items()}
    return {"training data": plan.dataset, **held_out}


def _model_rows(plan: RunPlan) -> Rows:
    model, counts = plan.model, count_parameters(plan.model)
    family = model.model_config().get("family", type(model).__name__)
    return [
        ("model", f"{family}, {sum(counts.values()):,} parameters"),
        ("", ", ".join(f"{role} {human(number)}" for role, number in counts.items())),
        ("vocabulary", f"{model.vocab_size:,} (stored as {model.padded_vocab_size:,})"),
        *derived_rows(plan.cfg),
    ]


def derived_rows(cfg: PretrainConfig) -> Rows:
    """What followed from ``model.depth``."""
    named = {key.rpartition(".")[2]: value for key, value in cfg.derived.items()}
    values = [f"{name} {value}" for name, value in named.items() if name != "_target_"]
    return [("from depth", ", ".join(values))] if values else []


def data_line(dataset: Any) -> str:
    """Tokens, files and sequences of a data set, as far as it can say."""
    known = source_of(dataset).describe()
    words = [
        f"{known.tokens:,} tokens" if known.tokens is not None else "",
        plural(known.files, "file") if known.files is not None else "",
        f"{known.sequences:,} sequences of {known.seq_len or '?'}" if known.sequences is not None else "",
    ]
    return ", ".join(filter(None, words)) or known.kind


def _stage_rows(plan: RunPlan) -> Rows:
    """When the weights of a mixture change."""
    if not isinstance(plan.dataset, Mixture) or len(plan.dataset.stages) < 2:
        return []
    sizes, said = plan.loader.sizes, []
    stages = plan.dataset.order.stages
    for stage, following in zip(plan.dataset.stages, [*stages[1:], None], strict=False):
        first = f"{sizes.updates(stage.first):,}"
        when = f"from step {first}" if following is None else f"steps {first} to {sizes.updates(following.first):,}"
        shares = zip(plan.dataset.sources, stage.weights, strict=True)
        weights = ", ".join(f"{name} {weight / sum(stage.weights):.4g}" for name, weight in shares)
        said.append(f"{when}: {'in a line to ' if stage.ramp_from else ''}{weights}")
    return [("mixture", "; ".join(said))]


def _packing_rows(plan: RunPlan) -> Rows:
    """How rows are packed; only rank 0, which shows it, looks at some for that."""
    if not (isinstance(plan.loader, PackedLoader) and plan.world.is_main):
        return []
    return [("packing", plan.loader.in_words())]


def _schedule_rows(plan: RunPlan) -> Rows:
    """Batch arithmetic, length and learning rate."""
    scheduler, length, ranks = plan.cfg.step_scheduler, plan.training_length, plan.world.dp_world
    at_once = plural(scheduler.global_batch_size // (scheduler.local_rows * ranks), "micro-batch", "micro-batches")
    places = f" on each of {ranks} ranks" if ranks > 1 else ""
    why = f"; {plan.local_batch.reason}" if plan.local_batch.reason else ""
    unit = "pack" if isinstance(plan.loader, PackedLoader) else "sequence"
    rest = f", {plural(length.left_out, unit)} left out at the end" if length.left_out else ""
    return [
        (
            "batch",
            f"{scheduler.global_batch_size} sequences = {length.sizes.last * length.seq_len:,} tokens per update"
            f" ({scheduler.local_rows} at a time{places}, {at_once}{why})",
        ),
        *_changing_rows(plan),
        (
            "length",
            f"until the time is up ({length.reason})"
            if length.timed
            else f"{length.total_steps:,} updates ({length.reason}{rest}), {human(length.total_tokens)} tokens",
        ),
        ("learning rate", plan.schedule.describe()),
        *([("average", plan.average_rule.describe())] if plan.average_rule is not None else []),
    ]


def _changing_rows(plan: RunPlan) -> Rows:
    """Batch sizes before the last, and rows shorter than those of the data."""
    sizes = plan.loader.sizes
    lengths = plan.loader.row_lengths if isinstance(plan.loader, TokenLoader) else None
    return [
        *([("batch before", _stages(sizes, sizes, "sequences"))] if sizes.changes else []),
        *([("rows before", _stages(lengths, sizes, "tokens"))] if lengths is not None else []),
    ]


def _stages(numbers: Staged, sizes: BatchSizes, unit: str) -> str:
    """``64 sequences to step 300, 128 sequences to step 900``."""
    ends = [sizes.updates(first) for first, _ in numbers.stages[1:]]
    return ", ".join(f"{number} {unit} to step {end:,}" for number, end in zip(numbers.numbers, ends, strict=False))


def _fast_path_rows(plan: RunPlan) -> Rows:
    """What was chosen for speed, and why."""
    path, device = plan.fast_path, plan.device
    why = path.reasons
    return [
        ("device", f"{device} ({plural(path.threads, 'thread')})" if device.type == "cpu" else str(device)),
        ("precision", f"{plan.precision.describe()} ({why['precision']})"),
        ("residual", f"{path.residual} between blocks ({why['residual']})"),
        ("attention", f"{path.attention} ({why['attention']})"),
        ("compile", _compile_words(path)),
        *([("fp8", f"on ({why['fp8']})")] if path.fp8["recipe"] != "off" else []),
        ("optimizer", f"{path.optimizer} kernel ({why['optimizer']})"),
        *_orthogonalization_rows(path),
        ("loss", f"{path.head_loss.replace('_', ' ')} cross-entropy ({why['head_loss']})"),
    ]


def _orthogonalization_rows(path: FastPath) -> Rows:
    if path.orthogonalization == "none":
        return []
    return [("matrices", f"orthogonalized in {path.orthogonalization} ({path.reasons['orthogonalization']})")]


def _compile_words(path: FastPath) -> str:
    if not path.compile:
        return f"off ({path.reasons['compile']})"
    reasons = [path.reasons[name] for name in ("compile", "compile_scope", "compile_mode")]
    return f"on, {path.compile_scope} ({'; '.join(filter(None, reasons))})"


def _cost_rows(plan: RunPlan) -> Rows:
    """FLOPs and memory, computed and not measured."""
    flops = sizing.flops_per_token(plan.model.shape(), plan.seq_len)
    if flops is None:
        return [("cost", "n/a: the shape of this model is not known")]
    length = plan.training_length
    total = "" if length.timed else f", {flops * length.total_tokens:.3g} in all"
    return [
        ("FLOPs", f"{human(flops, billions='G')} per token{total}"),
        memory_assembly.row(plan.peak, plan.memory),
    ]
