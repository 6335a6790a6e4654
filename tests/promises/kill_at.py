"""Run ``automodel`` and die by SIGKILL at the n-th call of a point: ``kill_at.py POINT N ARGUMENT...``.

Points are functions that mark the phases of a run: ``read`` (a batch is read), ``step`` (an update), ``write`` (a file
of a checkpoint), ``fsync``, ``rename`` (any publication). Nothing in the product knows of this.
"""

import importlib
import os
import signal
import sys

POINTS = {
    "read": ("automodel_cli.data.files.file_windows", "FileWindows.read_windows"),
    "step": ("automodel_cli.train.step", "clip_gradients"),
    "write": ("automodel_cli.checkpoint.storage.step_files", "StepWriter.write_json"),
    "fsync": ("os", "fsync"),
    "rename": ("os", "replace"),
}


def arm(point: str, number: int) -> None:
    """Make the ``number``-th call of ``point`` the process's last deed."""
    module_name, path = POINTS[point]
    owner = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    from automodel_cli.cli.app import main

    sys.argv = ["automodel", *sys.argv[3:]]
    main()
