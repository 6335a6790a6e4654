"""``automodel plan``: what a run would take, on one screen, before there is a machine for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from automodel_cli.cli import console
from automodel_cli.cli.commands.pretrain import config_file
from automodel_cli.cli.options import command, show_json
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import PlanOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError
from automodel_cli.text import human, plural, rough_duration

if TYPE_CHECKING:
    from automodel_cli.recipes.plan import RunEstimate


@command(
    PlanOptions,
    file=False,
    overrides=True,
    usage="-c FILE [OPTIONS] [--section.key VALUE | section.key=VALUE]...",
    examples=(
        "automodel plan -c configs/depth.yaml model.depth=12 step_scheduler.target_flops=1e18",
        "automodel plan -c configs/depth.yaml --gpu H100 --num-gpus 8 --mfu 0.4 --price 2.5",
    ),
    epilog="Give the file and the overrides that automodel pretrain llm will be given. Of models that are not this "
    "package's own, automodel pretrain llm --dry-run shows the sizes.",
)
def plan(cfg: PlanOptions, context: typer.Context) -> None:
    """Show what a run would take: parameters, FLOPs, tokens, updates, memory, data, time."""
    config, overrides = config_file(cfg.config, list(context.args))
    if config is None and not overrides:
        raise ConfigError("no configuration given", "automodel plan -c cfg.yaml")
    run = load_config(PretrainConfig, config, overrides, trust=cfg.trust)

    from automodel_cli.recipes import plan as recipe

    found = recipe.run(run, cfg)
    if cfg.as_json:
        show_json(found.to_json())
    else:
        _show(found)


def _show(found: RunEstimate) -> None:
    console.facts("plan", [*_model_rows(found), *_run_rows(found)])
    fits = [
        (
            f"{one.card_gib} GB",
            f"{one.local_batch_size} x {found.seq_len}" if one.local_batch_size else "does not fit",
            str(one.micro_batches or ""),
            f"{one.peak_gib:.1f} GiB",
        )
        for one in found.memory
    ]
    headings = ("GPU", "micro-batch", "per update", "peak")
    console.table("\nmemory of each GPU, in bf16, compiled", headings, fits, right=headings[1:])
    for warning in found.warnings:
        console.say(f"warning: {warning}")


def _model_rows(found: RunEstimate) -> list[tuple[str, str]]:
    counts, derived = found.params, found.derived
    named = {key.rpartition(".")[2]: value for key, value in derived.items() if not key.endswith("_target_")}
    rows = [
        ("model", f"{found.family}: " + ", ".join(f"{role} {size:,}" for role, size in found.params_by_role.items())),
        (
            "parameters",
            f"{counts.total:,} total, {counts.non_embedding:,} non-embedding, {counts.scaling:,} scaling"
            " (matrices and head)",
        ),
    ]
    return rows + ([("from depth", ", ".join(f"{name} {value}" for name, value in named.items()))] if named else [])


def _run_rows(found: RunEstimate) -> list[tuple[str, str]]:
    each = human(found.flops_per_token, billions="G")
    rows = [
        ("FLOPs", f"{found.flops_per_token:,} a token ({each}), {found.flops:.3g} in all"),
        ("batch", f"{found.global_batch_size} sequences of {found.seq_len} = {found.tokens_per_update:,} tokens"),
        (
            "length",
            f"{plural(found.steps, 'update')} ({found.horizon}), {found.tokens:,} tokens, "
            f"{found.tokens_per_param:.3g} for each parameter (scaling)",
        ),
        ("data", _data(found)),
    ]
    if (time := found.time) is not None:
        cost = "" if time.cost is None else f", cost {time.cost:,.2f}"
        speed = f"{human(time.tokens_per_s)} tok/s at {time.mfu:.0%} of {time.num_gpus} x {time.gpu}"
        hours = f"{time.gpu_hours:,.3g} GPU hours{cost}"
        rows.append(("time", f"about {rough_duration(time.hours * 3600)}: {speed}; {hours}"))
    return rows


def _data(found: RunEstimate) -> str:
    from automodel_cli.recipes.plan import count

    if found.data_tokens is None or found.epochs is None:
        return f"not counted: {found.missing}"
    return f"{found.data_tokens:,} tokens there, {found.tokens:,} needed: {count(found.epochs)} passes"
