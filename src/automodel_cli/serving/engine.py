"""One thread that owns the model: requests wait in a line, join the running batch, and leave it between two steps.

Others talk to it by ``submit``, which returns at once; what a request gets is handed to its ``sink``, on the engine's
thread, so a sink does no more than pass it on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.generation.text_stream import StopTexts, TextStream
from automodel_cli.models.interface import CausalLM
from automodel_cli.serving.choosing import Sampling, Score, choose, scores
from automodel_cli.serving.measures import Measures
from automodel_cli.serving.rows import CHUNK_TOKENS, rows_of
from automodel_cli.text import named_error

_READ_TOGETHER_TOKENS = 128  # padding included; beyond, a forward is bound by arithmetic, and padding is lost time
Finish = Literal["stop", "length", "cancelled", "timeout", "failed"]


class BusyError(AutomodelError):
    """The waiting line is full, or the engine is closed."""


@dataclass(frozen=True)
class Request:
    """One text to continue.

    Attributes:
        max_tokens: how many tokens it may get; fewer where the model's context ends.
        stop_ids, stop_texts: what ends it, and is no part of it.
        logprobs: alternatives to tell for each token; None: no scores at all.
        timeout_s: seconds from ``submit`` on.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    logprobs: int | None = None
    timeout_s: float = float("inf")


@dataclass(frozen=True)
class Piece:
    """What a request got since the last one: whole characters, the ids of tokens (text may lag behind), their scores.

    ``finish``: why it is the last one; ``error``: what went wrong where it ``failed``.
    """

    text: str
    ids: tuple[int, ...] = ()
    scores: tuple[Score, ...] = ()
    finish: Finish | None = None
    error: str = ""


Sink = Callable[[Piece], None]


@dataclass(eq=False)
class Ticket:
    """A request on its way; ``cancel`` may be called from any thread, any number of times."""

    request: Request
    sink: Sink
    budget: int
    submitted_s: float
    text: TextStream
    stops: StopTexts
    cancelled: bool = False
    first_s: float | None = None
    last: int = 0
    count: int = 0
    finish: Finish | None = None
    unsent: list[int] = field(default_factory=list)

    def cancel(self) -> None:
        """Leave the line or the batch before its next step."""
        self.cancelled = True


