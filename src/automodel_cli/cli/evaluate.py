"""``automodel eval``: a checkpoint's loss, perplexity and bits per byte on token files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from automodel_cli.cli import console
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import EvaluateConfig

COLUMNS = ("data", "loss", "perplexity", "bits/byte", "tokens", "tokens/s")


def evaluate(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Checkpoint, run folder or Hugging Face folder.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Token file, prefix of a .bin and .idx, pattern or folder; may be repeated. Default: the run's own."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences scored at once (default: 8).")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Window length (default: as trained).")] = None,
    limit_batches: Annotated[int | None, typer.Option(help="Batches to score at most.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Results file (default: RUN/results.json).")
    ] = None,
    bigram: Annotated[
        str | None, typer.Option(help="Training token files of a bigram model to compare with.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer for bits per byte.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Score a checkpoint: loss, perplexity, bits per byte, tokens per second."""
    flags = {
        "checkpoint": checkpoint,
        "data": data or None,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "limit_batches": limit_batches,
        "output": output,
        "bigram": bigram,
        "tokenizer": tokenizer,
        "precision": precision,
        "device": device,
    }
    cfg = load_config(EvaluateConfig, config, flags=flags)

    from automodel_cli.recipes import evaluate as recipe

    with console.voice("scoring") as voice:
        result = recipe.run(cfg, voice=voice)
    console.table(result.results["checkpoint"]["path"], COLUMNS, rows_of(result.results), right=COLUMNS[1:])
    console.say(f"wrote {result.output}")


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
