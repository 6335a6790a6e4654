"""What the engine counts, as Prometheus reads it (text format 0.0.4).

Written by the engine's thread alone, but for what is refused; read by any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """Seconds, counted by upper bounds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_S) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(_BOUNDS_S, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterable[str]:
        """Its samples."""
        total = 0
        for bound, count in zip([*map(str, _BOUNDS_S), "+Inf"], list(self._counts), strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Measures:
    """Counters since the start."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generated_tokens = self.steps = self.row_steps = 0
        self.first_token_s, self.request_s = Histogram(), Histogram()
        self._finished: Counter[str] = Counter()

    def finished(self, how: str) -> None:
        """Count the end of a request."""
        self._finished[how] += 1

    def text(self, *, waiting: int, active: int, connections: int) -> str:
        """Everything, and what is so at this moment."""
        lines: list[str] = []

        def add(name: str, kind: str, meaning: str, samples: Iterable[str]) -> None:
            lines.extend([f"# HELP automodel_{name} {meaning}", f"# TYPE automodel_{name} {kind}", *samples])

        def one(name: str, kind: str, meaning: str, value: int) -> None:
            add(name, kind, meaning, [f"automodel_{name} {value}"])

        one("requests_waiting", "gauge", "Requests in the waiting line.", waiting)
        one("requests_active", "gauge", "Requests in the running batch.", active)
        one("connections", "gauge", "Open connections.", connections)
        one("steps_total", "counter", "Forwards of the batch.", self.steps)
        one("row_steps_total", "counter", "Rows of those forwards.", self.row_steps)
        one("prompt_tokens_total", "counter", "Tokens of prompts that were read.", self.prompt_tokens)
        one("generated_tokens_total", "counter", "Tokens that were generated.", self.generated_tokens)
        ends = [f'automodel_requests_total{{finish="{how}"}} {count}' for how, count in sorted(self._finished.items())]
        add("requests_total", "counter", "Requests by how they ended.", ends)
        for name, meaning, histogram in (
            ("first_token_seconds", "From a request to its first token.", self.first_token_s),
            ("request_seconds", "From a request to its end.", self.request_s),
        ):
            add(name, "histogram", meaning, histogram.lines(f"automodel_{name}"))
        return "\n".join(lines) + "\n"
