"""``automodel preprocess``: nanogpt (text to token files), tokenizer (train a BPE), verify; megatron is beside this."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.cli import console, preprocess_index, preprocess_shuffle, worker
from automodel_cli.cli.preprocess_bars import Bars, duration, show_bad_rows
from automodel_cli.cli.preprocess_megatron import ListsOfWords, megatron
from automodel_cli.config.load import load_config
from automodel_cli.config.schema_preprocess import (
    PreprocessNanogptConfig,
    TokenizerTrainConfig,
    VerifyConfig,
)
from automodel_cli.plain_text import for_shell

if TYPE_CHECKING:
    from automodel_cli.corpus.manifest import CorpusManifest
    from automodel_cli.recipes.preprocess import PreprocessResult
    from automodel_cli.recipes.verify import VerifyReport

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Text to token files: nanogpt, megatron, shuffle, index, tokenizer, verify.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("megatron", cls=ListsOfWords)(megatron)

app.command("shuffle")(preprocess_shuffle.shuffle)

app.command(
    "index",
    context_settings=preprocess_index.TAKES_OVERRIDES,
    options_metavar=preprocess_index.USAGE,
    epilog=preprocess_index.EPILOG,
)(preprocess_index.index)

_INPUT, _OUTPUT, _SPEED = "Input", "Output", "Speed"
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")]
Dataset = Annotated[
    str | None,
    typer.Option(help="Hub dataset, or a local file, folder or glob.", rich_help_panel=_INPUT),
]
SetName = Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.", rich_help_panel=_INPUT)]
Split = Annotated[
    str | None, typer.Option(help="Split of a Hub dataset (default: train).", rich_help_panel=_INPUT)
]
TextKey = Annotated[
    str | None, typer.Option(help="Field or column with the text (default: text).", rich_help_panel=_INPUT)
]
Document = Annotated[
    str | None,
    typer.Option(
        help="What a document is in text files: file (default), line, or a delimiter such as '\\n\\n'.",
        rich_help_panel=_INPUT,
    ),
]
InputFormat = preprocess_shuffle.InputFormat
MaxDocumentBytes = preprocess_shuffle.MaxDocumentBytes
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", "-o", help="Folder to write.", rich_help_panel=_OUTPUT)
]
Overwrite = Annotated[
    bool | None,
    typer.Option("--overwrite", help="Replace what is in the folder.", rich_help_panel=_OUTPUT),
]


@app.command()
def nanogpt(
    dataset: Dataset = None,
    set_name: SetName = None,
    split: Split = None,
    text_key: TextKey = None,
    document: Document = None,
    input_format: InputFormat = None,
    max_document_bytes: MaxDocumentBytes = None,
    max_tokens: Annotated[
        str | None,
        typer.Option(
            "--max-tokens",
            "-m",
            help="Tokens to write, exactly: 500K, 500M, 10B (default: all).",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="gpt2 (default), another tiktoken name, a Hugging Face id or folder, byte, or char.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    output_dir: OutputDir = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="bin (with header, default) or raw (nanoGPT's).", rich_help_panel=_OUTPUT
        ),
    ] = None,
    eot: Annotated[
        str | None,
        typer.Option(
            help="Token between documents: prepend (default in bin), append (in raw) or none.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            help="Which token: eos, or bos (default before documents where the tokenizer has its own).",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Part of the documents for val.bin.", rich_help_panel=_OUTPUT)
    ] = None,
    val_tokens: Annotated[
        str | None, typer.Option(help="Tokens for val.bin, instead of a fraction.", rich_help_panel=_OUTPUT)
    ] = None,
    shard_tokens: Annotated[
        str | None, typer.Option(help="Tokens a file holds (default: 1B).", rich_help_panel=_OUTPUT)
    ] = None,
    shuffle: Annotated[
        bool | None, typer.Option("--shuffle", help="Documents in random order.", rich_help_panel=_OUTPUT)
    ] = None,
    shuffle_memory: Annotated[
        str | None,
        typer.Option(help="Memory --shuffle may take (default: 500M).", rich_help_panel=_SPEED),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of --shuffle and of the validation split.", rich_help_panel=_OUTPUT)
    ] = None,
    overwrite: Overwrite = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Stop at the first bad row.", rich_help_panel=_INPUT)
    ] = None,
    dry_run: Annotated[
        bool | None,
        typer.Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=_OUTPUT),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(help="Processes that tokenize (default: as many as pay).", rich_help_panel=_SPEED),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Documents a task (default: 256).", rich_help_panel=_SPEED)
    ] = None,
    prefetch: Annotated[
        int | None, typer.Option(help="Tasks under way a worker (default: 4).", rich_help_panel=_SPEED)
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What encodes: auto (default), reference or fast.", rich_help_panel=_SPEED),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Text to nanoGPT-style token files.

    Without options: FineWeb (sample-10BT) from the Hugging Face Hub with GPT-2's tokenizer.
    """
    flags = {
        "dataset": dataset,
        "set_name": set_name,
        "split": split,
        "text_key": text_key,
        "document": document,
        "input_format": input_format,
        "max_document_bytes": max_document_bytes,
        "max_tokens": max_tokens,
        "tokenizer": tokenizer,
        "output_dir": output_dir,
        "format": output_format,
        "eot": eot,
        "separator": separator,
        "val_fraction": val_fraction,
        "val_tokens": val_tokens,
        "shard_tokens": shard_tokens,
        "shuffle": shuffle,
        "shuffle_memory": shuffle_memory,
        "seed": seed,
        "overwrite": overwrite,
        "strict": strict,
        "dry_run": dry_run,
        "num_workers": num_workers,
        "chunk_size": chunk_size,
        "prefetch": prefetch,
        "engine": engine,
    }
    cfg = load_config(PreprocessNanogptConfig, config, flags=flags)

    worker.starting("preprocess nanogpt: opening tokenizer and input ...")
    from automodel_cli.recipes import preprocess as recipe

    started_s = time.monotonic()
    with Bars() as bars:
        result = recipe.run(cfg, progress=bars, say=console.say)
    if result.manifest is not None:
        _show_corpus(result, time.monotonic() - started_s)


