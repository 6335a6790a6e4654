"""A worker process of :mod:`~automodel_cli.corpus.jobs.local`: opens the job, then does one task after the other."""

from __future__ import annotations

import signal
import sys
import traceback
from multiprocessing.connection import Connection

from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.reports import Reports
from automodel_cli.errors import AutomodelError, is_panic, panic_message


def run(argv: list[str]) -> None:
    """Serve until the parent closes the pipe or has enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    questions, answers = Connection(int(argv[0]), writable=False), Connection(int(argv[1]), readable=False)
    try:
        _serve(questions, answers)
    except (EOFError, BrokenPipeError):
        sys.exit(0)


def _serve(questions: Connection, answers: Connection) -> None:
    open_job = questions.recv()
    job: Job | None = None
    while True:
        stage, task = questions.recv()
        try:
            job = job or open_job()
            reports = Reports(lambda report: answers.send(("report", report)))
            job.run_task(stage, task, reports)
        except BrokenPipeError:
            raise
        except AutomodelError as error:
            answers.send(("error", error))
        except Exception:
            answers.send(("bug", traceback.format_exc()))
        except BaseException as error:
            if not is_panic(error):
                raise
            answers.send(("error", panic_message(error)))
        else:
            answers.send(("done", reports.last))
