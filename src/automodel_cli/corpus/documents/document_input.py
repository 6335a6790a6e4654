"""What commands that turn documents into documents ask of their input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.errors import ConfigError


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


def refuse_overlap(folder: Path, dataset: Path, source: FileSource) -> None:
    """What is written must not be read as input, now or by the next run.

    Raises:
        ConfigError: it would be.
    """
    inside = folder.resolve()
    for file in source.files:
        if inside in Path(file.path).resolve().parents:
            raise ConfigError(f"the input {file.path} lies in the output folder {folder}", "use another --output-dir")
    if dataset.is_dir() and dataset.resolve() in inside.parents:
        raise ConfigError(
            f"the output folder {folder} lies in the input folder {dataset}: the next run would read it",
            "use another --output-dir, or name the input files with a glob",
        )
