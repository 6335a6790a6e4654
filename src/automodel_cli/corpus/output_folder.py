"""The folder of a corpus while it is made: what is in it, may it be used, and the last step that makes it whole."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.buckets import BUCKET_FILES
from automodel_cli.corpus.corpus_writer import CorpusLayout, state_is_on_disk
from automodel_cli.corpus.journal import FORMAT as JOURNAL_FORMAT
from automodel_cli.corpus.journal import (
    PROGRESS_NAME,
    Position,
    read_progress,
    remove_progress,
    write_progress,
)
from automodel_cli.corpus.manifest import FORMAT as MANIFEST_FORMAT
from automodel_cli.corpus.manifest import (
    MANIFEST_NAME,
    CorpusFile,
    CorpusManifest,
    Separator,
    Split,
    describe_file,
    read_corpus_manifest,
    write_corpus_manifest,
)
from automodel_cli.corpus.nanogpt_bin import ShardFacts, bos_index_path
from automodel_cli.corpus.ownership import (
    TOKENIZER_FILES,
    is_ours,
    refuse,
    remove_mine,
    strange_tokenizer,
    strangers,
)
from automodel_cli.corpus.shuffle import FOLDER_NAME as SHUFFLE_FOLDER
from automodel_cli.corpus.shuffle import remove_buckets
from automodel_cli.corpus.tokenizer import CharTokenizer, Tokenizer
from automodel_cli.corpus.tokenizer_base import SAVED_FILES
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import (
    ANY_TEMPORARY,
    TEMP_SUFFIX,
    atomic_file,
    fsync_folder,
    remove_known,
    strangers_below,
)

LOCK_NAME = ".lock"
TOKENIZER_FOLDER = "tokenizer"
META_NAME = "meta.pkl"


def _names(stems: str, *, meta: bool) -> re.Pattern[str]:
    """Files that a run writes whose shards begin with one of ``stems``."""
    others = [MANIFEST_NAME, PROGRESS_NAME, *([META_NAME] if meta else [])]
    fixed = "|".join(map(re.escape, others))
    return re.compile(rf"(({stems})(_\d{{5}})?\.(bin|bos\.idx)|{fixed}){ANY_TEMPORARY}")


_ALL_NAMES = _names("dataset|train|val", meta=True)


def _names_of_plan(plan: dict[str, Any] | None) -> re.Pattern[str]:
    """Files that the run of ``plan`` writes; of an unknown one, that any run may write."""
    form = plan["options"].get("format") if plan else None
    if plan is None or form not in ("bin", "raw"):
        return _ALL_NAMES
    stem = "train" if form == "raw" else "dataset"
    return _names(f"{stem}|val", meta=plan["tokenizer"].get("name") == CharTokenizer.name)


@dataclass(frozen=True)
class _Ours:
    """What in a folder is ours: what a manifest lists, and what a run under way writes."""

    listed: frozenset[str]
    begun: re.Pattern[str] | None

    @staticmethod
    def find(folder: Path) -> _Ours:
        listed: set[str] = set()
        begun = None
        if is_ours(folder / MANIFEST_NAME, MANIFEST_FORMAT):
            try:
                listed = {MANIFEST_NAME, *(file.name for file in read_corpus_manifest(folder).files)}
            except DataError:
                begun = _ALL_NAMES
        if is_ours(folder / PROGRESS_NAME, JOURNAL_FORMAT):
            found = read_progress(folder)
            begun = _names_of_plan(found and found[0])
        return _Ours(frozenset(listed), begun)

    def __bool__(self) -> bool:
        return bool(self.listed) or self.begun is not None

    def __call__(self, name: str) -> bool:
        return name in self.listed or (self.begun is not None and self.begun.fullmatch(name) is not None)


def refuse_strangers(layout: CorpusLayout, tokenizer: Tokenizer) -> None:
    """Before anything is written or removed: nothing that others made may stand where this run writes.

    Raises:
        ConfigError: something does.
    """
    folder, ours = layout.folder, _Ours.find(layout.folder)
    written = _names(f"{layout.stem('train')}|val", meta=isinstance(tokenizer, CharTokenizer))
    refuse(strangers(folder, written, ours))
    refuse(strange_tokenizer(folder / TOKENIZER_FOLDER, tokenizer, ours=bool(ours)))
    refuse(strangers_below(folder / SHUFFLE_FOLDER, BUCKET_FILES))


def clear(folder: Path, *, keep_tokenizer: bool = False) -> None:
    """Remove what runs of ours left, the manifest first, so that it never speaks of files that are gone.

    A journal stands meanwhile: where this is interrupted, the next run knows the rest for ours.
    """
    ours = _Ours.find(folder)
    if not ours:
        return
    if not (folder / PROGRESS_NAME).exists():
        with contextlib.suppress(AutomodelError):  # no room for it
            write_progress(folder, _plan_of_manifest(folder), Position())
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    fsync_folder(folder)
    remove_mine(folder, _ALL_NAMES, lambda name: name != PROGRESS_NAME and ours(name))
    if not keep_tokenizer:
        remove_known(folder / TOKENIZER_FOLDER, TOKENIZER_FILES)
    remove_buckets(folder)
    remove_progress(folder)


def _plan_of_manifest(folder: Path) -> dict[str, Any]:
    try:
        made = read_corpus_manifest(folder)
    except DataError:
        return {"options": {}, "source": {}, "tokenizer": {}}
    return {"options": made.options, "source": made.source, "tokenizer": made.tokenizer}


def _tidy(folder: Path) -> None:
    """The corpus is complete: what was needed to make it goes, the journal last."""
    remove_buckets(folder)
    if not is_ours(folder / PROGRESS_NAME, JOURNAL_FORMAT):
        return
    remove_mine(folder, _ALL_NAMES, lambda name: name.endswith(".tmp"))
    remove_progress(folder)


def finished_corpus(
    folder: Path, options: dict[str, Any], source: dict[str, Any], tokenizer: Tokenizer
) -> CorpusManifest | None:
    """The manifest of a complete corpus made just so; None if there is none yet.

    Raises:
        ConfigError: it was made in another way.
        DataError: its manifest or a file is damaged or missing.
    """
    path = folder / MANIFEST_NAME
    if not path.exists() and not path.is_symlink():
        return None
    if not is_ours(path, MANIFEST_FORMAT):
        refuse([path])
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
    _tidy(folder)  # where a run was killed after the manifest
    return manifest


def was_made_with_eos(folder: Path) -> bool:
    """Whether a run of ours is here, finished or not, whose documents are separated by the end-of-text token."""
    found = read_progress(folder) if is_ours(folder / PROGRESS_NAME, JOURNAL_FORMAT) else None
    if found is None and is_ours(folder / MANIFEST_NAME, MANIFEST_FORMAT):
        found = _plan_of_manifest(folder), Position()
    return found is not None and bool(found[0]["options"]) and "separator" not in found[0]["options"]


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
        ConfigError: the folder holds an interrupted run of another plan.
    """
    if not (folder / PROGRESS_NAME).exists():
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
    _rename_old_temporaries(folder)
    if position.writer is not None and not state_is_on_disk(layout, position.writer):
        say(f"files of the interrupted run in {folder} are gone: starting over")
        clear(folder)
        return None
    if position.cursor is None:
        return None
    say(f"continuing the interrupted run in {folder}")
    return position