class Engine:
    """Requests for one model.

    Args:
        decode_bytes: the tokenizer's ids -> bytes.
        usable_ids: choose among the ids below this (a tokenizer may know fewer than the model).
        max_rows: requests that run at once; others wait.
        max_waiting: how many may wait.
    """

    def __init__(
        self,
        model: CausalLM,
        decode_bytes: Callable[[Sequence[int]], bytes],
        *,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
        usable_ids: int | None = None,
        max_rows: int = 32,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.measures = Measures()
        self._model, self._decode_bytes, self._clock = model, decode_bytes, clock
        self._device, self._autocast_dtype, self._usable_ids = torch.device(device), autocast_dtype, usable_ids
        self._context: int | None = model.max_seq_len
        self._rows = rows_of(model, self._device)
        self._active: list[Ticket] = []  # by number of row
        self._joining: tuple[list[Ticket], Iterator[Tensor | None]] | None = None
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Engine:
        """Let the thread run."""
        self._model.eval()
        self._thread.start()
        return self

    def close(self) -> None:
        """Cancel what is there and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests in the batch."""
        return len(self._active)

    @property
    def is_alive(self) -> bool:
        """Whether there is somebody to serve requests."""
        return self._thread.is_alive()

    def submit(self, requests: Sequence[Request], sinks: Sequence[Sink]) -> list[Ticket]:
        """Put requests into the line, all or none.

        Raises:
            BusyError: it has no room.
            ConfigError: a prompt is empty, or leaves no room in the model's context.
        """
        tickets = [self._ticket(request, sink) for request, sink in zip(requests, sinks, strict=True)]
        with self._changed:
            if self._closed or len(self._waiting) + len(tickets) > self.max_waiting:
                self.measures.finished("refused")
                raise BusyError(f"{len(self._waiting)} requests are waiting already", "try again later")
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def _ticket(self, request: Request, sink: Sink) -> Ticket:
        size = len(request.prompt)
        if not size:
            raise ConfigError("there is nothing to continue: the prompt has no tokens", "give a prompt")
        # The last token of a context is chosen from all of it and not read any more.
        room = request.max_tokens if self._context is None else self._context - size + 1
        if room < 1:
            raise ConfigError(
                f"the prompt has {size:,} tokens, the model's context has {self._context:,}", "shorten the prompt"
            )
        return Ticket(
            request,
            sink,
            min(request.max_tokens, room),
            self._clock(),
            TextStream(self._decode_bytes, context=request.prompt),
            StopTexts(request.stop_texts),
        )

    # ------------------------------------------------------------------------------- on the engine's thread

    def _run(self) -> None:
        dtype = self._autocast_dtype
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False),
        ):
            while self._wait():
                try:
                    self._step()
                except Exception as error:  # one batch is lost; the next may be smaller
                    self._fail(named_error(error))
        with self._changed:
            left, self._waiting = [*self._active, *self._of_joining(), *self._waiting], deque()
        for ticket in left:
            self._end(ticket, "cancelled")

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; whether to go on."""
        with self._changed:
            while not (self._closed or self._waiting or self._active or self._joining):
                self._changed.wait()
            return not self._closed

    def _step(self) -> None:
        self._let_go()
        self._join()
        if self._active:
            logits = self._rows.step(torch.tensor([ticket.last for ticket in self._active]))
            self._take(self._active, logits)
            self._let_go()
        self.measures.steps += 1
        self.measures.row_steps += len(self._active)

    def _of_joining(self) -> list[Ticket]:
        return self._joining[0] if self._joining is not None else []

    def _fail(self, error: str) -> None:
        """A forward failed: whoever took part gets an error, and the batch begins anew."""
        lost = [*self._active, *self._of_joining()]
        self._active, self._joining, self._rows = [], None, rows_of(self._model, self._device)
        for ticket in lost:
            if ticket.finish is None:
                self._end(ticket, "failed", error)

    def _let_go(self) -> None:
        """Rows that are done, cancelled or late leave the batch, and the line."""
        now = self._clock()
        for row in reversed(range(len(self._active))):
            ticket = self._active[row]
            if self._is_over(ticket, now):
                self._rows.leave(row)
                self._active[row] = self._active[-1]
                self._active.pop()
        if any(ticket.cancelled or self._is_late(ticket, now) for ticket in self._waiting):
            with self._changed:
                self._waiting = deque(ticket for ticket in self._waiting if not self._is_over(ticket, now))

    def _is_late(self, ticket: Ticket, now: float) -> bool:
        return now - ticket.submitted_s > ticket.request.timeout_s

    def _is_over(self, ticket: Ticket, now: float) -> bool:
        if ticket.finish is None and (ticket.cancelled or self._is_late(ticket, now)):
            self._end(ticket, "cancelled" if ticket.cancelled else "timeout")
        return ticket.finish is not None

    def _join(self) -> None:
        """Read prompts, or a piece of a long one; no more at once than the others should wait for."""
        left = CHUNK_TOKENS
        while left > 0:
            if self._joining is None:
                if not (tickets := self._next_ones()):
                    return
                self._joining = tickets, self._rows.join([ticket.request.prompt for ticket in tickets])
            tickets, reading = self._joining
            logits = next(reading)
            left -= sum(len(ticket.request.prompt) for ticket in tickets)
            if logits is not None:
                self._joining = None
                self._active += tickets
                self.measures.prompt_tokens += sum(len(ticket.request.prompt) for ticket in tickets)
                self._take(tickets, logits)
                self._let_go()

    def _next_ones(self) -> list[Ticket]:
        """The next in the line; short prompts several at once, as the weights are read from memory for each forward."""
        tickets: list[Ticket] = []
        longest = 0
        with self._changed:
            while self._waiting and len(self._active) + len(tickets) < self.max_rows:
                longest = max(longest, len(self._waiting[0].request.prompt))
                if tickets and longest * (len(tickets) + 1) > _READ_TOGETHER_TOKENS:
                    break
                tickets.append(self._waiting.popleft())
        return tickets

    def _take(self, tickets: list[Ticket], logits: Tensor) -> None:
        """Choose a token for each ticket from its row of logits."""
        logits = logits[:, : self._usable_ids].float().cpu()
        finite = logits.amax(dim=-1).isfinite().tolist()  # NaN where any logit is
        if not all(finite):
            logits = logits.nan_to_num(0.0, 0.0, 0.0)
        chosen = choose(logits, [ticket.request.sampling for ticket in tickets], [ticket.count for ticket in tickets])
        found = self._scores(tickets, logits, chosen)
        now = self._clock()
        for row, (ticket, token) in enumerate(zip(tickets, chosen.tolist(), strict=True)):
            if finite[row]:
                self._give(ticket, token, found.get(row), now)
            else:
                self._end(ticket, "failed", "the model's logits are not finite")

    def _scores(self, tickets: Sequence[Ticket], logits: Tensor, chosen: Tensor) -> dict[int, Score]:
        counts = {row: t.request.logprobs for row, t in enumerate(tickets) if t.request.logprobs is not None}
        if not counts:
            return {}
        rows = list(counts)
        return dict(zip(rows, scores(logits[rows], chosen[rows], list(counts.values())), strict=True))

    def _give(self, ticket: Ticket, token: int, score: Score | None, now: float) -> None:
        if ticket.first_s is None:
            ticket.first_s = now
            self.measures.first_token_s.add(now - ticket.submitted_s)
        if token in ticket.request.stop_ids:
            self._end(ticket, "stop")
            return
        ticket.last, ticket.count = token, ticket.count + 1
        self.measures.generated_tokens += 1
        ticket.unsent.append(token)
        text = ticket.stops.feed(ticket.text.feed(token))
        if ticket.stops.met or ticket.count == ticket.budget:
            self._end(ticket, "stop" if ticket.stops.met else "length", text=text, score=score)
        elif text or score is not None:
            ticket.sink(Piece(text, tuple(ticket.unsent), () if score is None else (score,)))
            ticket.unsent.clear()

    def _end(
        self, ticket: Ticket, finish: Finish, error: str = "", *, text: str = "", score: Score | None = None
    ) -> None:
        ticket.finish = finish
        if finish != "stop" or not ticket.stops.met:
            text += ticket.stops.feed(ticket.text.finish()) + ticket.stops.finish()
        self.measures.finished(finish)
        self.measures.request_s.add(self._clock() - ticket.submitted_s)
        ticket.sink(Piece(text, tuple(ticket.unsent), () if score is None else (score,), finish, error))
