"""``automodel preprocess megatron``: flags by the names that Megatron's and NeMo's tools have."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import command
from automodel_cli.cli.preprocess.bars import Bars, show_bad_rows
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.text import duration, plural

if TYPE_CHECKING:
    from automodel_cli.recipes.preprocess.megatron import MegatronResult


@command(
    PreprocessMegatronConfig,
    examples=(
        "automodel preprocess megatron --input 'text/*.jsonl' --output-path tokens --append-eod",
        "automodel preprocess megatron --input a.jsonl b.jsonl --json-keys text title --tokenizer byte",
    ),
)
def megatron(cfg: PreprocessMegatronConfig) -> None:
    """Text to Megatron-Core's indexed token files (.bin and .idx).

    Options go by the names that Megatron's and NeMo's tools have; those of several values take them side by side.
    """
    worker.starting("preprocess megatron: opening tokenizer and input ...")
    from automodel_cli.recipes.preprocess import megatron as recipe

    started_s = time.monotonic()
    with Bars() as bars:
        result = recipe.run(cfg, progress=bars, say=console.say)
    if result.manifest is not None:
        _show(result, time.monotonic() - started_s)


def _show(result: MegatronResult, elapsed_s: float) -> None:
    manifest = result.manifest
    assert manifest is not None
    rows = []
    for key in manifest.keys:
        pairs = [pair for pair in manifest.pairs if pair.key == key]
        tokens, documents = sum(pair.tokens for pair in pairs), sum(pair.documents for pair in pairs)
        counts = f"{tokens:,} tokens, {plural(documents, 'document')}"
        if (sequences := sum(pair.sequences for pair in pairs)) != documents:
            counts += f", {sequences:,} sequences"
        names = [pair.name for pair in pairs]
        place = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names):,})"
        rows.append((key, f"{counts} in {place}" if names else "no tokens"))
    tokenizer = manifest.tokenizer
    eod = "no end-of-document" if manifest.eod_id is None else f"end-of-document {manifest.eod_id}"
    size = sum(pair.bin_bytes + pair.idx_bytes for pair in manifest.pairs)
    rows += [
        ("tokenizer", f"{tokenizer['name']}, {tokenizer['vocab_size']:,} ids, {tokenizer['fingerprint']}"),
        ("layout", f"{manifest.dtype}, {eod}"),
        ("bad rows", f"{manifest.bad_rows:,}"),
        ("size", f"{size / 1e6:,.1f} MB"),
    ]
    if not result.already_complete:
        rows.append(("time", f"{duration(elapsed_s)}{' (continued)' if result.continued else ''}"))
    show_bad_rows(manifest.bad_rows, result.bad_rows)
    console.facts(f"Megatron files in {result.folder}", rows)
