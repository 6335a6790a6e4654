"""``automodel preprocess shuffle``: documents in random order, with bounded memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.preprocess_bars import Bars, duration, show_bad_rows
from automodel_cli.config.load import load_config
from automodel_cli.config.schema_shuffle import ShuffleConfig

if TYPE_CHECKING:
    from automodel_cli.recipes.shuffle import ShuffleResult

_INPUT, _OUTPUT, _SPEED = "Input", "Output", "Speed"
InputFormat = Annotated[
    str | None,
    typer.Option(
        help="What local files are: auto (by suffix, default), text, jsonl, json or parquet.",
        rich_help_panel=_INPUT,
    ),
]
MaxDocumentBytes = Annotated[
    str | None,
    typer.Option(
        help="Longer documents are cut where that is defined, else bad rows (default: 256 MiB).",
        rich_help_panel=_INPUT,
    ),
]


def shuffle(
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "--input", help="File, folder or glob to read.", rich_help_panel=_INPUT),
    ] = None,
    text_key: Annotated[
        str | None,
        typer.Option(help="Field or column with the text (default: text).", rich_help_panel=_INPUT),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(
            help="What a document is in text files: file (default), line, or a delimiter such as '\\n\\n'.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    input_format: InputFormat = None,
    max_document_bytes: MaxDocumentBytes = None,
    keep_columns: Annotated[
        str | None,
        typer.Option(help="Columns of parquet files to keep: id,url,... or all.", rich_help_panel=_INPUT),
    ] = None,
    dedup: Annotated[
        bool | None,
        typer.Option("--dedup", help="Leave out documents whose text came before.", rich_help_panel=_INPUT),
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check", help="Parse rows; leave out those without usable text.", rich_help_panel=_INPUT
        ),
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Stop at the first bad row.", rich_help_panel=_INPUT)
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option("--output-dir", "-o", help="Folder to write.", rich_help_panel=_OUTPUT)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="NAME.chunk.00000.jsonl, NAME.val.jsonl.", rich_help_panel=_OUTPUT),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(help="Files to divide the documents into (default: 1).", rich_help_panel=_OUTPUT),
    ] = None,
    chunk_size: Annotated[
        str | None,
        typer.Option(help="Bytes of a file at most: 500M, 4G; instead of --chunks.", rich_help_panel=_OUTPUT),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Part of the documents for validation.", rich_help_panel=_OUTPUT),
    ] = None,
    val_documents: Annotated[
        int | None,
        typer.Option(help="Documents for validation, instead of a fraction.", rich_help_panel=_OUTPUT),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides the order and the split.", rich_help_panel=_OUTPUT)
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite", help="Replace what is in the folder.", rich_help_panel=_OUTPUT),
    ] = None,
    dry_run: Annotated[
        bool | None,
        typer.Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=_OUTPUT),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory to take: 500M (default), 16G.", rich_help_panel=_SPEED)
    ] = None,
    temp_dir: Annotated[
        str | None,
        typer.Option(help="Folder for temporary files (default: in the output).", rich_help_panel=_SPEED),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(help="Processes that read (default: as many as pay).", rich_help_panel=_SPEED),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Documents in random order: .jsonl, .parquet or text files to .jsonl files.

    The order depends on the seed and the files alone: not on memory, processes, or how a folder is listed.
    """
    flags = {
        "dataset": dataset,
        "text_key": text_key,
        "document": document,
        "input_format": input_format,
        "max_document_bytes": max_document_bytes,
        "keep_columns": keep_columns,
        "dedup": dedup,
        "check": check,
        "strict": strict,
        "output_dir": output_dir,
        "name": name,
        "chunks": chunks,
        "chunk_size": chunk_size,
        "val_fraction": val_fraction,
        "val_documents": val_documents,
        "seed": seed,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "memory": memory,
        "temp_dir": temp_dir,
        "num_workers": num_workers,
    }
    cfg = load_config(ShuffleConfig, config, flags=flags)

    worker.starting("preprocess shuffle: opening input ...")
    from automodel_cli.recipes import shuffle as recipe

    started_s = time.monotonic()
    with Bars() as bars:
        result = recipe.run(cfg, progress=bars, say=console.say)
    if result.manifest is not None:
        _show(result, time.monotonic() - started_s)


def _show(result: ShuffleResult, elapsed_s: float) -> None:
    manifest = result.manifest
    assert manifest is not None
    rows = []
    for split, title in (("train", "train"), ("val", "validation")):
        if files := manifest.of_split(split):  # type: ignore[arg-type]
            documents, size = sum(file.documents for file in files), sum(file.bytes for file in files)
            names = files[0].name if len(files) == 1 else f"{files[0].name} ... {files[-1].name}"
            rows.append((title, f"{documents:,} documents, {size / 1e6:,.1f} MB in {names}"))
    if manifest.duplicates is not None:
        rows.append(("duplicates", f"{manifest.duplicates:,} left out"))
    rows.append(("bad rows", f"{manifest.bad_rows:,}"))
    rows.append(("order", f"seed {manifest.options['seed']}"))
    if not result.already_complete:
        size = sum(file.bytes for file in manifest.files)
        rows.append(("time", f"{duration(elapsed_s)}, {size / max(elapsed_s, 1e-6) / 1e6:,.0f} MB/s"))
    show_bad_rows(manifest.bad_rows, result.bad_rows)
    console.facts(f"Documents in {result.folder}", rows)
