"""A job in stages as Slurm jobs: an array for each stage, then one job that does what is missing and finishes.

FOLDER/1-tokenize.sbatch, ...   each waits for the one before, whatever became of it (afterany)
FOLDER/submit.sh                hands them to sbatch and notes their numbers
FOLDER/submitted                a line for each: stage and number. While Slurm knows one of them, nothing is submitted

All run the command line that the user typed; the environment says what each is (``corpus.jobs.array_element``).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.corpus.jobs.array_element import BATCH_FILES, REST, STAGE_VARIABLE
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.errors import AutomodelError
from automodel_cli.files import make_folder, remove_known, write_text
from automodel_cli.launch.batch_file import directives, make_log_folder, one_line
from automodel_cli.plain_text import command_line
from automodel_cli.text import plural

_SUBMITTED = re.compile(r"([a-z_]+) (\d+)")
_SUBMITTED_BYTES = 1 << 16


@dataclass(frozen=True)
class ArrayOptions:
    """What Slurm is told of the jobs.

    Attributes:
        name: of the jobs, without the stage.
        elements: of each array, at most.
        cores: of each element.
        time: limit, in sbatch's format.
        logs: folder of their output.
        further: more options of sbatch, ``NAME=VALUE``.
        setup: lines of shell before the command.
        submit: hand the files to sbatch.
    """

    name: str
    elements: int
    cores: int
    time: str
    logs: str
    partition: str | None = None
    account: str | None = None
    further: Sequence[str] = ()
    setup: Sequence[str] = ()
    submit: bool = False


@dataclass(frozen=True)
class SlurmRunner:
    """Writes batch files into ``folder`` and, where asked for, submits them; see ``corpus.jobs.job.Runner``.

    Attributes:
        command: what the user typed, with the program.
    """

    options: ArrayOptions
    folder: Path
    command: Sequence[str]
    say: Callable[[str], None]

    def check(self, *, overwrite: bool = False) -> None:
        """Before anything is begun or, with ``overwrite``, removed.

        Raises:
            ConfigError: an option cannot stand in a batch file.
            AutomodelError: what is to be overwritten has jobs that did not end, or nobody can say whether it has.
        """
        self._batch_file(REST, 1)
        if overwrite and (waiting := self._waiting(self._submitted())):
            raise AutomodelError(
                f"{plural(len(waiting), 'job')} of the run that is to be overwritten did not end yet",
                f"end them first: {command_line(['scancel', *waiting])}",
            )

    def _waiting(self, ids: Sequence[str]) -> list[str]:
        return _known_to_slurm(ids, self.folder / "submitted") if ids else []

    def run(self, job: Job, open_job: Callable[[], Job]) -> bool:
        """Files for what is not done, unless jobs for it are there; True where all is done already.

        Raises:
            AutomodelError: sbatch refused them, or nobody can say whether earlier ones are over.
        """
        stages = _missing_stages(job)
        if not stages:
            return True
        if ids := self._submitted():
            if waiting := self._waiting(ids):
                which = command_line(["squeue", "--jobs", ",".join(waiting)])
                self.say(f"{plural(len(waiting), 'job')} of this run did not end yet: nothing to submit; see {which}")
                return False
            self.say(
                f"the jobs {', '.join(ids)} are over, and not all is done (their output is in {self.options.logs}); "
                f"what they finished is kept"
            )
        script = self._write(job, stages)
        if self.options.submit:
            self._submit(script)
        else:
            self.say(f"wrote {plural(len(stages) + 1, 'batch file')} to {self.folder}; submit them with: sh {script}")
        return False

    # --------------------------------------------------------------------------------------- the files

    def _write(self, job: Job, stages: Sequence[str]) -> Path:
        remove_known(self.folder, BATCH_FILES)
        make_folder(self.folder)
        make_log_folder(self.options.logs)
        elements = self.options.elements
        first = min(elements, job.tasks(stages[0]))
        steps = [(stage, elements if number else first) for number, stage in enumerate(stages)]
        names = []
        for number, (stage, count) in enumerate([*steps, (REST, 0)], 1):
            names.append((stage, f"{number}-{stage}.sbatch"))
            write_text(self.folder / names[-1][1], self._batch_file(stage, count))
        script = self.folder / "submit.sh"
        write_text(script, _submit_script(names))
        return script

    def _batch_file(self, stage: str, elements: int) -> str:
        options = self.options
        values = {
            "job-name": f"{options.name}-{stage}",
            **({"array": f"0-{elements - 1}"} if elements else {}),
            "nodes": "1",
            "ntasks": "1",
            "cpus-per-task": str(options.cores),
            "time": options.time,
            "requeue": "",
            "open-mode": "append",
            "output": f"{options.logs}/%x-%{'A_%a' if elements else 'j'}.out",
            **({"partition": options.partition} if options.partition else {}),
            **({"account": options.account} if options.account else {}),
        }
        body = [
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"export {STAGE_VARIABLE}={stage}",
            *map(one_line, options.setup),
            one_line(f"exec {shlex.join(self.command)}"),
        ]
        return "\n".join(["#!/bin/bash", *directives(values, options.further), "", *body, ""])

    # --------------------------------------------------------------------------------------- submitting

    def _submitted(self) -> list[str]:
        """Numbers of the jobs that were submitted for this run."""
        path = self.folder / "submitted"
        if not path.is_file():
            return []
        with path.open("rb") as handle:
            lines = handle.read(_SUBMITTED_BYTES).decode("utf-8", "replace").splitlines()
        return [found[2] for found in map(_SUBMITTED.fullmatch, lines) if found]

    def _submit(self, script: Path) -> None:
        if shutil.which("sbatch") is None:
            raise AutomodelError("there is no sbatch on this machine", f"on a login node: sh {script}")
        done = subprocess.run(["sh", str(script)], capture_output=True, text=True)
        ids = self._submitted()
        if done.returncode:
            if ids and shutil.which("scancel"):
                subprocess.run(["scancel", *ids], capture_output=True)
            (self.folder / "submitted").unlink(missing_ok=True)
            said = done.stderr.strip().splitlines()
            raise AutomodelError(
                f"sbatch refused a file in {self.folder}: {said[-1] if said else 'it did not say why'}",
                "check the #SBATCH lines in it",
            )
        for line in done.stdout.splitlines():
            self.say(line)


def _missing_stages(job: Job) -> list[str]:
    """Names of the stages from the first on that is not done."""
    for number, stage in enumerate(job.stages):
        if not all(job.is_done(stage, task) for task in range(job.tasks(stage))):
            return list(job.stages[number:])
    return []


def _known_to_slurm(ids: Sequence[str], marker: Path) -> list[str]:
    """Those of our jobs that wait or run.

    Raises:
        AutomodelError: Slurm cannot be asked.
    """
    try:
        done = subprocess.run(["squeue", "--noheader", "--me", "--format=%F"], capture_output=True, text=True)
    except FileNotFoundError:
        problem = "there is no squeue on this machine"
    else:
        if not done.returncode:
            known = set(done.stdout.split())
            return [number for number in ids if number in known]
        problem = f"squeue says {done.stderr.strip()!r}"
    raise AutomodelError(
        f"jobs {', '.join(ids)} were submitted for this run, and {problem}",
        f"run the same command where Slurm answers, or remove {marker} if they are over",
    )


def _submit_script(files: Sequence[tuple[str, str]]) -> str:
    """The script that submits ``files`` (stage and name), each to wait for the one before, and notes their numbers."""
    lines = [
        "#!/bin/sh",
        "# Submits the batch files beside this script, each to begin when the one before is over.",
        "set -eu",
        'here=$(cd "$(dirname "$0")" && pwd)',
        'if [ -e "$here/submitted" ]; then',
        '    echo "submitted already: $(tr "\\n" " " < "$here/submitted")" >&2; exit 1',
        "fi",
        "previous=",
        "submit() {",
        '    job=$(sbatch --parsable ${previous:+--dependency=afterany:$previous} "$here/$2")',
        "    previous=${job%%;*}",
        '    echo "$1 $previous" >> "$here/submitted"',
        '    echo "submitted $1 as job $previous"',
        "}",
        f"cd {shlex.quote(str(Path.cwd()))}",
        *(f"submit {stage} {name}" for stage, name in files),
    ]
    return "\n".join([*lines, ""])
