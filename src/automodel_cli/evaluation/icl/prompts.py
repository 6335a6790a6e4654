"""What the model reads: worked examples, then the question, as published.

Every prompt is a tuple of pieces that only have to be joined: the worked examples, then the question with or without
an answer. Pieces are kept apart because tokenising can stop between them.

    multiple_choice     [query + delimiter + choice] for each choice
    schema              [context option + delimiter + continuation] for each option
    language_modeling   [context + delimiter (stripped)], [context + delimiter + continuation]
    generation          [prefix + question + delimiter (stripped at its end)]

Worked examples of item i are drawn by ``random.Random(1234 + i)`` from the other items: a score does not depend on
which items are scored, in which order or by which process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from automodel_cli.evaluation.icl.tasks import Task

Item = Mapping[str, Any]
Pieces = tuple[str, ...]
Ordered = TypeVar("Ordered")

_FEW_SHOT_SEED = 1234
_ORDER_SEED = 1337


def ordered(items: Sequence[Ordered], limit: int | None = None) -> list[Ordered]:
    """The items in their published random order, and the first ``limit`` of them.

    Several files are sorted by answer or topic, so the head of a file is no sample of it. The worked examples of a
    shortened task come from the shortened list, as published.
    """
    items = list(items)
    random.Random(_ORDER_SEED).shuffle(items)
    return items if limit is None else items[:limit]


def example_numbers(count: int, number: int, shots: int) -> list[int]:
    """Which of ``count`` items are the worked examples of item ``number``; at most all the others."""
    draws = random.Random(_FEW_SHOT_SEED + number).sample(range(count - 1), min(shots, count - 1))
    return [draw + (draw >= number) for draw in draws]  # as if drawn from a list without the item


def render(task: Task, item: Item, examples: Sequence[Item]) -> list[Pieces]:
    """The prompts of one question (see the table above)."""
    worked = tuple(_worked(task, example) for example in examples)
    if task.kind == "language_modeling":
        question = f"{_text(item['context']).strip()}{task.delimiter}"
        return [
            _stripped(_joined(task, worked, question)),
            _joined(task, worked, question + _text(item["continuation"])),
        ]
    return [_joined(task, worked, text) for text in _candidates(task, item)]


def _candidates(task: Task, item: Item) -> list[str]:
    """A question with each of its answers; for generation the question alone."""
    if task.kind == "multiple_choice":
        return [f"{_text(item['query'])}{task.delimiter}{_text(choice)}" for choice in item["choices"]]
    if task.kind == "schema":
        continuation = _text(item["continuation"])
        return [f"{_text(option)}{task.delimiter}{continuation}" for option in item["context_options"]]
    return [_question(task, item).rstrip()]


def _worked(task: Task, item: Item) -> str:
    """A question with its right answer."""
    if task.kind == "language_modeling":
        return f"{_text(item['context']).strip()}{task.delimiter}{_text(item['continuation'])}"
    if task.kind == "generation":
        reasoning = _text(item.get("chain_of_thought", "")).strip()
        return f"{_question(task, item)}{reasoning}{task.answer_mark}{_text(item['answer']).strip()}"
    return _candidates(task, item)[item["gold"]]


def _question(task: Task, item: Item) -> str:
    return f"{task.question_prefix}{_text(item['context']).strip()}{task.delimiter}"


def _joined(task: Task, worked: Pieces, last: str) -> Pieces:
    """The pieces with the joints between them, so that they need only be put one after another."""
    first, *others = [*worked, last]
    return (first, *(task.joint + piece for piece in others))


def _stripped(pieces: Pieces) -> Pieces:
    """Without white space at both ends: a trailing space would become part of the answer's first token."""
    if len(pieces) == 1:
        return (pieces[0].strip(),)
    return (pieces[0].lstrip(), *pieces[1:-1], pieces[-1].rstrip())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
