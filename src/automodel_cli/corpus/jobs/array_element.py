"""A process that is one element of a Slurm array and does its share of a stage, told so by the environment.

Element k of n does the tasks k, k + n, k + 2n, ... of its stage. Before that it does what is missing of the stages
before: elements of theirs may have been lost to a time limit or a machine. Each begins at another place and looks again
before each task, so that a few of them share even that work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from automodel_cli.corpus.build.pipeline import Progress
from automodel_cli.corpus.jobs.crew import run_stage
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.local import local_crew
from automodel_cli.errors import ConfigError

STAGE_VARIABLE = "AUTOMODEL_PREPROCESS_STAGE"
"""The stage of an element, or ``REST``."""
REST = "rest"
"""In place of a stage: the last job, which does all that is missing and finishes."""
BATCH_FILES = re.compile(r"(\d+-[a-z_]+\.sbatch|submit\.sh|submitted)((\.automodel)?\.tmp)?")
"""Names in the folder of a run's batch files, which others write (``launch.array_jobs``)."""
_NUMBERS = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True)
class Element:
    """Which share of which stage; ``number`` counts from 0."""

    stage: str
    number: int
    count: int


def element_of(environ: Mapping[str, str]) -> Element | None:
    """The element that this process is; None where it is none: the last job, or nobody set the variable.

    Raises:
        ConfigError: Slurm's own variables are missing or no numbers.
    """
    stage = environ.get(STAGE_VARIABLE)
    if stage is None or stage == REST:
        return None
    number, count = (environ.get(name, "") for name in _NUMBERS)
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(
            f"{STAGE_VARIABLE} is set to {stage!r}, but {' and '.join(_NUMBERS)} name no element of an array",
            f"only batch files of --runner slurm set it: unset {STAGE_VARIABLE}",
        )
    return Element(stage, int(number), int(count))


@dataclass(frozen=True)
class ElementRunner:
    """Does the share of one element; see :class:`~automodel_cli.corpus.jobs.job.Runner`.

    Attributes:
        num_workers: processes of this element; 0 or 1: this one alone.
    """

    element: Element
    num_workers: int
    progress: Callable[[Progress], None]
    say: Callable[[str], None]

    def run(self, job: Job, open_job: Callable[[], Job]) -> bool:
        """Do it. Whether all stages are done is for the last job to see.

        Raises:
            ConfigError: the job has no such stage.
        """
        number, count = self.element.number, self.element.count
        if self.element.stage not in job.stages:
            raise ConfigError(
                f"{job.name} has no stage {self.element.stage!r}, only {', '.join(job.stages)}",
                "make the batch files again with the version that is installed now",
            )
        before = job.stages[: job.stages.index(self.element.stage)]
        with local_crew(job, open_job, self.num_workers) as crew:
            for stage in before:
                total = job.tasks(stage)
                first = total * number // count
                run_stage(job, stage, crew, self.progress, self.say, [*range(first, total), *range(first)])
            share = range(number, job.tasks(self.element.stage), count)
            run_stage(job, self.element.stage, crew, self.progress, self.say, share)
        return False
