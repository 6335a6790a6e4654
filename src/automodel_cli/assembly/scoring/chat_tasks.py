"""Chat tasks of ``automodel eval``: their questions are read before the model is loaded, then put to it one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from automodel_cli.assembly.answering import known_chat_format
from automodel_cli.assembly.checkpoint import LoadedModel
from automodel_cli.config.schema.results import TasksConfig
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.evaluation.chat import data, programs, scores
from automodel_cli.evaluation.chat.data import Asked
from automodel_cli.evaluation.chat.tasks import ChatTask, select_tasks
from automodel_cli.evaluation.span_scores import Progress, SpanScorer


@dataclass(frozen=True)
class ChatQuestions:
    """Tasks with their questions, and why others are not run."""

    ready: Sequence[tuple[ChatTask, Asked]]
    not_run: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.ready)


def prepare(cfg: TasksConfig, words: Sequence[str], *, allow_code: bool) -> ChatQuestions:
    """Read the questions of the chat tasks that ``words`` name. A task that cannot be run does not stop the others.

    Raises:
        ConfigError: none of them can be run, or generated code cannot be confined here.
    """
    if allow_code:
        programs.check_confinement()
    ready, not_run = [], {}
    for task in select_tasks(words):
        try:
            if task.runs_code and not allow_code:
                raise ConfigError("it runs code that the model writes", "allow that with --allow-code-execution")
            ready.append((task, data.load(task, cfg.chat_data, cfg.max_per_task)))
        except AutomodelError as error:
            not_run[task.name] = f"{error.message} ({error.hint})" if error.hint else error.message
    if not_run and not ready:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise ConfigError(f"no chat task can be run: {reasons}", "--chat-data names a folder with their rows")
    return ChatQuestions(ready, not_run)


def evaluate(
    questions: ChatQuestions,
    loaded: LoadedModel,
    engine: SpanScorer,
    tokenizer: Tokenizer,
    results: dict[str, Any],
    progress: Callable[[str], Progress],
) -> None:
    """Put the questions to the model, and add what was found to ``results``: ``tasks``, ``means``, ``not_run``.

    Raises:
        ConfigError: the tokenizer knows no chat format.
    """
    chat = known_chat_format(tokenizer, loaded)
    if chat is None:
        raise ConfigError(
            f"{loaded.path} knows no chat format, and chat tasks are asked in one",
            "evaluate a mid-trained checkpoint; for base models there is --tasks core",
        )
    results["settings"]["chat_format"] = chat.name
    found = {
        task.name: scores.evaluate(task, asked, chat, engine, progress(task.name)) for task, asked in questions.ready
    }
    results["tasks"] = {**results.get("tasks", {}), **found}
    results["not_run"] = questions.not_run
    results["means"] = {**results.get("means", {}), **scores.means(found)}
