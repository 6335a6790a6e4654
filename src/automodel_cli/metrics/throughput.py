"""How fast training goes: tokens per second, share of the peak FLOP/s, time left, memory.

Only training counts. The loop wraps validation and checkpoints in ``with throughput.pause():``, so that a
saved checkpoint does not show as a slow step. The time left includes pauses, at the run's average rate.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

_GIB = 1 << 30
_RECENT_INTERVALS = 50  # the time left follows the recent speed, not the compiling first steps


class Throughput:
    """A stopwatch for the loop: ``step`` once per update, ``read`` at a log line, ``pause`` around the rest.

    Args:
        total_steps: where training ends, for the time left; None: unknown.
        world_size: ranks that share the counted tokens.
        flops_per_token: training FLOPs (forward and backward) of one token; None: no MFU.
        peak_flops_per_s: peak of one device at the compute dtype; None (unknown device): no MFU.
        device: whose memory is reported.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        total_steps: int | None = None,
        world_size: int = 1,
        flops_per_token: float | None = None,
        peak_flops_per_s: float | None = None,
        device: torch.device | str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total_steps = total_steps
        self._world_size = world_size
        self._flops_per_token = flops_per_token
        self._peak_flops_per_s = peak_flops_per_s
        self._device = torch.device(device)
        self._clock = clock
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_INTERVALS)
        self._intervals_seen = 0
        self._all_steps = 0
        self._all_paused_s = 0.0
        self._start_interval()

    def _start_interval(self) -> None:
        self._started = self._clock()
        self._paused_s = 0.0
        self._tokens = 0
        self._steps = 0

    def step(self, tokens: int) -> None:
        """Count one update over ``tokens`` tokens of all ranks together."""
        self._tokens += tokens
        self._steps += 1

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside is not training (validation, checkpoints)."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - started

    def read(self, step: int) -> dict[str, float | None]:
        """What happened since the last read: ``tps, tps_per_gpu, mfu`` (a fraction)``, eta_s, mem_gib``.

        ``step`` is the number of updates done. What is not known is None. The next interval starts here.
        """
        wall_s = self._clock() - self._started
        train_s = wall_s - self._paused_s
        tps = self._tokens / train_s if train_s > 0 and self._steps else None
        self._remember(train_s)
        self._start_interval()
        return {
            "tps": tps,
            "tps_per_gpu": None if tps is None else tps / self._world_size,
            "mfu": self._mfu(tps),
            "eta_s": self._eta_s(step),
            "mem_gib": peak_memory_gib(self._device),
        }

    def _remember(self, train_s: float) -> None:
        self._intervals_seen += 1
        self._all_steps += self._steps
        self._all_paused_s += self._paused_s
        if self._intervals_seen == 2:  # the first interval compiles and warms up: a poor guide, drop it now
            self._recent.clear()
        self._recent.append((self._steps, train_s))

    def _mfu(self, tps: float | None) -> float | None:
        if tps is None or not self._flops_per_token or not self._peak_flops_per_s:
            return None
        return tps * self._flops_per_token / (self._peak_flops_per_s * self._world_size)

    def _eta_s(self, step: int) -> float | None:
        steps = sum(steps for steps, _ in self._recent)
        if self._total_steps is None or self._intervals_seen < 2 or not steps:
            return None
        train_s = sum(train_s for _, train_s in self._recent) / steps
        pause_s = self._all_paused_s / self._all_steps  # rare and long: averaged over the whole run
        return max(self._total_steps - step, 0) * (train_s + pause_s)


def peak_memory_gib(device: torch.device) -> float:
    """GiB at the highest: allocated on a CUDA device since the last call, resident in the process on a CPU.

    The resident peak covers the process's whole life: the kernel offers no reset that leaves others alone.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / _GIB
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * (1 if sys.platform == "darwin" else 1024) / _GIB  # Linux counts in KiB
