"""Chat tasks of ``automodel eval``: their questions are read before the model is loaded, then put to it one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.assembly.answering import known_chat_format, model_name
from automodel_cli.assembly.checkpoint import LoadedModel
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.schema.results import EvaluateOptions, TasksConfig
from automodel_cli.corpus.conversations.chat_format import ChatFormat
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.evaluation.chat import data, judged, programs, scores
from automodel_cli.evaluation.chat.data import Asked
from automodel_cli.evaluation.chat.judge_client import KEY_VARIABLE, JudgeClient
from automodel_cli.evaluation.chat.judged import SUITES, Suite
from automodel_cli.evaluation.chat.tasks import GROUPS, TASKS, ChatTask
from automodel_cli.evaluation.span_scores import Progress, SpanScorer
from automodel_cli.files import make_folder


@dataclass(frozen=True)
class ChatQuestions:
    """Tasks and suites with their questions, why others are not run, and who grades the suites."""

    tasks: list[tuple[ChatTask, Asked]] = field(default_factory=list)
    suites: list[tuple[Suite, Sequence[Mapping[str, Any]]]] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    judge: JudgeClient | None = None
    answers: Path = Path()

    def __bool__(self) -> bool:
        return bool(self.tasks or self.suites)


def is_chat(word: str) -> bool:
    """Whether a word of ``--tasks`` means chat tasks."""
    return word in TASKS or word in GROUPS or word in SUITES


def prepare(cfg: TasksConfig, options: EvaluateOptions) -> ChatQuestions:
    """Read the questions of the chat tasks among ``cfg.tasks``. A task that cannot be run does not stop the others.

    Raises:
        ConfigError: none of them can be run, generated code cannot be confined here, or half a judge is named.
    """
    words = [word for word in cfg.tasks if is_chat(word)]
    names = dict.fromkeys(name for word in words for name in GROUPS.get(word, (word,)))
    asked = ChatQuestions(judge=_judge(options, names), answers=Path(cfg.chat_answers))
    if options.allow_code_execution:
        programs.check_confinement()
    for name in names:
        try:
            _read(name, cfg, asked, allow_code=options.allow_code_execution)
        except AutomodelError as error:
            asked.not_run[name] = f"{error.message} ({error.hint})" if error.hint else error.message
    if words and not asked:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in asked.not_run.items())
        raise ConfigError(f"no chat task can be run: {reasons}", "--chat-data names a folder with their rows")
    return asked


def _judge(options: EvaluateOptions, names: Mapping[str, Any]) -> JudgeClient | None:
    url, model = options.judge_url, options.judge_model
    if url is None and model is None:
        return None
    if url is None or model is None or SUITES.keys().isdisjoint(names):
        raise ConfigError(
            "a judge has an address and a model, and grades mt_bench and alpaca_eval",
            "give --judge-url and --judge-model together, with --tasks mt_bench or alpaca_eval",
        )
    return JudgeClient(url, model, os.environ.get(KEY_VARIABLE))


def _read(name: str, cfg: TasksConfig, asked: ChatQuestions, *, allow_code: bool) -> None:
    if name in SUITES:
        if cfg.chat_data is None:
            raise ConfigError("its questions are read from a file", "--chat-data names the folder with it")
        rows = data.read_rows(data.local_file(cfg.chat_data, name), SUITES[name].checked)
        make_folder(asked.answers / name, "--chat-answers")
        asked.suites.append((SUITES[name], rows[: cfg.max_per_task]))
        return
    task = TASKS[name]
    if task.runs_code and not allow_code:
        raise ConfigError("it runs code that the model writes", "allow that with --allow-code-execution")
    asked.tasks.append((task, data.load(task, cfg.chat_data, cfg.max_per_task)))


def evaluate(
    asked: ChatQuestions,
    loaded: LoadedModel,
    engine: SpanScorer,
    tokenizer: Tokenizer,
    reporter: Reporter,
) -> dict[str, Any]:
    """Put the questions to the model: ``tasks``, ``means``, ``not_run`` and ``judged`` of the results.

    Raises:
        ConfigError: the tokenizer knows no chat format.
    """
    chat = known_chat_format(tokenizer, loaded)
    if chat is None:
        raise ConfigError(
            f"{loaded.path} knows no chat format, and chat tasks are asked in one",
            "evaluate a mid-trained checkpoint; for base models there is --tasks core",
        )

    def progress(name: str) -> Progress:
        return lambda done, total: reporter.progress(done, total, name)

    found = {task.name: scores.evaluate(task, own, chat, engine, progress(task.name)) for task, own in asked.tasks}
    results: dict[str, Any] = {"tasks": found, "means": scores.means(found), "not_run": asked.not_run}
    if asked.suites:
        results["judged"] = {
            suite.name: _answered(suite, rows, asked, model_name(loaded.path), chat, engine, progress(suite.name))
            for suite, rows in asked.suites
        }
    return results


def _answered(
    suite: Suite,
    rows: Sequence[Mapping[str, Any]],
    asked: ChatQuestions,
    model: str,
    chat: ChatFormat,
    engine: SpanScorer,
    progress: Progress,
) -> dict[str, Any]:
    """A suite's answers, written to its file, and their grades where there is a judge; the main process does both."""
    answers = judged.answer(
        suite, rows, lambda said: scores.write(said, chat, engine, judged.MAX_NEW_TOKENS, progress)[0]
    )
    entry: dict[str, Any] = {"count": len(rows), "metrics": {}}
    if not engine.world.is_main:
        return entry
    entry["answers"] = str(suite.export(rows, answers, model, asked.answers / suite.name))
    if asked.judge is not None:
        try:
            entry |= {"judge": asked.judge.model, **judged.grade(suite, rows, answers, asked.judge)}
        except AutomodelError as error:  # the answers are there, and the other tasks' results are not lost
            asked.not_run[f"the judge of {suite.name}"] = f"{error.message} ({error.hint})"
    return entry
