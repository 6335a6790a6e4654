"""``automodel preprocess megatron``: flags by the names that Megatron's and NeMo's tools have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from automodel_cli.cli import console, worker
from automodel_cli.cli.preprocess_bars import Bars, duration, show_bad_rows
from automodel_cli.cli.preprocess_shuffle import InputFormat, MaxDocumentBytes
from automodel_cli.config.load import load_config
from automodel_cli.config.schema_megatron import PreprocessMegatronConfig

if TYPE_CHECKING:
    from automodel_cli.recipes.preprocess_megatron import MegatronResult

_INPUT, _TOKENS, _OUTPUT, _SPEED = "Input", "Tokens", "Output", "Speed"
_LIST_OPTIONS = ("--json-keys", "--input")


class ListsOfWords(TyperCommand):
    """Takes ``--json-keys a b c`` (as argparse's nargs="+" does, and as a shell expands a pattern) for one list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """One option a word, which is what the parser knows."""
        return super().parse_args(ctx, repeat_options(args))


def repeat_options(args: list[str]) -> list[str]:
    """``--json-keys a b`` -> ``--json-keys a --json-keys b``."""
    repeated: list[str] = []
    option, first = "", False
    for arg in args:
        if arg.startswith("-"):
            option, first = (arg, True) if arg in _LIST_OPTIONS else ("", False)
        elif option and not first:
            repeated.append(option)
        else:
            first = False
        repeated.append(arg)
    return repeated


def megatron(
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="Files, folders or globs, read in order of name.", rich_help_panel=_INPUT
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub dataset to stream, instead of --input.", rich_help_panel=_INPUT)
    ] = None,
    set_name: Annotated[
        str | None, typer.Option(help="Configuration of a Hub dataset.", rich_help_panel=_INPUT)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a Hub dataset (default: train).", rich_help_panel=_INPUT)
    ] = None,
    json_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--json-keys", help="Fields with text; files for each (default: text).", rich_help_panel=_INPUT
        ),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(
            help="What a document is in text files: file (default), line, or a delimiter.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    input_format: InputFormat = None,
    max_document_bytes: MaxDocumentBytes = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Stop at the first bad row.", rich_help_panel=_INPUT)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--pretrained-model-name-or-path",
            "--tokenizer",
            help="Hugging Face id or folder, tiktoken name (default: gpt2), or byte.",
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    append_eod: Annotated[
        bool | None,
        typer.Option("--append-eod", help="End-of-text after each document.", rich_help_panel=_TOKENS),
    ] = None,
    special_tokens: Annotated[
        str | None,
        typer.Option(
            help="Special tokens spelled out in documents: text (default), or parse as Hugging Face does.",
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    add_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--add-special-tokens/--no-add-special-tokens",
            help="Those that the tokenizer itself puts around a text, as <s> (default: with them).",
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    split_sentences: Annotated[
        bool | None,
        typer.Option(
            "--split-sentences", help="Sentences by nltk, a sequence each.", rich_help_panel=_TOKENS
        ),
    ] = None,
    keep_newlines: Annotated[
        bool | None,
        typer.Option("--keep-newlines", help="Keep the white space between them.", rich_help_panel=_TOKENS),
    ] = None,
    lang: Annotated[
        str | None,
        typer.Option(help="Language of --split-sentences (default: english).", rich_help_panel=_TOKENS),
    ] = None,
    skip_empty: Annotated[
        bool | None,
        typer.Option(
            "--skip-empty", help="Leave empty documents out; Megatron keeps them.", rich_help_panel=_TOKENS
        ),
    ] = None,
    output_prefix: Annotated[
        str | None,
        typer.Option(help="What file names begin with (default: processed_data).", rich_help_panel=_OUTPUT),
    ] = None,
    output_path: Annotated[
        str | None, typer.Option("--output-path", "-o", help="Folder to write.", rich_help_panel=_OUTPUT)
    ] = None,
    max_tokens: Annotated[
        str | None,
        typer.Option(
            "--max-tokens",
            "-m",
            help="Tokens to write, exactly: 500K, 10B (default: all).",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(help="Files to make, about equal (default: one an input).", rich_help_panel=_OUTPUT),
    ] = None,
    shard_tokens: Annotated[
        str | None, typer.Option(help="Tokens a file holds at most, instead.", rich_help_panel=_OUTPUT)
    ] = None,
    shuffle: Annotated[
        bool | None, typer.Option("--shuffle", help="Documents in random order.", rich_help_panel=_OUTPUT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of --shuffle (default: 42).", rich_help_panel=_OUTPUT)
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite", help="Replace files with this prefix.", rich_help_panel=_OUTPUT),
    ] = None,
    dry_run: Annotated[
        bool | None,
        typer.Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=_OUTPUT),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--num-workers",
            help="Processes that tokenize (default: as many as pay).",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Documents a task (default: 256).", rich_help_panel=_SPEED)
    ] = None,
    prefetch: Annotated[
        int | None, typer.Option(help="Tasks under way a worker (default: 4).", rich_help_panel=_SPEED)
    ] = None,
    shuffle_memory: Annotated[
        str | None,
        typer.Option(help="Bytes to hold while shuffling: 200M, 2G (default: 500M).", rich_help_panel=_SPEED),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What encodes: auto (default), reference or fast.", rich_help_panel=_SPEED),
    ] = None,
    log_interval: Annotated[int | None, typer.Option(hidden=True)] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Text to Megatron-Core's indexed token files (.bin and .idx), for example

    --input "data/chunk.*.jsonl" --output-path out --append-eod --pretrained-model-name-or-path openai-community/gpt2
    """
    given = {name: value for name, value in locals().items() if name != "config"}
    flags = {name: value for name, value in given.items() if value not in (None, [], ())}
    cfg = load_config(PreprocessMegatronConfig, config, flags=flags)
    for note in cfg.collect_notes():
        console.warn(note)

    worker.starting("preprocess megatron: opening tokenizer and input ...")
    from automodel_cli.recipes import preprocess_megatron as recipe

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
        counts = f"{tokens:,} tokens, {documents:,} documents"
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
