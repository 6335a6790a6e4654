"""Run ``automodel`` as a rank that is lost at its n-th update: ``lose_rank.py die|hang N ARGUMENT...``."""

import os
import signal
import sys
import time


def arm(how: str, number: int) -> None:
    from automodel_cli.train import step

    original, calls = step.clip_gradients, [0]

    def counted(*arguments, **keywords):
        calls[0] += 1
        if calls[0] == number:
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return original(*arguments, **keywords)

    step.clip_gradients = counted


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    from automodel_cli.cli.app import main

    sys.argv = ["automodel", *sys.argv[3:]]
    main()
