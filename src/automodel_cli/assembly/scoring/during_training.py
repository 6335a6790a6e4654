"""The ``evaluation:`` section: tasks and prompts made ready once, put to the model as it is, written where metrics go.

Every rank takes part and finds the same. The model's modes and the random generators are afterwards as before, no
gradient is touched and no training data read: a run goes on exactly as one without this section.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.scoring.chat_tasks import is_chat
from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.run_sections import EvaluationConfig
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.greedy import AUTO_ROWS, Prompt, continue_greedily
from automodel_cli.evaluation.icl.aggregate import aggregates
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.evaluation.icl.rows import Encoder
from automodel_cli.evaluation.icl.scores import Questions, ask, prepare
from automodel_cli.evaluation.icl.tasks import select_tasks
from automodel_cli.evaluation.span_scores import AUTO_TOKENS, SpanScorer
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.throughput import Throughput
from automodel_cli.models.interface import CausalLM
from automodel_cli.train.compiling import eagerly
from automodel_cli.train.preemption import Stopped, StopRequest
from automodel_cli.train.state import TrainState

COLUMNS = ("task", "shots", "items", "accuracy", "centred")


class Run(Protocol):
    """What an evaluation needs of the run it is part of."""

    @property
    def model(self) -> CausalLM: ...
    @property
    def state(self) -> TrainState: ...
    @property
    def world(self) -> World: ...
    @property
    def fast_path(self) -> FastPath: ...
    @property
    def stop(self) -> StopRequest: ...
    @property
    def reporter(self) -> Reporter: ...


@dataclass(frozen=True)
class RunEvaluation:
    """What a run's ``evaluation:`` section asks, ready to be asked; ``settings`` None: nothing, never."""

    settings: EvaluationConfig | None = None
    tokenizer: Tokenizer | None = None
    separator_id: int | None = None
    questions: tuple[Questions, ...] = ()
    missing: tuple[str, ...] = ()

    def forward_size(self, device_type: str, context: int | None) -> tuple[int, int]:
        """Tokens of the largest forward of tasks and samples, and of its longest row; 0, 0: there are none."""
        if self.settings is None or self.tokenizer is None:
            return 0, 0
        encoder, more = Encoder(self.tokenizer), self.settings.max_new_tokens
        written = [len(encoder.encode((text,))) + more for text in self.settings.prompts]
        written += [len(ids) + one.answer_tokens for one in self.questions for ids in one.prompts]
        scored = [row.end for one in self.questions for rows in one.rows for row in rows]
        size, most = self.settings.batch_size, context or max(written + scored, default=0)
        longest = min(max(scored, default=0), most)
        room = max(AUTO_TOKENS[device_type], longest) if size == "auto" else size * longest
        marching = min(max(written, default=0), most)
        rows = min(len(written), AUTO_ROWS if size == "auto" else size)
        return max(min(room, sum(scored)), rows * marching), max(longest, marching)

    def run(self, run: Run, metrics: MetricsLog, throughput: Throughput) -> bool:
        """Put everything to the model of ``run`` and log it; False: a signal ended it without a record."""
        if not self.questions and not (self.settings and self.settings.prompts):
            return True
        # Questions are of many lengths: compiled blocks would be compiled anew for each.
        with throughput.pause(), contextlib.suppress(Stopped), eagerly():
            self._ask(run, metrics)
            return True
        return False

    def _ask(self, run: Run, metrics: MetricsLog) -> None:
        assert self.settings is not None and self.tokenizer is not None
        started = time.perf_counter()
        engine = SpanScorer(
            run.model,
            device=run.world.device,
            autocast_dtype=run.fast_path.autocast_dtype,
            batch_size=self.settings.batch_size,
            world=run.world,
        )

        def listen(done: int, total: int) -> None:
            if run.stop.agreed(run.world.any):
                raise Stopped

        scores = [ask(one, engine, self.tokenizer, progress=listen).as_dict() for one in self.questions]
        samples = _samples(self.settings, engine, Encoder(self.tokenizer, self.separator_id), listen)
        found = _record(scores, self.settings, samples)
        where = {"step": run.state.step, "epoch": run.state.epoch}
        metrics.evaluation({**where, **found, "seconds": time.perf_counter() - started})
        _show(run.reporter, run.state.step, scores, samples)


