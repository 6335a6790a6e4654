"""What ``paths`` of a Megatron data set may be, and the prefixes and weights it means for a split.

| given                                        | means                                                         |
|----------------------------------------------|---------------------------------------------------------------|
| ``dir/data_*_text_document*``                | every prefix with matching files, sorted as text              |
| ``dir/data_0_text_document`` (or .bin, .idx) | that prefix                                                   |
| ``dir``                                      | every prefix in that folder, sorted as text                   |
| ``[A, B]``                                   | these, in this order; each may be a glob                      |
| ``["30", A, "70", B]``                       | these with weights: shares of the samples                     |
| ``{train: ..., validation: ..., test: ...}`` | any of the above for each split, which then has its own files |
| ``s3://bucket/dir`` and other URLs           | the same, of what lies there                                  |
| ``blend.json``                               | a file that holds one of the lists or mappings                |
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.corpus.documents.globbing import expand, is_pattern
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME
from automodel_cli.corpus.formats.megatron_bin import idx_path
from automodel_cli.corpus.formats.megatron_check import holds_megatron_files
from automodel_cli.corpus.formats.megatron_manifest import SUFFIX, MegatronManifest
from automodel_cli.data.files.token_files import what_is_there
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.json_files import read_json
from automodel_cli.storage.cache.local_view import LocalView

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    "test": "test",
}
_SUFFIXES = (".bin", ".idx")


@dataclass(frozen=True)
class Blend:
    """The prefixes of a split, and their weights where some were given.

    ``own_files``: the split has prefixes of its own, of which it uses all sequences.
    """

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None
    own_files: bool


def split_name(name: str) -> str:
    """``validation``, ``val``, ... -> Megatron's ``valid``.

    Raises:
        ConfigError: no name of a split.
    """
    if name.lower() not in _SPLIT_NAMES:
        raise ConfigError(f"{name!r} is not a split", "use train, validation or test")
    return _SPLIT_NAMES[name.lower()]


def read_paths(paths: Any, split: str, view: LocalView | None = None) -> Blend:
    """The blend that ``paths`` means for ``split`` ("train", "valid" or "test"); ``view`` shows what URLs name.

    Raises:
        ConfigError: a form that is none of those above.
        DataError: a glob or folder without Megatron files, or an unreadable .json file.
    """
    view = view or LocalView()
    if isinstance(paths, str | Path) and str(paths).endswith(".json"):
        hint = "check dataset.paths: the file holds a list of prefixes, or one per split"
        place = Path(view.place(str(paths)))
        view.fetch([place])
        paths = read_json(place, DataError, hint=hint)
    own_files = isinstance(paths, Mapping)
    if own_files:
        by_split = {split_name(str(key)): value for key, value in paths.items()}
        if by_split.get(split) is None:
            raise ConfigError(
                f"dataset.paths has nothing for the {split} split; it has {', '.join(map(str, paths))}",
                f"add a list of prefixes under {split}",
            )
        paths = by_split[split]
    items = [paths] if isinstance(paths, str | Path | int | float) else paths
    if not isinstance(items, Sequence) or not items:
        raise ConfigError(
            f"dataset.paths is {paths!r}",
            "give a glob, a prefix, a list of prefixes, or a list of weights and prefixes",
        )
    prefixes, weights = _weighted(items, view)
    return Blend(prefixes, weights, own_files)


def _weighted(items: Sequence[Any], view: LocalView) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """A flat list of weights and prefixes taken apart, or a plain list of prefixes."""
    weights = [_number(item) for item in items[::2]]
    if len(items) % 2 or all(weight is None for weight in weights):
        return tuple(prefix for item in items for prefix in _prefixes(item, view)), None
    if any(weight is None for weight in weights):
        at = next(number for number, weight in enumerate(weights) if weight is None)
        raise ConfigError(
            f"dataset.paths mixes weighted and unweighted prefixes: {items[2 * at]!r} stands where a weight belongs",
            'give every prefix a weight: ["30", A, "70", B], or none',
        )
    prefixes = []
    for item in items[1::2]:
        found = _prefixes(item, view)
        if len(found) != 1:
            raise ConfigError(
                f"the weighted path {item!r} matches {len(found)} prefixes",
                "give each prefix a weight of its own",
            )
        prefixes += found
    return tuple(prefixes), tuple(weight for weight in weights if weight is not None)


def _number(item: Any) -> float | None:
    try:
        return None if isinstance(item, bool) else float(item)
    except (TypeError, ValueError, OverflowError):
        return None


def _prefixes(item: Any, view: LocalView) -> list[str]:
    """The prefixes that one path, glob or folder stands for."""
    if not isinstance(item, str | Path):
        raise ConfigError(
            f"dataset.paths holds {item!r} where a prefix is expected",
            'weights and prefixes alternate: ["30", A, "70", B]',
        )
    text = view.place(str(item).strip())
    if Path(text).is_dir():
        return _matching(f"{text.rstrip('/')}/*")
    if is_pattern(text) and not any(Path(f"{_without_suffix(text)}{s}").exists() for s in _SUFFIXES):
        return _matching(text)
    return [_without_suffix(text)]


def _without_suffix(text: str) -> str:
    return text[:-4] if text.endswith(_SUFFIXES) else text


def _matching(pattern: str) -> list[str]:
    """Prefixes of the Megatron files that a glob matches, with or without their suffix."""
    expanded = str(Path(pattern).expanduser())
    for candidate in (expanded, f"{expanded}.idx"):
        names = [str(path) for path in expand(candidate)]
        found = sorted({_without_suffix(name) for name in names if name.endswith(_SUFFIXES)})
        if found:
            return found
    there = what_is_there(Path(expanded), ".idx")
    raise DataError(f"no .bin and .idx files match {pattern}", f"{there}. `automodel preprocess megatron` makes them")


def names_megatron_files(name: str) -> bool:
    """Whether ``name`` is a prefix, one of its files, a folder of them, their manifest, or a pattern for such."""
    path = Path(name)
    if (path / MANIFEST_NAME).is_file():
        return False
    if path.exists() or idx_path(path).exists():
        return holds_megatron_files(path)
    return any(
        found.suffix in _SUFFIXES and idx_path(found.with_suffix("")).exists() and holds_megatron_files(found)
        for pattern in (name, f"{name}.idx")
        for found in expand(pattern)[:2]
    )


def fetch_indices(view: LocalView, place: str) -> None:
    """Bring the ``.idx`` files here that ``place``, a path or pattern of ``view``, means: by them files are known."""

    def is_meant(path: Path) -> bool:
        return path.is_relative_to(place) or any(
            fnmatch.fnmatchcase(str(path), one) for one in (place, f"{_without_suffix(place)}.idx")
        )

    view.fetch(path for path in view.paths if path.suffix == ".idx" and ".bos" not in path.suffixes and is_meant(path))


def prefixes_of_manifest(name: str) -> list[str]:
    """The pairs that ``PREFIX.manifest.json`` lists; anything else stands for itself."""
    if not name.endswith(SUFFIX):
        return [name]
    manifest = MegatronManifest.read(Path(name))
    return [str(manifest.prefix(pair)) for pair in manifest.pairs]