def _rename_old_temporaries(folder: Path) -> None:
    """Versions before wrote ``NAME.tmp``."""
    for path in sorted(folder.glob("*.tmp")):
        if _ALL_NAMES.fullmatch(path.name) and not path.name.endswith(TEMP_SUFFIX):
            path.replace(path.with_name(path.name.removesuffix(".tmp") + TEMP_SUFFIX))


def publish_manifest(
    layout: CorpusLayout,
    shards: dict[Split, list[ShardFacts]],
    *,
    tokenizer: Tokenizer,
    eot: str,
    separator: Separator = "eos",
    bad_rows: int,
    source: dict[str, Any],
    options: dict[str, Any],
) -> CorpusManifest:
    """Hash every file, write ``meta.pkl`` and the manifest; from then on the corpus is complete."""
    folder = layout.folder
    with_meta = isinstance(tokenizer, CharTokenizer)
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
        files=tuple(_corpus_files(folder, shards, with_meta=with_meta)),
        source=source,
        options=options,
        versions={"automodel": __version__},
        separator=separator,
    )
    write_corpus_manifest(manifest)
    _tidy(folder)
    return manifest


def _corpus_files(
    folder: Path, shards: dict[Split, list[ShardFacts]], *, with_meta: bool
) -> list[CorpusFile]:
    files = []
    for split, group in shards.items():
        for facts in group:
            counts = {"tokens": facts.num_tokens, "documents": facts.num_documents}
            files.append(describe_file(folder, facts.path.name, "tokens", split, **counts))
            index = bos_index_path(facts.path).name
            files.append(describe_file(folder, index, "bos_index", split, documents=facts.num_documents))
    for path in sorted((folder / TOKENIZER_FOLDER).iterdir()):
        if path.name in SAVED_FILES:
            files.append(describe_file(folder, f"{TOKENIZER_FOLDER}/{path.name}", "tokenizer"))
    if with_meta:
        files.append(describe_file(folder, META_NAME, "meta"))
    return files


def _write_meta(path: Path, tokenizer: CharTokenizer) -> None:
    """What nanoGPT's sample.py and train.py read. We never read it: unpickling a file is running it."""
    itos = dict(enumerate(tokenizer.characters))
    stoi = {character: index for index, character in itos.items()}
    with atomic_file(path) as handle:
        pickle.dump({"vocab_size": tokenizer.vocab_size, "itos": itos, "stoi": stoi}, handle, protocol=4)
