"""``automodel eval``: a checkpoint's likelihood of token files, or its answers to tasks; and comparing two results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from automodel_cli.cli import console, evaluate_tasks, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import EvaluateConfig
from automodel_cli.errors import ConfigError

COLUMNS = ("data", "loss", "perplexity", "bits/byte", "tokens", "tokens/s")
COMPARE = "compare"

_FILES = "Likelihood of token files"
_TASKS = "Tasks"
COMMAND_OPTIONS = {
    "options_metavar": "[OPTIONS]",
    "epilog": "automodel eval compare A.json B.json shows what differs between two results files and whether that is "
    "more than chance. torchrun's flags (--nproc-per-node, ...) may stand anywhere with --tasks and --harness.",
}


def evaluate(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CKPT | compare A.json B.json", help="Checkpoint, run folder or Hugging Face folder."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Token file, prefix of a .bin and .idx, pattern or folder; may be repeated. Default: the run's own.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Window length (default: as trained).", rich_help_panel=_FILES)
    ] = None,
    intra_document: Annotated[
        bool | None,
        typer.Option(help="Attention within documents only (default: as trained).", rich_help_panel=_FILES),
    ] = None,
    raw_dtype: Annotated[
        str | None,
        typer.Option(
            help="Files without a header: uint16, uint32 or npy (default: as trained).",
            rich_help_panel=_FILES,
        ),
    ] = None,
    limit_batches: Annotated[
        int | None, typer.Option(help="Batches to score at most.", rich_help_panel=_FILES)
    ] = None,
    bigram: Annotated[
        str | None,
        typer.Option(help="Training token files of a bigram model to compare with.", rich_help_panel=_FILES),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="core|gauntlet|NAME,...", help="In-context tasks.", rich_help_panel=_TASKS),
    ] = None,
    harness: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="Tasks of lm-evaluation-harness.", rich_help_panel=_TASKS),
    ] = None,
    harness_path: Annotated[
        str | None, typer.Option(help="Folder of your own harness task files.", rich_help_panel=_TASKS)
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Run this code: the file that built a model of your own, or a --harness-path. May be repeated.",
            show_default=False,
        ),
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template", help="Harness prompts through the chat template.", rich_help_panel=_TASKS
        ),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Folder of task data (default: eval_bundle).", rich_help_panel=_TASKS)
    ] = None,
    max_per_task: Annotated[
        int | None, typer.Option(help="Questions of a task at most.", rich_help_panel=_TASKS)
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Worked examples (default: as published).", rich_help_panel=_TASKS)
    ] = None,
    download_bundle: Annotated[
        bool, typer.Option("--download-bundle", help="Fetch the task data and stop.", rich_help_panel=_TASKS)
    ] = False,
    bundle_url: Annotated[
        str | None, typer.Option(help="Where from (default: the published archive).", rich_help_panel=_TASKS)
    ] = None,
    bundle_sha256: Annotated[
        str | None, typer.Option(help="What its SHA-256 has to be.", rich_help_panel=_TASKS)
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(metavar="auto|N", help="Sequences at once (default: 8; tasks: auto).")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Results file (default: RUN/results_STEP_WHAT.json; none in folders of others).",
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer (default: the checkpoint's).")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> int:
    """Score a checkpoint: loss, perplexity and bits per byte on token files, or answers to tasks."""
    words = words or []
    if words[:1] == [COMPARE]:
        return evaluate_tasks.compare(words[1:])
    if download_bundle:
        return evaluate_tasks.download(bundle, bundle_url, bundle_sha256)
    if len(words) > 1:
        raise ConfigError(
            f"one checkpoint is scored at a time, found {' '.join(words)}", "automodel eval CKPT"
        )
    both = {
        "checkpoint": words[0] if words else None,
        "batch_size": int(batch_size) if batch_size is not None and batch_size.isdigit() else batch_size,
        "output": output,
        "tokenizer": tokenizer,
        "precision": precision,
        "device": device,
    }
    of_files = {
        "data": data or None,
        "seq_len": seq_len,
        "intra_document": intra_document,
        "raw_dtype": raw_dtype,
        "limit_batches": limit_batches,
        "bigram": bigram,
    }
    of_tasks = {
        "tasks": tasks or None,
        "harness": harness or None,
        "harness_path": harness_path,
        "chat_template": chat_template,
        "bundle": bundle,
        "max_per_task": max_per_task,
        "num_fewshot": num_fewshot,
    }
    if tasks or harness or evaluate_tasks.names_tasks(config):
        _refuse(of_files, "--tasks and --harness")
        return evaluate_tasks.run(config, both | of_tasks, _invocation(context), trust=trust or ())
    _refuse(of_tasks, "the likelihood of token files")
    return _likelihood(config, both | of_files, _invocation(context), trust or ())


def _invocation(context: typer.Context) -> Invocation:
    return context.obj if isinstance(context.obj, Invocation) else Invocation(())


def _refuse(flags: dict[str, Any], what: str) -> None:
    if given := [name.replace("_", "-") for name, value in flags.items() if value is not None]:
        raise ConfigError(
            f"--{given[0]} does not go with {what}",
            "token files and tasks are two commands; --tasks NAME asks for tasks",
        )


def _likelihood(
    config: Path | None, flags: dict[str, Any], invocation: Invocation, trust: Sequence[str]
) -> int:
    cfg = load_config(EvaluateConfig, config, flags=flags)
    if invocation.wants_processes:
        raise ConfigError(
            "token files are scored in one process", "leave the launch flags out, or give --tasks"
        )
    worker.starting("eval: loading PyTorch ...")
    from automodel_cli.recipes import evaluate as recipe

    with console.voice("scoring") as voice:
        result = recipe.run(cfg, voice=voice, trust=trust)
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
