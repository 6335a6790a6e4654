"""Uploads of a run's checkpoints while it trains (``newest_first``), never the reason that a run ends.

A step is first put aside, as ``step_00001000.hub`` beside it: its ``hf/``, and the model card.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from automodel_cli.checkpoint.hf import hashes as hf_hashes
from automodel_cli.checkpoint.hf.hub import Destination, HubError, push
from automodel_cli.checkpoint.layout import Say
from automodel_cli.checkpoint.newest_first import NewestFirst, link
from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.errors import CheckpointError
from automodel_cli.plain_text import command_line
from automodel_cli.text import named_error

ASIDE = ".hub"


class Uploads:
    """Takes finished steps of one run, on rank 0.

    Args:
        more: what goes with the ``hf/`` of a step, by name.
    """

    def __init__(self, run: Path, to: Destination, *, more: Callable[[Path], Mapping[str, str]], say: Say) -> None:
        self._run, self._to, self._more, self._say = run, to, more, say
        self._copies = NewestFirst(self._upload)
        self._newest = ""  # the name of the step that was put aside last
        for left in run.glob(f"step_*{ASIDE}"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        disable_progress_bars()  # they would run through the lines of the run

    @property
    def busy(self) -> bool:
        """Whether an upload is under way."""
        return self._copies.busy

    def add(self, step: Path) -> None:
        """Upload a step that has just been saved, in the background; whatever is wrong with it is said, not raised."""
        aside = step.with_name(step.name + ASIDE)
        try:
            _put_aside(step, aside, self._more(step))
            passed = self._copies.hand_over(aside)
            self._newest = aside.stem
        except Exception as error:  # a full disk, a card that cannot be made: the checkpoint itself is safe
            shutil.rmtree(aside, ignore_errors=True)
            self._failed(step.name, f"{self._to.repo_id}: {named_error(error)}")
            return
        if passed is not None:
            shutil.rmtree(passed, ignore_errors=True)
            self._say(f"{passed.stem} is not uploaded: uploads are slower than saves, and {step.name} is newer")

    def given_up(self) -> None:
        """Say that the process does not wait for what is under way."""
        self._say(
            f"warning: the upload of {self._newest} is not waited for, as the run was stopped. "
            f"By hand: {self._by_hand(self._newest)}"
        )

    def _upload(self, aside: Path) -> None:
        try:
            self._say(f"uploaded {aside.stem} to {push(aside, self._to, message=f'automodel: {aside.stem}')}")
        except HubError as error:
            self._failed(aside.stem, error.message.removeprefix(f"{aside} was not uploaded to "))
        except Exception as error:
            self._failed(aside.stem, f"{self._to.repo_id}: {named_error(error)}")
        shutil.rmtree(aside, ignore_errors=True)

    def _failed(self, name: str, why: str) -> None:
        said = f"warning: {name} was not uploaded to {why}; training is not affected."
        self._say(f"{said} By hand: {self._by_hand(name)}")

    def _by_hand(self, name: str) -> str:
        words = ["automodel", "export", "hf", self._run / name, "OUT", "--push-to-hub", self._to.repo_id]
        return command_line([*words, *self._to.options])


def _put_aside(step: Path, folder: Path, more: Mapping[str, str]) -> None:
    """Make ``folder`` like the step's ``hf/``, with ``more``; only what its list of files names.

    Raises:
        CheckpointError: the step has no whole ``hf/``.
    """
    source = step / "hf"
    records = hf_hashes.read_hashes(source)
    if records is None:
        raise CheckpointError(f"{step} has no hf/")
    writer = StepWriter(folder)
    for record in records:
        link(source / record["name"], writer.folder / record["name"])
    writer.take_records(records)
    for name, text in more.items():
        writer.write_text(name, text)
    hf_hashes.write_hashes(writer, "")
