"""The start-up table of a run or of its plan, and the notes above it."""

from __future__ import annotations

from typing import Any

from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly import summary
from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.machine import memory as memory_assembly
from automodel_cli.checkpoint import nested_runs
from automodel_cli.data.files.overlap import notes_on_overlap
from automodel_cli.recipes.pretraining.run import RunPlan
from automodel_cli.train.schedules import contradictions


def show_summary(plan: RunPlan, weights_from: str) -> None:
    """Show what a user checks before a long run."""
    for note in _notes(plan):
        plan.reporter.say(f"note: {note}")
    if (blend := summary.blend_table(_datasets(plan))) is not None:
        plan.reporter.columns(*blend)
    rows = [
        *summary.model_rows(plan.model, weights_from=weights_from),
        *(summary.data_row(name, dataset) for name, dataset in _datasets(plan).items()),
        *summary.packing_rows(plan.loader, plan.world),
        *summary.schedule_rows(
            plan.cfg,
            plan.training_length,
            plan.schedule,
            dp_world=plan.world.dp_world,
            why=plan.local_batch.reason,
        ),
        *world_assembly.rows(plan.cfg, plan.world),
        *summary.fast_path_rows(plan.fast_path, plan.device, plan.precision),
        *summary.cost_rows(plan.model, plan.training_length, plan.seq_len, plan.peak, plan.memory),
        ("run folder", f"{plan.run_folder}" if plan.saves else "none: checkpoints are off"),
    ]
    plan.reporter.table("pretrain llm", rows)


def _notes(plan: RunPlan) -> list[str]:
    datasets = _datasets(plan)
    held_out = {name: dataset for name, dataset in datasets.items() if dataset is not plan.dataset}
    return [
        *plan.cfg.notes,
        *world_assembly.notes(plan.cfg, plan.device.type),
        *plan.model.notes,
        *contradictions(plan.schedule, plan.training_length.total_steps),
        *memory_assembly.notes(plan.peak, plan.memory),
        *notes_on_overlap(plan.dataset, held_out),
        *(nested_runs.notes(plan.run_folder) if plan.saves and plan.world.is_main else []),
        *data_assembly.notes(plan.loader, *datasets.values()),
    ]


def _datasets(plan: RunPlan) -> dict[str, Any]:
    held_out = {f"validation: {name}": dataset for name, (dataset, _) in plan.val_sets.items()}
    return {"training data": plan.dataset, **held_out}