def _record(
    scores: Sequence[dict[str, Any]], settings: EvaluationConfig, samples: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``: numbers at its top, as W&B takes them; texts below ``samples``."""
    means = aggregates({entry["task"]: entry for entry in scores}, settings.tasks)
    record: dict[str, Any] = {"evaluated_tasks": len(scores), "samples": list(samples)}
    if "core" in means:
        record |= {"core": means["core"]["score"], "core_tasks": means["core"]["tasks"]}
    if "gauntlet" in means:
        record |= {"gauntlet": means["gauntlet"]["score"], "gauntlet_tasks": means["gauntlet"]["tasks"]}
    return record | {f"accuracy/{entry['task']}": entry["accuracy"] for entry in scores}


def _samples(
    settings: EvaluationConfig, engine: SpanScorer, encoder: Encoder, listen: Callable[[int, int], None]
) -> list[dict[str, str]]:
    if not settings.prompts:
        return []
    tokenizer = encoder.tokenizer
    prompts = [Prompt(encoder.encode((text,)), settings.max_new_tokens) for text in settings.prompts]
    written = continue_greedily(
        engine, prompts, stop_ids=encoder.stop_ids, usable_ids=tokenizer.vocab_size, progress=listen
    )
    return [
        {"prompt": text, "text": tokenizer.decode(ids)} for text, ids in zip(settings.prompts, written, strict=True)
    ]


def _show(reporter: Reporter, step: int, scores: Sequence[dict[str, Any]], samples: Sequence[dict[str, str]]) -> None:
    if scores:
        rows = [
            [
                entry["task"],
                str(entry["shots"]),
                f"{entry['count']:,}",
                f"{entry['accuracy']:.4f}",
                f"{entry['centred']:.4f}",
            ]
            for entry in scores
        ]
        reporter.columns(f"step {step}", COLUMNS, rows)
    for sample in samples:
        reporter.say(f"[sample] {sample['prompt']!r} -> {sample['text']!r}")


def build_evaluation(
    cfg: PretrainConfig, model: CausalLM, tokenizer: RunTokenizer | None, say: Callable[[str], None]
) -> RunEvaluation:
    """Read, render and tokenise what the ``evaluation:`` section names.

    Raises:
        ConfigError: no tokenizer, an unknown task, no data, or a mesh that shares sequences or matrices.
        DataError: damaged task data.
    """
    settings = cfg.evaluation
    if settings is None:
        return RunEvaluation()
    if not settings.tasks and not settings.prompts:
        return RunEvaluation(settings)
    if odd := [word for word in settings.tasks if is_chat(word)]:
        raise ConfigError(
            f"evaluation.tasks: {', '.join(odd)} is not asked during training",
            f"score the checkpoints with automodel eval --tasks {','.join(odd)}",
        )
    if cfg.distributed.tp_size > 1 or cfg.distributed.cp_size > 1:
        raise ConfigError(
            "evaluation.tasks and .prompts with tp_size or cp_size above one",
            "leave them out; score the checkpoints with automodel eval --tasks",
        )
    if tokenizer is None:
        raise ConfigError("evaluation: the training data came without a tokenizer", "name it: tokenizer: ...")
    asked = RunEvaluation(settings, tokenizer.tokenizer, tokenizer.separator_id)
    return _with_questions(asked, model, say) if settings.tasks else asked


def _with_questions(evaluation: RunEvaluation, model: CausalLM, say: Callable[[str], None]) -> RunEvaluation:
    settings, tokenizer = evaluation.settings, evaluation.tokenizer
    assert settings is not None and tokenizer is not None
    bundle = Bundle(settings.bundle)
    encoder, questions, missing = Encoder(tokenizer, evaluation.separator_id), [], []
    for task in select_tasks(settings.tasks, bundle.others):
        data = bundle.load(task)
        if data is None:
            missing.append(task.name)
            continue
        limits = {"limit": settings.max_per_task, "shots": settings.num_fewshot}
        questions.append(prepare(task, data, encoder, context=model.max_seq_len, **limits))
    if missing:
        say(f"note: evaluation has no data for {', '.join(missing)}")
    return replace(evaluation, questions=tuple(questions), missing=tuple(missing))
