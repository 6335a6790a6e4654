"""Configuration file to start from, filled in for the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from automodel_cli.config.presets import describe_presets, filled_in
from automodel_cli.corpus.formats.manifest import CorpusManifest, find_manifest, read_corpus_manifest
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.plain_text import command_line, for_shell


def run(
    preset: str | None,
    output: Path | None,
    data: str | None,
    validation: str | None,
    *,
    say: Callable[[str], None],
) -> None:
    """List the presets, or write one; a file that is there is never written over.

    Raises:
        ConfigError: no such preset, or the file is there already.
        DataError: the data is a file that holds no tokens.
    """
    if preset is None:
        for name, line in describe_presets().items():
            say(f"{name:17} {line}")
        say("\nautomodel init gpt2-small --data train.bin -o run.yaml   writes one of them for your data")
        return
    path = output or Path(f"{preset}.yaml")
    for name in filter(None, (data, validation)):
        _refuse_other_files(Path(name))
    manifest = None if data is None else _manifest(Path(data))
    vocabulary = None if manifest is None else manifest.tokenizer["vocab_size"]
    if manifest is not None and validation is None and (files := manifest.token_files("val")):
        validation = str(manifest.path(files[0]))
    _write(path, filled_in(preset, for_shell(path), data, validation, vocabulary))
    start = command_line(["automodel", path])
    fill_in = "" if data else "fill in dataset.file_pattern; "
    say(f"wrote {path}; {fill_in}{start} --dry-run shows the plan, {start} trains")


def _refuse_other_files(data: Path) -> None:
    """Check a file that is there already; its type, where it has no header, is for the configuration to say."""
    if data.is_file() and data.suffix != ".npy" and not inspect_token_file(data, raw_dtype="uint16").num_tokens:
        raise DataError(
            f"{data} is empty, expected a file of token ids",
            "its writer may have been stopped: make or copy it again; automodel preprocess nanogpt makes such files",
        )


def _manifest(data: Path) -> CorpusManifest | None:
    """What is known of the data, where `preprocess nanogpt` made it."""
    return read_corpus_manifest(data) if data.is_dir() else find_manifest(data)


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} already exists", "name another file with -o, or remove it") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "name another file with -o") from None