@app.command()
def tokenizer(
    dataset: Dataset = None,
    vocab_size: Annotated[
        str | None, typer.Option(help="Entries (default: 32768).", rich_help_panel=_OUTPUT)
    ] = None,
    output_dir: OutputDir = None,
    set_name: SetName = None,
    split: Split = None,
    text_key: TextKey = None,
    document: Document = None,
    input_format: InputFormat = None,
    max_document_bytes: MaxDocumentBytes = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            help="Text to learn from, drawn at random of more (default: 1B).", rich_help_panel=_INPUT
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides what is drawn.", rich_help_panel=_INPUT)] = None,
    overwrite: Overwrite = None,
    config: ConfigFile = None,
) -> None:
    """Train a byte-level BPE on your own text; AutoTokenizer opens the result."""
    flags = {
        "dataset": dataset,
        "vocab_size": vocab_size,
        "output_dir": output_dir,
        "set_name": set_name,
        "split": split,
        "text_key": text_key,
        "document": document,
        "input_format": input_format,
        "max_document_bytes": max_document_bytes,
        "max_bytes": max_bytes,
        "seed": seed,
        "overwrite": overwrite,
    }
    cfg = load_config(TokenizerTrainConfig, config, flags=flags)

    worker.starting("preprocess tokenizer: opening input ...")
    from automodel_cli.recipes import train_tokenizer as recipe

    with Bars() as bars:
        result = recipe.run(cfg, progress=bars, say=console.say)
    rows = [
        ("entries", f"{result.tokenizer.vocab_size:,}"),
        ("learned from", f"{result.documents:,} documents, {result.text_bytes / 1e6:,.1f} MB"),
        ("bytes per token", f"{result.bytes_per_token:.2f}"),
        ("fingerprint", result.tokenizer.fingerprint()),
        ("use it with", f"automodel preprocess nanogpt --tokenizer {for_shell(result.folder)}"),
    ]
    show_bad_rows(len(result.bad_rows), result.bad_rows)
    console.facts(f"Tokenizer in {result.folder}", rows)


@app.command()
def verify(
    path: Annotated[
        str | None,
        typer.Argument(help="Corpus folder, token file, or prefix of a .bin and .idx; ours or others'."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer to check and decode with where there is no manifest.")
    ] = None,
    raw_dtype: Annotated[
        str | None, typer.Option(help="Type of a file without header: uint16 (default), uint32 or npy.")
    ] = None,
    documents: Annotated[int | None, typer.Option(help="Documents to show (default: 2).")] = None,
    config: ConfigFile = None,
) -> None:
    """Check headers, sizes, hashes, ids and document index of token files; show the first documents.

    Understands dataset.bin (ours, NeMo's, nanoGPT's), .bin with .idx (ours, Megatron's, NeMo's, datatrove's), and
    folders of shuffled documents.
    """
    flags = {"path": path, "tokenizer": tokenizer, "raw_dtype": raw_dtype, "documents": documents}
    cfg = load_config(VerifyConfig, config, flags=flags)

    from automodel_cli.recipes import verify as recipe

    with console.Progress("hashing", unit="bytes") as progress:
        report = recipe.run(cfg, progress=progress)
    _show_report(report)
    if report.problems:
        raise typer.Exit(1)


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
            rows.append((name, f"{tokens:,} tokens, {documents:,} documents in {shards}"))
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
        count = len(report.problems)
        console.say(f"{count} problem{'s' if count > 1 else ''} found")
    elif report.hashed:
        console.say(f"sound: {report.hashed} files match the manifest")
    else:
        console.say("no problem found (there is no manifest to compare with)")
