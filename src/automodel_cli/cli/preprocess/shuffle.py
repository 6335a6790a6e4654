"""``automodel preprocess shuffle``: documents in random order, with bounded memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import command
from automodel_cli.cli.preprocess.bars import Bars, show_bad_rows
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.text import duration, plural

if TYPE_CHECKING:
    from automodel_cli.recipes.preprocess.shuffle import ShuffleResult


@command(
    ShuffleConfig,
    examples=(
        "automodel preprocess shuffle --dataset 'text/*.jsonl' --output-dir shuffled",
        "automodel preprocess shuffle --dataset text --chunks 8 --val-documents 1000 --memory 16G",
    ),
)
def shuffle(cfg: ShuffleConfig) -> None:
    """Documents in random order: .jsonl, .parquet or text files to .jsonl files.

    The order depends on the seed and the files alone: not on memory, processes, or how a folder is listed.
    """
    worker.starting("preprocess shuffle: opening input ...")
    from automodel_cli.recipes.preprocess import shuffle as recipe

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
            rows.append((title, f"{plural(documents, 'document')}, {size / 1e6:,.1f} MB in {names}"))
    if manifest.duplicates is not None:
        rows.append(("duplicates", f"{manifest.duplicates:,} left out"))
    rows.append(("bad rows", f"{manifest.bad_rows:,}"))
    rows.append(("order", f"seed {manifest.options['seed']}"))
    if not result.already_complete:
        size = sum(file.bytes for file in manifest.files)
        rows.append(("time", f"{duration(elapsed_s)}, {size / max(elapsed_s, 1e-6) / 1e6:,.0f} MB/s"))
    show_bad_rows(manifest.bad_rows, result.bad_rows)
    console.facts(f"Documents in {result.folder}", rows)
