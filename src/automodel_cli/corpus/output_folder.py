"""The folder of a corpus while it is made: what is in it, may it be used, and the last step that makes it whole."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.corpus_writer import CorpusLayout, state_is_on_disk
from automodel_cli.corpus.journal import PROGRESS_NAME, Position, read_progress, remove_progress
from automodel_cli.corpus.manifest import (
    MANIFEST_NAME,
    CorpusFile,
    CorpusManifest,
    Split,
    describe_file,
    read_corpus_manifest,
    write_corpus_manifest,
)
from automodel_cli.corpus.nanogpt_bin import ShardFacts, bos_index_path
from automodel_cli.corpus.shuffle import FOLDER_NAME as SHUFFLE_FOLDER
from automodel_cli.corpus.tokenizer import CharTokenizer, Tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import atomic_file, fsync_folder

LOCK_NAME = ".lock"
TOKENIZER_FOLDER = "tokenizer"
META_NAME = "meta.pkl"
_SHARD_PATTERN = re.compile(r"(dataset|train|val)(_\d{5})?\.(bin|bos\.idx)(\.tmp)?")
_OTHER_NAMES = frozenset(
    name + suffix for name in (MANIFEST_NAME, PROGRESS_NAME, META_NAME) for suffix in ("", ".tmp")
)


def clear(folder: Path) -> None:
    """Remove what runs of this tool write, the manifest first, so that it never speaks of files that are gone."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    fsync_folder(folder)
    for path in folder.iterdir():
        if _SHARD_PATTERN.fullmatch(path.name) or path.name in _OTHER_NAMES:
            path.unlink()
    for name in (TOKENIZER_FOLDER, SHUFFLE_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)


def finished_corpus(
    folder: Path, options: dict[str, Any], source: dict[str, Any], tokenizer: Tokenizer
) -> CorpusManifest | None:
    """The manifest of a complete corpus made just so; None if there is none yet.

    Raises:
        ConfigError: it was made in another way.
        DataError: its manifest or a file is damaged or missing.
    """
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = read_corpus_manifest(folder)
    made = {"options": manifest.options, "source": manifest.source, "tokenizer": manifest.tokenizer}
    asked = {"options": options, "source": source, "tokenizer": tokenizer.describe()}
    if made != asked:
        raise ConfigError(
            f"{folder} holds a corpus made in another way: {difference(made, asked)}",
            "use another --output-dir, or --overwrite to replace it",
        )
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise DataError(
                f"{path} is missing or has another size than the manifest says", "use --overwrite"
            )
    (folder / PROGRESS_NAME).unlink(missing_ok=True)  # killed between the two
    return manifest


def difference(made: dict[str, Any], asked: dict[str, Any]) -> str:
    """``max_tokens 100 -> 200, ...``: where two nested plans differ."""
    parts = []
    for section in made:
        for key in sorted(set(made[section]) | set(asked[section])):
            old, new = made[section].get(key), asked[section].get(key)
            if old != new:
                parts.append(f"{key} {old} -> {new}")
    return ", ".join(parts) or "in no option"


def interrupted_position(
    folder: Path, plan: dict[str, Any], layout: CorpusLayout, say: Callable[[str], None]
) -> Position | None:
    """Where an interrupted run of the same plan stopped, or None to begin; clears what cannot be continued.

    Raises:
        ConfigError: the folder holds an interrupted run of another plan, or files that are not ours.
    """
    if not (folder / PROGRESS_NAME).exists():
        foreign = sorted(path.name for path in folder.iterdir() if _SHARD_PATTERN.fullmatch(path.name))
        if foreign:
            raise ConfigError(
                f"{folder} holds {foreign[0]} but no manifest of ours",
                "use another --output-dir, or --overwrite to replace it",
            )
        return None
    found = read_progress(folder)
    if found is None:
        say(f"{folder / PROGRESS_NAME} is damaged: starting over")
        clear(folder)
        return None
    made, position = found
    if made != plan:
        raise ConfigError(
            f"{folder} holds an interrupted run made in another way: {difference(made, plan)}",
            "use another --output-dir, or --overwrite to start over",
        )
    if position.writer is not None and not state_is_on_disk(layout, position.writer):
        say(f"files of the interrupted run in {folder} are gone: starting over")
        clear(folder)
        return None
    if position.cursor is None:
        return None
    say(f"continuing the interrupted run in {folder}")
    return position


def publish_manifest(
    layout: CorpusLayout,
    shards: dict[Split, list[ShardFacts]],
    *,
    tokenizer: Tokenizer,
    eot: str,
    bad_rows: int,
    source: dict[str, Any],
    options: dict[str, Any],
) -> CorpusManifest:
    """Hash every file, write ``meta.pkl`` and the manifest; from then on the corpus is complete."""
    folder = layout.folder
    if isinstance(tokenizer, CharTokenizer):
        _write_meta(folder / META_NAME, tokenizer)
    everything = [facts for group in shards.values() for facts in group]
    manifest = CorpusManifest(
        folder=folder,
        layout="raw" if layout.layout == "raw" else "bin",
        dtype=layout.dtype.name,  # type: ignore[arg-type]
        eot=eot,  # type: ignore[arg-type]
        tokenizer=tokenizer.describe(),
        documents=sum(facts.num_documents for facts in everything),
        tokens=sum(facts.num_tokens for facts in everything),
        bad_rows=bad_rows,
        files=tuple(_corpus_files(folder, shards)),
        source=source,
        options=options,
        versions={"automodel": __version__},
    )
    write_corpus_manifest(manifest)
    remove_progress(folder)
    for path in folder.glob("*.tmp"):
        if _SHARD_PATTERN.fullmatch(path.name) or path.name in _OTHER_NAMES:
            path.unlink()  # left by a run that was killed while it wrote it
    return manifest


def _corpus_files(folder: Path, shards: dict[Split, list[ShardFacts]]) -> list[CorpusFile]:
    files = []
    for split, group in shards.items():
        for facts in group:
            counts = {"tokens": facts.num_tokens, "documents": facts.num_documents}
            files.append(describe_file(folder, facts.path.name, "tokens", split, **counts))
            index = bos_index_path(facts.path).name
            files.append(describe_file(folder, index, "bos_index", split, documents=facts.num_documents))
    for path in sorted((folder / TOKENIZER_FOLDER).iterdir()):
        if path.suffix != ".tmp" and not path.name.startswith("."):
            files.append(describe_file(folder, f"{TOKENIZER_FOLDER}/{path.name}", "tokenizer"))
    if (folder / META_NAME).exists():
        files.append(describe_file(folder, META_NAME, "meta"))
    return files


def _write_meta(path: Path, tokenizer: CharTokenizer) -> None:
    """What nanoGPT's sample.py and train.py read. We never read it: unpickling a file is running it."""
    itos = dict(enumerate(tokenizer.characters))
    stoi = {character: index for index, character in itos.items()}
    with atomic_file(path) as handle:
        pickle.dump({"vocab_size": tokenizer.vocab_size, "itos": itos, "stoi": stoi}, handle, protocol=4)
