"""Where a machine keeps pieces of remote files, and how much of them: one setting for a process, as for torch.hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 64 << 10, 256 << 20


def default_folder() -> Path:
    """``automodel/data`` in the user's cache folder: ``XDG_CACHE_HOME``, else ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (a user without home)
    return Path(home) / "automodel" / "data"


@dataclass(frozen=True)
class CacheSettings:
    """A cache folder, which several processes may share.

    Attributes:
        max_bytes: of chunks; the least recently used ones go first. Small files (manifests, indices) are not counted.
        chunk_bytes: remote files are read in pieces of this size.
    """

    folder: Path = field(default_factory=default_folder)
    max_bytes: int = 32 << 30
    chunk_bytes: int = 4 << 20


_in_use: CacheSettings | None = None


def use_cache(settings: CacheSettings) -> None:
    """Let remote files that are opened from now on be kept so."""
    global _in_use
    _in_use = settings


def cache_in_use() -> CacheSettings:
    """What ``use_cache`` set last, else the default."""
    return _in_use or CacheSettings()
