"""What commands that turn documents into documents ask of their input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.errors import ConfigError
from automodel_cli.storage.reading import unpinned
from automodel_cli.storage.urls import is_remote, local_path, split_url


def carried_columns(source: FileSource, wanted: Sequence[str] | None, text_key: str) -> tuple[str, ...]:
    """The columns of parquet files to keep besides the text: those ``wanted``, of which ``["all"]`` means all.

    Raises:
        DataError: the first file is no parquet file.
    """
    parquet = [file for file in source.files if file.kind == "parquet"]
    if not wanted or not parquet:
        return ()
    if list(wanted) != ["all"]:
        return tuple(wanted)
    from automodel_cli.corpus.documents import columns  # pyarrow.parquet, which other files do not need

    names = columns.column_names(parquet[0].path, parquet[0].name)
    return tuple(name for name in names if name != text_key)


def refuse_overlap(place: str, dataset: str, source: FileSource) -> None:
    """What is written to ``place``, a folder or URL, must not be read as input, now or by the next run.

    Raises:
        ConfigError: it would be.
    """
    inside, read = _comparable(place), _comparable(dataset)
    for file in source.files:
        path = unpinned(file.path).url if is_remote(file.path) else _comparable(file.path)
        if path.startswith(f"{inside}/"):
            raise ConfigError(f"the input {path} lies in the output folder {place}", "use another --output-dir")
    if inside.startswith(f"{read}/"):
        raise ConfigError(
            f"the output folder {place} lies in the input folder {dataset}: the next run would read it",
            "use another --output-dir, or name the input files with a glob",
        )


def _comparable(place: str) -> str:
    return str(split_url(place)) if is_remote(place) else str(Path(local_path(place)).resolve())
