"""What processes of ours owe each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End at once when the process ``parent`` does, whatever is under way. Linux only.

    An orphan would hold its GPU, the lock of a run folder, or a processor.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the line above
        os._exit(1)
