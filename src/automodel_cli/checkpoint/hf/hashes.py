"""Hashes beside an exported folder, in a file that others ignore, so that bit rot is found without its checkpoint.

``automodel_files.json``: {"format": "automodel-export/1", "files": [{"name", "bytes", "xxh3"}, ...], "self"}; every
file of the folder but this one, ``self`` as in every manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from automodel_cli import files
from automodel_cli.checkpoint.step_manifest import FileRecord
from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import FileModel, Items, Xxh3, validated

HASHES = "automodel_files.json"
_FORMAT = "automodel-export/1"


class ExportManifest(FileModel):
    """``automodel_files.json``; see docs/formats.md."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["automodel-export/1"]
    files: Items[FileRecord]
    self: Xxh3


def write_hashes(writer: StepWriter, place: str) -> None:
    """Write the file for everything that ``writer`` has put into ``place`` (``""`` or a folder with a slash)."""
    below = [record for record in writer.records if record["name"].startswith(place)]
    records = [{**record, "name": record["name"].removeprefix(place)} for record in below]
    writer.write_text(place + HASHES, files.manifest_text({"format": _FORMAT, "files": records}))


def read_hashes(folder: Path) -> list[dict[str, Any]] | None:
    """Name, bytes and hash of each file of an exported folder; None where it holds no such list.

    Raises:
        CheckpointError: the list is damaged.
    """
    path = folder / HASHES
    if not path.exists():
        return None
    manifest = files.read_manifest(path, CheckpointError)
    return [record.model_dump() for record in validated(manifest, ExportManifest, path, CheckpointError).files]
