"""TensorBoard: event files in ``RUN/tensorboard``, written with the package's own messages, without TensorFlow.

Each start of a run opens a new file, which begins with the step that the run goes on from, or the last one that is
known to be written: the reader drops what earlier files say past it (``SessionLog``, the mechanism behind
``purge_step``). A rewind writes the same mark. So each step is drawn once, as in ``metrics.jsonl``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.metrics.trackers.interface import Entry, flatten
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.metrics.trackers.own_files import NOTHING, local_place, store_id, stored_step

_FILE_VERSION = "brain.Event:2"
_NAME = "events.out.tfevents.{:019d}.automodel"  # the reader takes files in the order of their names


class TensorboardTracker:
    """An event file that is being written. Scalars are float32, as in all event files."""

    def __init__(self, run_folder: Path, config: Mapping[str, Any], *, step: int) -> None:
        """Open a new file for a run that goes on from ``step``.

        Args:
            config: the effective configuration, for the tab HPARAMS; secrets are masked here.
        """
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2.Summary
        self._tensor, self._shape = tensor_pb2.TensorProto, tensor_shape_pb2.TensorShapeProto
        self._is_text = create_summary_metadata(display_name="", description="")
        self._run_folder, folder = run_folder, local_place(run_folder, "tensorboard")
        self._file = RecordWriter((folder / _new_name(folder)).open("xb", buffering=0))
        self._write(time.time(), file_version=_FILE_VERSION)
        self.last_step = min(stored_step(run_folder, "tensorboard"), step) if step else NOTHING
        self.rewind(self.last_step)
        parameters = flatten(redact(dict(config)))
        self._write(time.time(), step=step, summary=hparams_pb(parameters, start_time_secs=time.time()))

    def log(self, entry: Entry) -> None:
        """Write an event of all numbers, and one of the samples."""
        values = [self._summary.Value(tag=tag, simple_value=number) for tag, number in entry.numbers().items()]
        values += [
            self._text(f"{entry.prefix}/sample {number}", f"{prompt}{text}")
            for number, (prompt, text) in enumerate(entry.samples(), 1)
        ]
        self._write(entry.time, step=entry.step, summary=self._summary(value=values))
        self._sent = entry.step

    def rewind(self, step: int) -> None:
        """Mark that what was written past ``step`` is void."""
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(time.time(), step=step + 1, session_log=start)
        self._sent = step

    def flush(self) -> None:
        """Nothing waits: the file has no buffer."""

    def close(self, *, ok: bool) -> None:
        """Close the file; it has no place for how the run ended."""
        self._file.close()
        store_id(self._run_folder, "tensorboard", "tensorboard", {}, sent=self._sent)

    def _write(self, wall_time: float, **fields: Any) -> None:
        self._file.write(self._event.Event(wall_time=wall_time, **fields).SerializeToString())

    def _text(self, tag: str, text: str) -> Any:
        shape = self._shape(dim=[self._shape.Dim(size=1)])
        tensor = self._tensor(dtype="DT_STRING", tensor_shape=shape, string_val=[_as_code(text).encode()])
        return self._summary.Value(tag=tag, tensor=tensor, metadata=self._is_text)


def _new_name(folder: Path) -> str:
    """A name behind all that are there, whatever the clock says."""
    numbers = [int(part) for path in folder.glob("*.tfevents.*") if (part := path.name.split(".")[3]).isdecimal()]
    return _NAME.format(max([time.time_ns(), *(number + 1 for number in numbers)]))


def _as_code(text: str) -> str:
    """As TensorBoard's Markdown shows it letter for letter: an indented block."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
