"""The engine: how probable given tokens are, for many rows at once, with as few tokens computed as possible.

Shapes: B rows, T tokens, D model width, P padded vocabulary, N scored tokens.

1. Rows of one question that share a long beginning (the choices of a multiple-choice item) are computed in two
   forwards: the shared beginning once, its keys and values repeated for each row, then what differs. Questions with
   beginnings of nearly one length go together; the beginning that is cached has the length of the shortest, and what
   the others have more is computed with each of their rows. So no row needs padding on its left, and positions are
   right for every kind of model.
2. All other rows are sorted by length, padded on the right and computed in batches. A causal model does not look at
   what comes later, so padding changes nothing.
3. Only the scored positions go through the head.

Batches depend on the rows alone, not on the number of processes. These take turns, so any number of them computes the
very same forwards and finds the very same numbers; each runs equally many, because a sharded model needs all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.distributed.world import World
from automodel_cli.dtypes import autocast
from automodel_cli.errors import AutomodelError
from automodel_cli.evaluation.icl.rows import Row, common_prefix
from automodel_cli.evaluation.likelihood import eval_mode
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.layers.gpt import softcapped
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.sizing.memory import TASK_LOGITS
from automodel_cli.train.losses import padding_bias

BatchSize = int | Literal["auto"]
Progress = Callable[[int, int], None]

# Tokens in a forward with batch size "auto", the repeated keys and values counted. GPT-2 124M keeps 74 KB a token.
AUTO_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 16}
_MIN_SHARED = 16  # tokens; below, a forward of its own costs more than it saves
_SPREAD = 0.15  # of the shared beginning: how much longer another question's may be in the same batch


@dataclass(frozen=True)
class RowScore:
    """Of a row's scored tokens: sum of negative log-likelihoods, their number, whether each was the likeliest.

    A row without any is nobody's answer: infinite mean, not greedy.
    """

    nll: float
    tokens: int
    greedy: bool

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nll / self.tokens if self.tokens else float("inf")


@dataclass(frozen=True)
class _Job:
    """Rows of one or two forwards; ``shared`` tokens at the start are computed once for each question.

    ``rows`` are numbers of rows, ``questions[i]`` the place in this job of the question that ``rows[i]`` belongs to.
    """

    shared: int
    rows: tuple[int, ...]
    questions: tuple[int, ...]


class SpanHead:
    """A head that returns ``[2, N]``: negative log-likelihood and whether it was the likeliest, for scored tokens."""

    takes_softcap = True

    def __call__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, softcap: float = 0.0
    ) -> Tensor:
        """From hidden states ``[B, T, D]``, the head weight ``[P, D]`` and labels ``[B, T]``."""
        scored = labels.flatten() != IGNORE_INDEX
        size = max(1, TASK_LOGITS.get(hidden.device.type, TASK_LOGITS["cuda"]) // weight.shape[0])
        states, targets = hidden.flatten(0, 1)[scored].split(size), labels.flatten()[scored].split(size)
        bias = padding_bias(weight, vocab_size) if not softcap else None

        def logits_of(piece: Tensor) -> Tensor:
            logits = F.linear(piece, weight, bias)
            return softcapped(logits[:, :vocab_size], softcap) if softcap else logits

        found = [_score(logits_of(piece), own) for piece, own in zip(states, targets, strict=True)]
        return torch.cat(found, dim=1)

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """From whole logits ``[B, T, V]``, for models that give no hidden states."""
        scored = labels.flatten() != IGNORE_INDEX
        return _score(logits.flatten(0, 1)[scored], labels.flatten()[scored])


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    nll = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.stack([nll, (logits.argmax(dim=-1) == targets).float()])


class _NoHead:
    """A head that computes nothing: of a shared beginning only keys and values are wanted."""

    takes_softcap = True

    def __call__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, softcap: float = 0.0
    ) -> Tensor:
        return hidden.new_zeros(())

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.new_zeros(())


class SpanScorer:
    """Scores rows with one model on one device.

    Args:
        batch_size: rows in a forward; "auto" counts tokens instead.
        share: compute shared beginnings once; None: where the model's cache passes a test.
        world: the processes that take turns.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
        batch_size: BatchSize = "auto",
        share: bool | None = None,
        world: World | None = None,
    ) -> None:
        self.model, self.device, self.autocast_dtype = model, torch.device(device), autocast_dtype
        self.world = world or World.single(device)
        self.batch_size = batch_size
        self.tokens = AUTO_TOKENS.get(self.device.type, AUTO_TOKENS["cuda"])
        self._share = share

    @property
    def share(self) -> bool:
        """Whether shared beginnings are computed once."""
        if self._share is None:
            with eval_mode(self.model, self.device), torch.no_grad(), self.autocast():
                self._share = cache_works(self.model, self.device)
        return self._share

    def autocast(self) -> torch.autocast:
        """The context in which the model computes."""
        return autocast(self.device, self.autocast_dtype)

    def score(self, questions: Sequence[Sequence[Row]], *, progress: Progress | None = None) -> list[list[RowScore]]:
        """The scores of each question's rows, on every rank."""
        rows, numbers = _numbered(questions)
        plain, shared = self._jobs(rows, [list(dict.fromkeys(of_one)) for of_one in numbers])
        found: dict[int, RowScore] = {}
        done = 0
        total, step, first = len(shared) + len(plain), self.world.dp_world, self.world.dp_rank
        with eval_mode(self.model, self.device), torch.no_grad(), self.autocast():
            for jobs in (shared, plain):
                for start in range(0, len(jobs), step):
                    job = jobs[min(start + first, len(jobs) - 1)]  # ranks that would have one fewer repeat the last
                    found |= zip(job.rows, self._run_or_halve(job, rows), strict=True)
                    done += step
                    if progress is not None:
                        progress(min(done, total), total)
        own = [[number, score.nll, score.tokens, score.greedy] for number, score in found.items()]
        found = {number: RowScore(*values) for of_rank in self.world.gather(own) for number, *values in of_rank}
        return [[found[number] for number in of_one] for of_one in numbers]

    # ---------------------------------------------------------------------------------------- planning

    def _jobs(self, rows: Sequence[Row], questions: Sequence[Sequence[int]]) -> tuple[list[_Job], list[_Job]]:
        """(jobs of one forward, jobs of two)."""
        alone: list[int] = []
        together: list[tuple[int, Sequence[int]]] = []
        for numbers in questions:
            beginning = shared_beginning([rows[number] for number in numbers]) if self.share else 0
            if beginning >= _MIN_SHARED:
                together.append((beginning, numbers))
            else:
                alone += numbers
        # The longest first: what is too long for memory fails at once.
        by_length = sorted(alone, key=lambda number: (-rows[number].end, number))
        plain: list[_Job] = []
        while by_length:
            count = self._room(rows[by_length[0]].end)
            plain.append(_Job(0, tuple(by_length[:count]), tuple(range(min(count, len(by_length))))))
            by_length = by_length[count:]
        return plain, self._shared_jobs(rows, together)

    def _shared_jobs(self, rows: Sequence[Row], questions: list[tuple[int, Sequence[int]]]) -> list[_Job]:
        questions = sorted(questions, key=lambda question: (-question[0], question[1][0]))
        jobs: list[_Job] = []
        while questions:
            count = self._fitting(rows, questions)
            group, questions = questions[:count], questions[count:]
            numbers = tuple(number for _, of_one in group for number in of_one)
            places = tuple(place for place, (_, of_one) in enumerate(group) for _ in of_one)
            jobs.append(_Job(group[-1][0], numbers, places))
        return jobs

    def _fitting(self, rows: Sequence[Row], questions: list[tuple[int, Sequence[int]]]) -> int:
        """How many of the first questions go into one job."""
        beginning, longest, total = questions[0][0], 0, 0
        for count, (own, numbers) in enumerate(questions):
            longest = max(longest, *(rows[number].end for number in numbers))
            total += len(numbers)
            if count and (own < beginning * (1 - _SPREAD) or total > self._room(longest)):
                return count
        return len(questions)

    def _room(self, length: int) -> int:
        """Rows of ``length`` tokens in one forward."""
        return self.batch_size if self.batch_size != "auto" else max(1, self.tokens // max(1, length))

    # --------------------------------------------------------------------------------------- computing

    def _run_or_halve(self, job: _Job, rows: Sequence[Row]) -> list[RowScore]:
        """A job that does not fit the device's memory is done in two halves; with several processes it cannot be.

        Raises:
            AutomodelError: not enough memory for one row, or for the number of rows that was asked for.
        """
        try:
            return self._run(job, rows)
        except torch.OutOfMemoryError as error:
            if self.batch_size != "auto" or self.world.size > 1 or len(job.rows) < 2:
                raise AutomodelError(
                    f"out of memory with {len(job.rows)} sequences of {max(rows[n].end for n in job.rows)} tokens",
                    "a smaller --batch-size, or --precision bf16, needs less",
                ) from error
        middle = len(job.rows) // 2
        second = tuple(place - job.questions[middle] for place in job.questions[middle:])
        halves = (
            _Job(job.shared, job.rows[:middle], job.questions[:middle]),
            _Job(job.shared, job.rows[middle:], second),
        )
        return [score for half in halves for score in self._run_or_halve(half, rows)]

    def _run(self, job: _Job, rows: Sequence[Row]) -> list[RowScore]:
        cache = None
        if job.shared:
            firsts = [rows[job.rows[job.questions.index(place)]] for place in range(job.questions[-1] + 1)]
            cache = KVCache()
            inputs = torch.tensor([row.ids[: job.shared] for row in firsts], device=self.device)
            self.model(Batch(inputs, torch.full_like(inputs, IGNORE_INDEX)), head_loss=_NoHead(), cache=cache)
            cache.select_rows(torch.tensor(job.questions, device=self.device))
        batch = padded([rows[number] for number in job.rows], skip=job.shared).to(self.device)
        found = self.model(batch, head_loss=SpanHead(), cache=cache).double().cpu()
        counts = [rows[number].end - rows[number].start for number in job.rows]
        return [
            RowScore(float(nll.sum()), count, count > 0 and bool(likeliest.all()))
            for (nll, likeliest), count in zip(found.split(counts, dim=1), counts, strict=True)
        ]


def _numbered(questions: Sequence[Sequence[Row]]) -> tuple[list[Row], list[list[int]]]:
    """All rows to compute, and each question's as numbers of them: its equal rows once, so that they tie exactly."""
    rows: list[Row] = []
    numbers = []
    for of_one in questions:
        known: dict[Row, int] = {}
        for row in of_one:
            if row not in known:
                known[row] = len(rows)
                rows.append(row)
        numbers.append([known[row] for row in of_one])
    return rows, numbers


def padded(rows: Sequence[Row], *, skip: int = 0) -> Batch:
    """Rows from id ``skip`` on as one batch, padded on the right; labels where something is scored.

    The last scored id is only predicted, so it is no input.
    """
    longest = max(max(row.end - 1, skip + 1) for row in rows) - skip
    inputs = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full_like(inputs, IGNORE_INDEX)
    for place, row in enumerate(rows):
        own = torch.tensor(row.ids[skip : row.end - 1], dtype=torch.int64)
        inputs[place, : len(own)] = own
        labels[place, row.start - 1 - skip : row.end - 1 - skip] = torch.tensor(row.ids[row.start : row.end])
    return Batch(inputs, labels)


def shared_beginning(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with and that need not be looked at by the head; 0 for a single row."""
    if len(rows) < 2:
        return 0
    return min(common_prefix([row.ids for row in rows]), min(row.start for row in rows) - 1)


@torch.no_grad()
def cache_works(model: CausalLM, device: torch.device) -> bool:
    """Whether two rows computed through repeated keys and values give what they give without (three forwards).

    Some models have no cache, or one that cannot be repeated; that only costs time, so it is found out.
    """
    length = min(24, model.max_seq_len or 24)
    if length < 4:
        return False
    ids = (torch.arange(2 * length, device=device).view(2, length) * 7919) % model.vocab_size
    ids[1, : length // 2] = ids[0, : length // 2]
    whole = model(Batch(ids))[:, length // 2 :]
    labels = torch.full_like(ids[:1, : length // 2], IGNORE_INDEX)
    cache = KVCache()
    try:
        model(Batch(ids[:1, : length // 2], labels), head_loss=_NoHead(), cache=cache)
        cache.select_rows(torch.tensor([0, 0], device=device))
        pieces = model(Batch(ids[:, length // 2 :]), cache=cache)
    except Exception:  # whatever a foreign cache does not like
        return False
    exact = whole.dtype == torch.float32
    return torch.allclose(whole.float(), pieces.float(), rtol=0, atol=(1e-3 if exact else 0.05) * float(whole.std()))
