"""In-context tasks from items to scores: which answer the model gives to each question, and whether it is right.

multiple_choice, schema     the candidate with the lowest mean loss per token over the scored span
language_modeling           right if every scored token is the likeliest one
generation                  the likeliest continuation, cut at the stops, starts with an accepted answer, because a base
                            model does not know where to stop; compared by TriviaQA's normalization (Joshi et al. 2017)
"""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.evaluation.greedy import Prompt, continue_greedily, stops_at
from automodel_cli.evaluation.icl.aggregate import accuracy, centred, standard_error
from automodel_cli.evaluation.icl.data import TaskData
from automodel_cli.evaluation.icl.prompts import Item, example_numbers, ordered, render
from automodel_cli.evaluation.icl.rows import Encoder, Row, cropped, rows_of
from automodel_cli.evaluation.icl.tasks import Task
from automodel_cli.evaluation.span_scores import Progress, SpanScorer

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ANSWER_MARGIN = 10  # tokens a chain of thought may be longer than the longest of the data, as published


@dataclass(frozen=True)
class Questions:
    """A task made ready for one tokenizer and one context: it can be asked again at no cost.

    ``rows`` for the three kinds that are scored by likelihood; for generation ``prompts``, how many tokens an answer
    may have (as many as the longest of the data), and the ids that end one. ``cut`` questions are longer than the
    context, of which ``answers_cut`` have a scored span that is; ``moved_back`` had a span without ids (see
    ``icl_rows``).
    """

    task: Task
    items: Sequence[Item]
    shots: int
    fingerprint: str
    rows: Sequence[Sequence[Row]] = ()
    prompts: Sequence[tuple[int, ...]] = ()
    answer_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    cut: int = 0
    answers_cut: int = 0
    moved_back: int = 0

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class TaskScore:
    """How a model did on one task: its answers in the order of the questions."""

    questions: Questions
    answers: Sequence[Any]
    correct: Sequence[bool]
    seconds: float
    losses: Sequence[Sequence[float]] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The task's entry in a results file."""
        task, share = self.questions.task, accuracy(self.correct)
        return {
            "task": task.name,
            "version": task.version(),
            "kind": task.kind,
            "category": task.category,
            "shots": self.questions.shots,
            "count": len(self.correct),
            "accuracy": share,
            "stderr": standard_error(self.correct),
            "baseline": task.chance,
            "centred": centred(share, task.chance),
            "source": task.source,
            "data": self.questions.fingerprint,
            "cut_to_context": self.questions.cut,
            "answers_cut": self.questions.answers_cut,
            "spans_moved_back": self.questions.moved_back,
            "seconds": self.seconds,
            "items_per_s": len(self.correct) / max(self.seconds, 1e-9),
            "correct": "".join("1" if right else "0" for right in self.correct),
            **self._chosen(),
        }

    def _chosen(self) -> dict[str, Any]:
        """The number of the answer that was chosen, one digit a question where that is enough."""
        if self.questions.task.kind not in ("multiple_choice", "schema"):
            return {}
        digits = all(choice < 10 for choice in self.answers)
        return {"chosen": "".join(map(str, self.answers)) if digits else list(self.answers)}


