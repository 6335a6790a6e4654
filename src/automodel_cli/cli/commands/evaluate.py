"""``automodel eval``: a checkpoint's likelihood of token files, or its answers to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.commands import evaluate_tasks
from automodel_cli.cli.options import Given, command, show_json
from automodel_cli.config.schema.base import Section
from automodel_cli.config.schema.results import EvaluateConfig, EvaluateOptions, TasksConfig
from automodel_cli.errors import ConfigError

COLUMNS = ("data", "loss", "perplexity", "bits/byte", "tokens", "tokens/s")


@command(
    EvaluateConfig,
    TasksConfig,
    EvaluateOptions,
    arguments=("checkpoint",),
    examples=(
        "automodel eval runs/a --data val.bin",
        "automodel eval runs/a --tasks core --nproc-per-node 8",
        "automodel eval compare a.json b.json",
    ),
    epilog="automodel eval compare and automodel eval download-bundle are commands of their own. Launch flags "
    "(automodel help launch) may be given anywhere with --tasks and --harness.",
)
def evaluate(given: Given, context: typer.Context) -> int:
    """Score a checkpoint: loss, perplexity and bits per byte on token files, or answers to tasks."""
    if given.values["download_bundle"]:
        return evaluate_tasks.download(given)
    invocation = Invocation.of(context)
    if given.values["tasks"] or given.values["harness"] or evaluate_tasks.names_tasks(given.file):
        _refuse(given, EvaluateConfig, TasksConfig, "--tasks and --harness")
        return evaluate_tasks.run(given, invocation)
    _refuse(given, TasksConfig, EvaluateConfig, "the likelihood of token files")
    return _likelihood(given.load(EvaluateConfig), invocation, given.values["trust"] or ())


def _refuse(given: Given, model: type[Section], other: type[Section], what: str) -> None:
    if odd := [key for key in given.of(model) if key not in other.keys()]:  # noqa: SIM118
        raise ConfigError(
            f"{given.names[odd[0]]} does not go with {what}",
            "token files and tasks are scored separately; give --tasks NAME for tasks",
        )


def _likelihood(cfg: EvaluateConfig, invocation: Invocation, trust: Sequence[str]) -> int:
    if invocation.wants_processes:
        raise ConfigError("token files are scored by a single process", "leave the launch flags out, or give --tasks")
    worker.starting("eval: loading PyTorch ...", needs=cfg.checkpoint)
    from automodel_cli.recipes.evaluation import likelihood as recipe

    if cfg.as_json:
        show_json(recipe.run(cfg, reporter=Reporter(), trust=trust).results)
        return 0
    with console.reporter("scoring") as reporter:
        result = recipe.run(cfg, reporter=reporter, trust=trust)
    console.table(result.results["checkpoint"]["path"], COLUMNS, rows_of(result.results), right=COLUMNS[1:])
    evaluate_tasks.say_where(result)
    return 0


def rows_of(results: dict[str, Any]) -> list[list[str]]:
    """A row for each set, one for all of them where there are several, one for the bigram model."""
    rows = [_row(scored["data"], scored) for scored in results["sets"]]
    if len(results["sets"]) > 1:
        rows.append(_row("all", results))
    if "bigram" in results:
        found = results["bigram"]
        rows.append(["bigram model, same tokens", f"{found['loss']:.4f}", "", "", f"{found['tokens']:,}", ""])
    return rows


def _row(name: str, score: dict[str, Any]) -> list[str]:
    bits = score["bits_per_byte"]
    return [
        name,
        f"{score['loss']:.4f}",
        f"{score['perplexity']:,.2f}",
        "n/a" if bits is None else f"{bits:.4f}",
        f"{score['tokens']:,}",
        f"{score['tokens_per_s']:,.0f}",
    ]
