"""Slurm batch file: one launcher per machine, a signal before the time limit, and back into the queue on exit code 75.

#SBATCH --signal=USR1@300    Slurm tells every launcher 300 s before the time is over; they save and leave with 75
srun automodel --nnodes ...  one task per machine; the first machine is where they meet
75 -> scontrol requeue       the same job again, which resumes
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.config.schema.options import SlurmOptions
from automodel_cli.errors import EXIT_PREEMPTED, ConfigError
from automodel_cli.files import write_text
from automodel_cli.launch.batch_file import directives, make_log_folder, one_line, submit
from automodel_cli.launch.plan import node_range
from automodel_cli.plain_text import command_line

_OWN_FLAGS = ("nnodes", "nproc-per-node", "rdzv-endpoint", "rdzv-backend", "rdzv-id", "shutdown-timeout")


@dataclass(frozen=True)
class BatchJob:
    """What a batch file says.

    Attributes:
        command: what is launched, without launch flags: the program, then ``pretrain llm -c ...``.
        flags: launch flags by their dashed names; nodes and processes come from here.
        signal: name of the signal that Slurm sends, ``options.lead`` seconds before the time is over.
    """

    options: SlurmOptions
    command: Sequence[str]
    flags: Mapping[str, str]
    name: str
    signal: str = "SIGUSR1"

    @property
    def nodes(self) -> int:
        """Machines; of a range the most, because Slurm gives a job a fixed number."""
        return node_range(self.flags.get("nnodes", "1"))[1]

    @property
    def processes(self) -> str:
        """Processes per machine, as the launcher is told."""
        return self.flags.get("nproc-per-node", "cpu" if self.options.gpus_per_node == 0 else "gpu")


def choose_signal(listened: Sequence[str]) -> str:
    """The signal for Slurm to send, of those that the run listens to; SIGUSR1 where it may be, SIGTERM next.

    Raises:
        ConfigError: it listens to none that a scheduler could send.
    """
    for wanted in ("SIGUSR1", "SIGTERM", *listened):
        if wanted in listened and wanted != "SIGINT":
            return wanted
    raise ConfigError(
        "step_scheduler.preemption_signal names no signal that Slurm could send",
        "leave it out (SIGTERM, SIGINT and SIGUSR1 are listened to then), or name SIGUSR1",
    )


def run(job: BatchJob, *, say: Callable[[str], None]) -> None:
    """Show the batch file, or write it; where that was asked for, give it to sbatch."""
    text = batch_file(job)
    make_log_folder(job.options.logs)
    if job.options.output is None and not job.options.submit:
        say(text.rstrip())
        return
    path = Path(job.options.output or f"{job.name}.sbatch")
    write_text(path, text)
    how = command_line(["sbatch", path])
    say(submit(path) if job.options.submit else f"wrote {path}; submit it with: {how}")


def batch_file(job: BatchJob) -> str:
    """The text of the batch file."""
    return "\n".join(["#!/bin/bash", *_directives(job), "", *_body(job), ""])


def _directives(job: BatchJob) -> list[str]:
    options, gpus = job.options, job.options.gpus_per_node
    if gpus is None and job.processes in ("gpu", "auto"):
        raise ConfigError("the number of GPUs per machine is missing", "add --nproc-per-node N, or --gpus-per-node N")
    if gpus is None and job.processes.isdigit():
        gpus = int(job.processes)
    values = {
        "job-name": job.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(gpus)} if gpus else {}),
        "time": options.time,
        "signal": f"{job.signal.removeprefix('SIG')}@{options.lead}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{options.logs}/%x-%j.out",
        **({"partition": options.partition} if options.partition else {}),
        **({"account": options.account} if options.account else {}),
    }
    return directives(values, options.sbatch)


def _body(job: BatchJob) -> list[str]:
    return [
        "trap : TERM   # this shell outlives a preemption's signal; it is the launchers that act on it",
        *(one_line(line) for line in job.options.setup),
        *(_meeting_point() if job.nodes > 1 else []),
        one_line(f"srun --kill-on-bad-exit=0 {' '.join(_launch(job))}"),
        "code=$?",
        f'if [ "$code" -eq {EXIT_PREEMPTED} ]; then',
        '    case $(squeue --noheader --job "$SLURM_JOB_ID" --format %T) in',
        '        CANCELLED* | COMPLETING*) echo "cancelled after a checkpoint" ;;   # scancel: stay out of the queue',
        '        *) echo "preempted after a checkpoint: back into the queue"; scontrol requeue "$SLURM_JOB_ID" ;;',
        "    esac",
        "fi",
        'exit "$code"',
    ]


def _meeting_point() -> list[str]:
    return [
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "port=$((20000 + SLURM_JOB_ID % 10000))   # two jobs on one machine do not meet",
    ]


def _launch(job: BatchJob) -> list[str]:
    """The launcher's command line; shell variables stay unquoted by ``shlex``, everything else does not."""
    several = ['--nnodes "$SLURM_NNODES"', '--rdzv-endpoint "$first:$port"', '--rdzv-id "$SLURM_JOB_ID"']
    rest = [f"--{flag} {shlex.quote(value)}" for flag, value in job.flags.items() if flag not in _OWN_FLAGS]
    return [
        shlex.join(job.command),
        f"--nproc-per-node {shlex.quote(job.processes)}",
        *(several if job.nodes > 1 else []),
        f"--shutdown-timeout {job.options.lead}",
        *rest,
    ]
