"""``automodel preprocess``: nanogpt (text to token files), tokenizer (train a BPE), verify; megatron is beside this."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import command, show_json
from automodel_cli.cli.preprocess.bars import Bars, show_bad_rows
from automodel_cli.config.schema.preprocess import (
    PreprocessNanogptConfig,
    TokenizerTrainConfig,
    VerifyConfig,
)
from automodel_cli.plain_text import for_shell
from automodel_cli.text import duration, plural

if TYPE_CHECKING:
    from automodel_cli.corpus.formats.manifest import CorpusManifest
    from automodel_cli.recipes.preprocess.nanogpt import PreprocessResult
    from automodel_cli.recipes.preprocess.verify import VerifyReport


@command(
    PreprocessNanogptConfig,
    examples=(
        "automodel preprocess nanogpt --dataset notes.txt --val-fraction 0.05 --output-dir data",
        "automodel preprocess nanogpt --max-tokens 500M",
    ),
)
def nanogpt(cfg: PreprocessNanogptConfig) -> None:
    """Turn text into nanoGPT-style token files.

    Without options: FineWeb (sample-10BT) from the Hugging Face Hub with GPT-2's tokenizer.
    """
    worker.starting("preprocess nanogpt: opening tokenizer and input ...")
    from automodel_cli.recipes.preprocess import nanogpt as recipe

    started_s = time.monotonic()
    with Bars() as bars:
        result = recipe.run(cfg, progress=bars, say=console.say)
    if result.manifest is not None:
        _show_corpus(result, time.monotonic() - started_s)


@command(
    TokenizerTrainConfig,
    examples=("automodel preprocess tokenizer --dataset 'text/*.jsonl' --vocab-size 32768 --output-dir bpe",),
)
def tokenizer(cfg: TokenizerTrainConfig) -> None:
    """Train a byte-level BPE on your own text; AutoTokenizer opens the result."""
    worker.starting("preprocess tokenizer: opening input ...")
    from automodel_cli.recipes.preprocess import train_tokenizer as recipe

    with Bars() as bars:
        result = recipe.run(cfg, progress=bars, say=console.say)
    rows = [
        ("entries", f"{result.tokenizer.vocab_size:,}"),
        ("learned from", f"{plural(result.documents, 'document')}, {result.text_bytes / 1e6:,.1f} MB"),
        ("bytes per token", f"{result.bytes_per_token:.2f}"),
        ("fingerprint", result.tokenizer.fingerprint()),
        ("use it with", f"automodel preprocess nanogpt --tokenizer {for_shell(result.folder)}"),
    ]
    show_bad_rows(len(result.bad_rows), result.bad_rows)
    console.facts(f"Tokenizer in {result.folder}", rows)


@command(
    VerifyConfig,
    arguments=("path",),
    examples=(
        "automodel preprocess verify data",
        "automodel preprocess verify train.bin --tokenizer gpt2 --json",
    ),
)
def verify(cfg: VerifyConfig) -> int:
    """Check headers, sizes, hashes, ids and document index of token files; show the first documents.

    Understands dataset.bin (ours, NeMo's, nanoGPT's), .bin with .idx (ours, Megatron's, NeMo's, datatrove's), and
    folders of shuffled documents. Exit code 1 where something is wrong.
    """
    from automodel_cli.recipes.preprocess import verify as recipe

    if cfg.as_json:
        report = recipe.run(cfg, progress=lambda done, total, what: None)
        show_json(recipe.as_json(report))
    else:
        with console.Progress("hashing", unit="bytes") as progress:
            report = recipe.run(cfg, progress=progress)
        _show_report(report)
    return 1 if report.problems else 0


# ------------------------------------------------------------------------------------------- showing


def _show_corpus(result: PreprocessResult, elapsed_s: float) -> None:
    manifest = result.manifest
    assert manifest is not None
    rows = []
    for split, name in (("train", "train"), ("val", "validation")):
        files = manifest.token_files(split)  # type: ignore[arg-type]
        if files:
            tokens, documents = sum(f.tokens for f in files), sum(f.documents for f in files)
            shards = files[0].name if len(files) == 1 else f"{files[0].name} ... {files[-1].name}"
            rows.append((name, f"{tokens:,} tokens, {plural(documents, 'document')} in {shards}"))
    name = manifest.tokenizer["name"]
    rows += [
        (
            "tokenizer",
            f"{name}, {manifest.tokenizer['vocab_size']:,} ids, {manifest.tokenizer['fingerprint']}",
        ),
        ("layout", f"{manifest.layout}, {manifest.dtype}, {_between(manifest)}"),
        ("bad rows", f"{manifest.bad_rows:,}"),
        ("size", f"{sum(f.bytes for f in manifest.files) / 1e6:,.1f} MB"),
    ]
    if not result.already_complete:
        rows.append(("time", f"{duration(elapsed_s)}{' (continued)' if result.continued else ''}"))
    show_bad_rows(manifest.bad_rows, result.bad_rows)
    console.facts(f"Corpus in {result.folder}", rows)


def _between(manifest: CorpusManifest) -> str:
    """``end-of-text prepend``: the token between documents and where it stands."""
    return f"{'beginning' if manifest.separator == 'bos' else 'end'}-of-text {manifest.eot}"


def _show_report(report: VerifyReport) -> None:
    columns = ("file", "layout", "dtype", "tokens", "documents", "largest id")
    rows = [
        (
            file.name,
            file.layout,
            file.dtype,
            f"{file.tokens:,}",
            "" if file.documents is None else f"{file.documents:,}",
            f"{file.largest_id:,}",
        )
        for file in report.files
    ]
    if rows:
        console.table(str(report.path), columns, rows, right=columns[3:])
    for name, text in report.documents:
        console.say(f"{name}: {text!r}")
    for line in report.warnings:
        console.warn(line)
    for line in report.problems:
        console.warn(f"PROBLEM {line}")
    if report.problems:
        console.say(f"{plural(len(report.problems), 'problem')} found")
    elif report.hashed:
        console.say(f"ok: {report.hashed} files match the manifest")
    else:
        console.say("no problem found (there is no manifest to compare with)")
