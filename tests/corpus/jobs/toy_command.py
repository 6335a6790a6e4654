"""A command line that makes a toy job's total: ``python toy_command.py FOLDER COUNT``, here or as jobs of Slurm.

It does what ``corpus.build.run`` does with a runner, and says what it was in the file ``roles``.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from tests.corpus.jobs.toy_job import ToyJob

from automodel_cli.corpus.jobs.array_element import STAGE_VARIABLE, ElementRunner, element_of
from automodel_cli.corpus.jobs.local import LocalRunner
from automodel_cli.launch.array_jobs import ArrayOptions, SlurmRunner


def main(folder: str, count: str, *more: str) -> None:
    """Everything that is missing, or what the environment asks for."""
    open_job = functools.partial(ToyJob, Path(folder).absolute(), int(count))
    job = open_job()
    job.begin()
    if (element := element_of(os.environ)) is not None:
        runner = ElementRunner(element, 1, lambda event: None, print)
    elif STAGE_VARIABLE in os.environ:
        runner = LocalRunner(1, lambda event: None, print)
    else:
        options = ArrayOptions("toy", 4, 1, "5", "logs", submit="submit" in more)
        command = [sys.executable, "-P", "-m", "tests.corpus.jobs.toy_command", folder, count, *more]
        runner = SlurmRunner(options, job.folder / ".slurm", command, print)
    with (job.folder / "roles").open("a") as roles:
        roles.write(f"{os.environ.get(STAGE_VARIABLE, 'driver')} {os.environ.get('SLURM_ARRAY_TASK_ID', '')}\n")
    if runner.run(job, open_job):
        job.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
