"""A dataset of the Hugging Face Hub, streamed: rows come as Arrow batches and nothing is stored on the disk.

Also opens what ``datasets`` opens locally (a dataset folder), which is how it is tested without a network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from automodel_cli.corpus.documents import columns  # pyarrow, which `datasets` needs anyway
from automodel_cli.corpus.documents.listing import dataset_name
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes
from automodel_cli.text import named_error

_MOST_BYTES = 64 << 20  # of text in a unit, or one batch
_READ_ROWS = 64  # always the same: a saved state is only good for the batch size it was made with


def import_datasets() -> Any:
    """``datasets`` without torch: it imports torch when it finds it, which takes seconds and serves nothing here."""
    if "datasets" not in sys.modules and "torch" not in sys.modules:
        before = os.environ.get("USE_TORCH")
        os.environ["USE_TORCH"] = "0"
        try:
            import datasets
        finally:
            if before is None:
                del os.environ["USE_TORCH"]
            else:
                os.environ["USE_TORCH"] = before
    import datasets

    return datasets


def load_split(dataset: str, set_name: str | None, split: str, *, streaming: bool, hint: str) -> Any:
    """One split of a data set of the Hub, by ``datasets``.

    Raises:
        DataError: it cannot be had; ``hint`` says what to do.
    """
    try:
        return import_datasets().load_dataset(dataset, set_name, split=split, streaming=streaming)
    except Exception as error:  # anything from no network to a misspelt name
        raise DataError(
            f"dataset {dataset} ({set_name or 'default'}, {split}) cannot be opened: {named_error(error, 300)}",
            hint,
        ) from error


class HubSource:
    """Documents of one split of a Hub dataset, in its order."""

    note = ""
    total_bytes: int | None = None
    single_document = False

    def __init__(self, dataset: str, set_name: str | None, split: str, options: ReadOptions) -> None:
        self.name = dataset_name(dataset)
        self.dataset, self.set_name, self.split = dataset, set_name, split
        self.options = options

    def _open(self) -> Any:
        import_datasets().disable_progress_bars()
        hint = "check --dataset, --set-name and --split and the network, or give local files with --dataset PATH"
        stream = load_split(self.dataset, self.set_name, self.split, streaming=True, hint=hint)
        if stream.features is not None:
            columns.check_columns(stream.features.arrow_schema, self.options, self.dataset)
            stream = stream.select_columns(list(self.options.keys))
        return stream.with_format("arrow")

    def units(self, cursor: dict[str, Any] | None, chunk_documents: int) -> Iterator[Unit]:
        """Units of ``chunk_documents`` rows of the stream, from ``cursor`` on (None: the first row)."""
        stream = self._open()
        row = 0
        if cursor is not None:
            row = cursor["at"]
            stream.load_state_dict(cursor["state"])
        batches = stream.iter(batch_size=_READ_ROWS)
        while True:
            state = stream.state_dict()
            tables = list(self._some(batches, row, chunk_documents))
            if not tables:
                return
            table = columns.join(tables)
            position = {"file": 0, "at": row, "state": state}
            size, rows = table.nbytes, len(table)
            yield Unit("rows", self.dataset, 0, position, payload=columns.pack(table), size=size, rows=rows)
            row += len(table)

    def _some(self, batches: Iterator[Any], row: int, wanted: int) -> Iterator[Any]:
        """The text columns of the next whole batches: ``wanted`` rows or a little more, fewer where they are long."""
        read = size = 0
        while read < wanted and size < _MOST_BYTES and (table := self._next(batches, row + read)) is not None:
            columns.check_columns(table.schema, self.options, self.dataset)
            chosen = table.select(list(self.options.keys))
            yield chosen
            read, size = read + len(table), size + chosen.nbytes

    def _next(self, batches: Iterator[Any], row: int) -> Any:
        try:
            return next(batches, None)
        except Exception as error:  # network, storage, damaged parquet: never a short file called success
            raise DataError(
                f"reading {self.dataset} failed after {row:,} rows: {type(error).__name__}: {str(error)[:300]}",
                "run the same command again; it goes on from what is written",
            ) from error

    def describe(self) -> dict[str, Any]:
        return {"kind": "hub", "name": self.dataset, "set_name": self.set_name, "split": self.split}

    def identity(self) -> str:
        return hash_bytes(repr((self.dataset, self.set_name, self.split)).encode())
