"""Whose are the files in an output folder? Only what a run of ours wrote is ever replaced or removed.

A file is ours if a manifest of ours lists it, if a journal of ours says that a run which writes this name is under way,
or if it has the suffix of our temporaries. At every instant at which a run's files are there, one of the two is there
as well: the journal is written before the first file and goes after the last of them that is not in the manifest.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from automodel_cli.corpus.tokenizers.base import SAVED_FILES, Tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.files import ANY_TEMPORARY, TEMP_SUFFIX, names_format

TOKENIZER_FILES = re.compile(rf"({'|'.join(map(re.escape, SAVED_FILES))}){ANY_TEMPORARY}")
"""What a run writes into the folder of its tokenizer."""


def is_ours(marker: Path, format_name: str) -> bool:
    """Whether ``marker`` is a manifest or journal of ours, sound or damaged; a link is not."""
    return not marker.is_symlink() and names_format(marker, format_name)


def strangers(folder: Path, written: re.Pattern[str], is_mine: Callable[[str], bool]) -> list[Path]:
    """What stands under a name that is to be ``written`` and is a link, no file, or not ours."""
    found = [path for path in sorted(folder.iterdir()) if written.fullmatch(path.name)]
    return [path for path in found if not _may_go(path, is_mine)]


def remove_mine(folder: Path, written: re.Pattern[str], is_mine: Callable[[str], bool]) -> None:
    """Remove what stands under a name that is ``written`` and is ours."""
    for path in folder.iterdir():
        if written.fullmatch(path.name) and _may_go(path, is_mine):
            path.unlink()


def _may_go(path: Path, is_mine: Callable[[str], bool]) -> bool:
    known = path.name.endswith(TEMP_SUFFIX) or is_mine(path.name)
    return known and path.is_file() and not path.is_symlink()


def strange_tokenizer(folder: Path, tokenizer: Tokenizer, *, ours: bool) -> list[Path]:
    """``folder`` itself where ``tokenizer`` must not be saved in it: a link, or somebody's other tokenizer."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return [folder]
    if ours or not any(map(TOKENIZER_FILES.fullmatch, (path.name for path in _entries(folder)))):
        return []
    with tempfile.TemporaryDirectory(prefix="automodel-tokenizer-") as name:
        tokenizer.save(name)
        same = all(_equal(path, folder / path.name) for path in Path(name).iterdir())
    return [] if same else [folder]


def _entries(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.exists() else ()


def _equal(path: Path, other: Path) -> bool:
    regular = other.is_file() and not other.is_symlink()
    return regular and path.stat().st_size == other.stat().st_size and path.read_bytes() == other.read_bytes()


def refuse(found: Iterable[Path], option: str = "--output-dir") -> None:
    """Raise for the first of these strangers, if there is one.

    Raises:
        ConfigError: there is one.
    """
    for path in found:
        raise ConfigError(
            f"{path.parent} holds {path.name} but no manifest of ours that lists it",
            f"move it away, or use another {option}; --overwrite replaces only what this command made",
        )
