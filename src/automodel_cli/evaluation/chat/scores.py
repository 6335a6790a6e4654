"""A chat task from its questions to its score.

Letters are compared where one of several choices is right: each choice is rendered as the answer that mid-training
teaches (``B: the choice``), and the one whose first token of its own is the likeliest wins. For everything else the
likeliest answer is written and graded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from automodel_cli.corpus.conversations.chat_format import ChatFormat
from automodel_cli.corpus.conversations.conversation import Conversation, Message
from automodel_cli.errors import DataError
from automodel_cli.evaluation.chat import programs
from automodel_cli.evaluation.chat.data import Asked
from automodel_cli.evaluation.chat.tasks import CHATCORE, VERSION, ChatTask, Grades, Question, program
from automodel_cli.evaluation.greedy import Prompt, continue_greedily
from automodel_cli.evaluation.icl.aggregate import accuracy, centred, mean_centred, standard_error
from automodel_cli.evaluation.icl.rows import Row, common_prefix, cropped
from automodel_cli.evaluation.span_scores import Progress, SpanScorer

Writer = Callable[[Sequence[Prompt]], list[list[int]]]


def evaluate(task: ChatTask, asked: Asked, chat: ChatFormat, engine: SpanScorer, progress: Progress) -> dict[str, Any]:
    """Put a task's questions to the model behind ``engine``: the task's entry in the results file.

    Every rank takes part; what is graded with the help of other processes is graded by the main one alone, and the
    others' entries lack it.

    Raises:
        DataError: the tokenizer does not tell the letters apart, or the chat format refuses a question.
    """
    started = time.perf_counter()
    if task.max_new_tokens == 0:
        grades, cut, more = _compare_letters(asked.questions, chat, engine, progress)
    else:
        conversations = [question.conversation for question in asked.questions]
        texts, cut = write(conversations, chat, engine, task.max_new_tokens, progress)
        grades = _graded(task, asked.questions, texts, is_main=engine.world.is_main)
        more = {"answers": texts}
    return _entry(task, asked, grades, time.perf_counter() - started, {"cut_to_context": cut, **more})


def _entry(task: ChatTask, asked: Asked, grades: Grades, seconds: float, more: Mapping[str, Any]) -> dict[str, Any]:
    share = accuracy(grades.correct)
    return {
        "task": task.name,
        "version": f"chat.{VERSION}",
        "kind": "generation" if task.max_new_tokens else "letters",
        "category": "chat",
        "shots": 0,
        "count": len(grades.correct),
        "accuracy": share,
        "stderr": standard_error(grades.correct),
        "baseline": task.chance,
        "centred": centred(share, task.chance),
        "source": task.dataset,
        "data": asked.fingerprint,
        "seconds": seconds,
        "items_per_s": len(grades.correct) / max(seconds, 1e-9),
        **grades.more,
        **more,
        "correct": "".join("1" if right else "0" for right in grades.correct),
    }


def means(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """ChatCORE, over those of its tasks that were scored; nothing where none was."""
    if found.keys().isdisjoint(CHATCORE):
        return {}
    return {"chatcore": mean_centred(found, CHATCORE, {name: found[name]["baseline"] for name in found})}


# ----------------------------------------------------------------------------------------------- letters


def _compare_letters(
    questions: Sequence[Question], chat: ChatFormat, engine: SpanScorer, progress: Progress
) -> tuple[Grades, int, dict[str, Any]]:
    context = engine.model.max_seq_len
    rows = [letter_rows(question, chat) for question in questions]
    cut = sum(context is not None and len(of_one[0].ids) > context for of_one in rows)
    scores = engine.score([[cropped(row, context) for row in of_one] for of_one in rows], progress=progress)
    losses = [[row.nll for row in of_one] for of_one in scores]
    chosen = [of_one.index(min(of_one)) for of_one in losses]
    right = [choice == question.gold for choice, question in zip(chosen, questions, strict=True)]
    return Grades(right), cut, {"chosen": "".join(map(str, chosen))}


def letter_rows(question: Question, chat: ChatFormat) -> list[Row]:
    """For each choice the conversation in which it is the answer, up to the first token that tells it from others.

    Raises:
        DataError: two choices begin with one token.
    """
    ids = [chat.render((*question.conversation, Message("assistant", text))).ids for text in question.answers]
    place = common_prefix([tuple(one) for one in ids]) if len(ids) > 1 else len(chat.prompt(question.conversation))
    firsts = [one[place] for one in ids]
    if len(set(firsts)) < len(firsts):
        raise DataError(
            f"tokenizer {chat.tokenizer.name} does not tell the letters of two choices apart",
            "evaluate with a tokenizer that has a token for each letter",
        )
    return [Row((*one[:place], first), place, place + 1) for one, first in zip(ids, firsts, strict=True)]


# ------------------------------------------------------------------------------------------------ writing


def write(
    conversations: Sequence[Conversation],
    chat: ChatFormat,
    engine: SpanScorer,
    max_new_tokens: int,
    progress: Progress,
) -> tuple[list[str], int]:
    """The likeliest answer to each conversation, on every rank; how many of them do not fit the context whole.

    A conversation that leaves less than half of the context for its answer loses its beginning.
    """
    context = engine.model.max_seq_len
    prompts = []
    for conversation in conversations:
        ids = chat.prompt(conversation)
        room = max_new_tokens if context is None else max(context - len(ids), context // 2)
        prompts.append(Prompt(tuple(ids), min(max_new_tokens, room)))
    cut = sum(context is not None and len(one.ids) + one.max_new_tokens > context for one in prompts)
    usable = min(chat.tokenizer.vocab_size, engine.model.vocab_size)
    written = continue_greedily(engine, prompts, stop_ids=chat.stop_ids, usable_ids=usable, progress=progress)
    return [chat.tokenizer.decode(ids) for ids in written], cut


def _graded(task: ChatTask, questions: Sequence[Question], texts: Sequence[str], *, is_main: bool) -> Grades:
    if task.grade is not None:
        return task.grade(questions, texts)
    runnable = [program(question, text) for question, text in zip(questions, texts, strict=True)]
    return Grades(programs.which_pass(runnable) if is_main else [False] * len(runnable))
