"""``automodel preprocess``: text to token files of either kind, documents in random order, a BPE of one's own, checks.

Flags of ``megatron`` go by the names that Megatron's and NeMo's tools have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.options import command, show_json
from automodel_cli.cli.preprocess.bars import Bars, show_bad_rows
from automodel_cli.config.schema.chat import PreprocessChatConfig
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.preprocess import (
    PreprocessNanogptConfig,
    TokenizerTrainConfig,
    VerifyConfig,
)
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.plain_text import for_shell
from automodel_cli.text import duration, plural

if TYPE_CHECKING:
    from automodel_cli.corpus.formats.manifest import CorpusManifest, TokenManifest
    from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
    from automodel_cli.corpus.formats.verify_report import VerifyReport
    from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest

Rows = list[tuple[str, str]]


@command(
    PreprocessNanogptConfig,
    examples=(
        "automodel preprocess nanogpt --dataset notes.txt --val-fraction 0.05 --output-dir data",
        "automodel preprocess nanogpt --max-tokens 500M",
    ),
)
def nanogpt(cfg: PreprocessNanogptConfig, context: typer.Context) -> None:
    """Turn text into nanoGPT-style token files.

    Without options: FineWeb (sample-10BT) from the Hugging Face Hub with GPT-2's tokenizer.
    """
    worker.starting("preprocess nanogpt: opening tokenizer and input ...")
    from automodel_cli.recipes.preprocess import nanogpt as recipe

    _make(_with_arguments(recipe.run, context), cfg, "Corpus", _corpus_rows)


@command(
    PreprocessMegatronConfig,
    examples=(
        "automodel preprocess megatron --input 'text/*.jsonl' --output-path tokens --append-eod",
        "automodel preprocess megatron --input a.jsonl b.jsonl --json-keys text title --tokenizer byte",
    ),
)
def megatron(cfg: PreprocessMegatronConfig, context: typer.Context) -> None:
    """Text to Megatron-Core's indexed token files (.bin and .idx).

    Options go by the names that Megatron's and NeMo's tools have; those of several values take them side by side.
    """
    worker.starting("preprocess megatron: opening tokenizer and input ...")
    from automodel_cli.recipes.preprocess import megatron as recipe

    _make(_with_arguments(recipe.run, context), cfg, "Megatron files", _megatron_rows)


@command(
    PreprocessChatConfig,
    examples=(
        "automodel preprocess chat --mixture configs/task_mixture.yaml --output-dir chat_data",
        "automodel preprocess chat --dataset chats.jsonl --val-fraction 0.05 --tokenizer data/tokenizer",
    ),
)
def chat(cfg: PreprocessChatConfig) -> None:
    """Turn conversations and instructions into token files, with a mask of what is learned.

    Tasks are mixed as a YAML file says: public data sets by name, and your own conversations.
    """
    worker.starting("preprocess chat: opening tokenizer and tasks ...")
    from automodel_cli.corpus.formats.conversation_files import count_by_task
    from automodel_cli.recipes.preprocess import chat as recipe

    manifest = _make(recipe.run, cfg, "Conversations", _conversation_rows)
    if manifest is None:
        return
    counts = count_by_task(manifest)
    totals = {split: sum(one.examples for one in counts if one.split == split) for split in ("train", "val")}
    columns = ("split", "task", "examples", "share", "tokens", "learned", "of tokens")
    rows = [
        (
            one.split,
            one.task,
            f"{one.examples:,}",
            f"{one.examples / totals[one.split]:.1%}",
            f"{one.tokens:,}",
            f"{one.learned:,}",
            f"{one.learned / max(1, one.tokens):.1%}",
        )
        for one in counts
    ]
    console.table("Examples by task", columns, rows, right=columns[2:])


@command(
    ShuffleConfig,
    examples=(
        "automodel preprocess shuffle --dataset 'text/*.jsonl' --output-dir shuffled",
        "automodel preprocess shuffle --dataset text --chunks 8 --val-documents 1000 --memory 16G",
    ),
)
def shuffle(cfg: ShuffleConfig, context: typer.Context) -> None:
    """Documents in random order: .jsonl, .parquet or text files to .jsonl files.

    The order depends on the seed and the files alone: not on memory, processes, or how a folder is listed.
    """
    worker.starting("preprocess shuffle: opening input ...")
    from automodel_cli.recipes.preprocess import shuffle as recipe

    _make(_with_arguments(recipe.run, context), cfg, "Documents", _document_rows, speed=True)


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


def _with_arguments(run: Callable[..., Any], context: typer.Context) -> Callable[..., Any]:
    """A recipe whose work may run elsewhere, by the same command line."""
    return partial(run, arguments=Invocation.of(context).of_workers)


def _make(run: Callable[..., Any], cfg: Any, title: str, rows_of: Callable[[Any], Rows], *, speed: bool = False) -> Any:
    """Run a recipe that makes files, with bars of progress, and show what they are; their manifest, if it was made."""
    started_s = time.monotonic()
    with Bars() as bars:
        result = run(cfg, progress=bars, say=console.say)
    if result.manifest is None:
        return None
    elapsed_s, rows = time.monotonic() - started_s, rows_of(result.manifest)
    if not result.already_complete:
        size = sum(bytes for _, bytes in result.manifest.listed())
        more = f", {size / max(elapsed_s, 1e-6) / 1e6:,.0f} MB/s" if speed else ""
        rows.append(("time", f"{duration(elapsed_s)}{' (continued)' if result.continued else ''}{more}"))
    show_bad_rows(result.manifest.bad_rows, result.bad_rows)
    console.facts(f"{title} in {result.folder}", rows)
    return result.manifest


def _conversation_rows(manifest: CorpusManifest) -> Rows:
    learned = sum(file.tokens for file in manifest.files if file.role == "mask")
    conversations = plural(manifest.documents, "conversation")
    rows = [("files", f"{conversations}, {manifest.tokens:,} tokens, {learned:,} of them learned")]
    return rows + _token_rows(manifest, f"{manifest.options['format']}, {manifest.dtype}")


def _corpus_rows(manifest: CorpusManifest) -> Rows:
    rows = []
    for split, name in (("train", "train"), ("val", "validation")):
        files = manifest.token_files(split)  # type: ignore[arg-type]
        if files:
            tokens, documents = sum(f.tokens for f in files), sum(f.documents for f in files)
            names = _first_and_last([file.name for file in files])
            rows.append((name, f"{tokens:,} tokens, {plural(documents, 'document')} in {names}"))
    between = f"{'beginning' if manifest.separator == 'bos' else 'end'}-of-text {manifest.eot}"
    return rows + _token_rows(manifest, f"{manifest.layout}, {manifest.dtype}, {between}")


def _megatron_rows(manifest: MegatronManifest) -> Rows:
    rows = []
    for key in manifest.keys:
        pairs = [pair for pair in manifest.pairs if pair.key == key]
        tokens, documents = sum(pair.tokens for pair in pairs), sum(pair.documents for pair in pairs)
        counts = f"{tokens:,} tokens, {plural(documents, 'document')}"
        if (sequences := sum(pair.sequences for pair in pairs)) != documents:
            counts += f", {sequences:,} sequences"
        place = _first_and_last([pair.name for pair in pairs]) + f" ({len(pairs):,})" * (len(pairs) > 1)
        rows.append((key, f"{counts} in {place}" if pairs else "no tokens"))
    eod = "no end-of-document" if manifest.eod_id is None else f"end-of-document {manifest.eod_id}"
    return rows + _token_rows(manifest, f"{manifest.dtype}, {eod}")


def _token_rows(manifest: TokenManifest, layout: str) -> Rows:
    told = manifest.tokenizer
    return [
        ("tokenizer", f"{told['name']}, {told['vocab_size']:,} ids, {told['fingerprint']}"),
        ("layout", layout),
        ("bad rows", f"{manifest.bad_rows:,}"),
        ("size", f"{sum(bytes for _, bytes in manifest.listed()) / 1e6:,.1f} MB"),
    ]


def _document_rows(manifest: DocumentsManifest) -> Rows:
    rows = []
    for split, title in (("train", "train"), ("val", "validation")):
        if files := manifest.of_split(split):  # type: ignore[arg-type]
            documents, size = sum(file.documents for file in files), sum(file.bytes for file in files)
            names = _first_and_last([file.name for file in files])
            rows.append((title, f"{plural(documents, 'document')}, {size / 1e6:,.1f} MB in {names}"))
    if manifest.duplicates is not None:
        rows.append(("duplicates", f"{manifest.duplicates:,} left out"))
    return [*rows, ("bad rows", f"{manifest.bad_rows:,}"), ("order", f"seed {manifest.options['seed']}")]


def _first_and_last(names: list[str]) -> str:
    return f"{names[0]} ... {names[-1]}" if len(names) > 1 else "".join(names)


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