def prepare(
    task: Task,
    data: TaskData,
    encoder: Encoder,
    *,
    context: int | None,
    limit: int | None = None,
    shots: int | None = None,
) -> Questions:
    """Render and tokenise a task.

    Args:
        context: ids that the model takes at most; None: no limit.
        limit: questions at most, from the published random order.
        shots: worked examples; None: as published. Never more than there are other items.
    """
    items = ordered(data.items, limit)
    wanted = min(task.shots if shots is None else shots, len(items) - 1)
    prompts = []
    for number, item in enumerate(items):
        examples = [items[other] for other in example_numbers(len(items), number, wanted)]
        prompts.append([encoder.encode(prompt) for prompt in render(task, item, examples)])
    cut = sum(context is not None and any(len(ids) > context for ids in of_one) for of_one in prompts)
    questions = Questions(task, items, wanted, data.fingerprint, cut=cut)
    if task.kind == "generation":
        room = _longest_answer(task, data.items, encoder.tokenizer)
        room = room if context is None else min(room, context // 2)  # a short context keeps some question
        asked = [ids for (ids,) in prompts]
        return replace(questions, prompts=asked, answer_tokens=room, stop_ids=encoder.stop_ids)
    found = [rows_of(task.kind, of_one) for of_one in prompts]
    return replace(
        questions,
        rows=[[cropped(row, context) for row in rows] for rows, _ in found],
        answers_cut=sum(any(_is_cut(row, context) for row in rows) for rows, _ in found),
        moved_back=sum(moved for _, moved in found),
    )


def _is_cut(row: Row, context: int | None) -> bool:
    """Whether not even the scored span fits behind one id."""
    return context is not None and row.end - max(1, row.start) > context - 1


def ask(
    questions: Questions, engine: SpanScorer, tokenizer: Tokenizer, *, progress: Progress | None = None
) -> TaskScore:
    """Put a task's questions to the model behind ``engine``; the same score on every rank."""
    started = time.perf_counter()
    if questions.task.kind == "generation":
        task, written = questions.task, _written(questions, engine, tokenizer, progress)
        answers = [extract_answer(text, answer_mark=task.answer_mark, stops=task.stops) for text in written]
        right = [is_answer(a, _accepted(item)) for a, item in zip(answers, questions.items, strict=True)]
        return TaskScore(questions, written, right, time.perf_counter() - started)
    scores = engine.score(questions.rows, progress=progress)
    losses = [[row.mean for row in of_one] for of_one in scores]
    seconds = time.perf_counter() - started
    if questions.task.kind == "language_modeling":
        right = [row.greedy for (row,) in scores]
        return TaskScore(questions, right, right, seconds, losses)
    chosen = [of_one.index(min(of_one)) for of_one in losses]
    right = [choice == item["gold"] for choice, item in zip(chosen, questions.items, strict=True)]
    return TaskScore(questions, chosen, right, seconds, losses)


# ------------------------------------------------------------------------------------------ generation


def _written(questions: Questions, engine: SpanScorer, tokenizer: Tokenizer, progress: Progress | None) -> list[str]:
    enough = stops_at(questions.task.stops, tokenizer.decode, tail=16)
    prompts = [Prompt(ids, questions.answer_tokens, enough) for ids in questions.prompts]
    ids = continue_greedily(
        engine, prompts, stop_ids=questions.stop_ids, usable_ids=tokenizer.vocab_size, progress=progress
    )
    return [tokenizer.decode(of_one) for of_one in ids]


def _longest_answer(task: Task, items: Sequence[Item], tokenizer: Tokenizer) -> int:
    """Tokens of the longest answer in the data, reasoning included."""
    texts = [
        f"{item['chain_of_thought']}{task.answer_mark}{answer}" if "chain_of_thought" in item else answer
        for item in items
        for answer in _accepted(item)
    ]
    lengths = tokenizer.encode_batch(texts)[1]
    return int(lengths.max()) + (_ANSWER_MARGIN if task.answer_mark else 0)


def _accepted(item: Mapping[str, Any]) -> list[str]:
    return [str(item["answer"]), *map(str, item.get("aliases", []))]


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def extract_answer(written: str, *, answer_mark: str = "", stops: Sequence[str] = ()) -> str:
    """The part of ``written`` before the first stop, and after the last ``answer_mark`` if there is one."""
    end = min((found for stop in stops if (found := written.find(stop)) >= 0), default=len(written))
    return written[:end].split(answer_mark)[-1] if answer_mark else written[:end]


def is_answer(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the normalized ``answer`` starts with one of the normalized ``accepted`` ones.

    One of which nothing is left ("a", "$a$") has to be the answer's first words, articles included.
    """
    given, words = normalize(answer), _words(answer)
    return any(
        given.startswith(wanted) if (wanted := normalize(text)) else _begins(words, _words(text)) for text in accepted
    )


def _words(text: str) -> list[str]:
    return text.lower().translate(_PUNCTUATION).split()


def _begins(words: list[str], wanted: list[str]) -> bool:
    return bool(wanted) and words[: len(wanted)] == wanted
