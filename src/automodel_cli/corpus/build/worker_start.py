"""Where a worker process begins: ``python -m automodel_cli.corpus.build.worker_start IN OUT PARENT``.

It must not outlive PARENT. That is settled before anything large is imported: imports take a second, in which the
parent may be killed, and a worker at work may not look at its pipes for as long.
"""

from __future__ import annotations

import sys

from automodel_cli.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[3]))
    from automodel_cli.corpus.build import worker

    worker.run(sys.argv[1:3])
