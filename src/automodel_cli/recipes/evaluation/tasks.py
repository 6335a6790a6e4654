"""In-context tasks, chat tasks and harness tasks, in order: processes, model, data, each task, means, results file."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers

from automodel_cli import device as this_machine
from automodel_cli import transformers_calls
from automodel_cli.assembly.checkpoint import (
    LoadedModel,
    compute_precision,
    describe_weights,
    load_model,
    refuse_unloadable,
)
from automodel_cli.assembly.facts import versions
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.scoring import chat_tasks, results_file
from automodel_cli.config.schema.results import EvaluateOptions, TasksConfig
from automodel_cli.config.targets.allowlist import Trust
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.distributed import start
from automodel_cli.distributed.world import World
from automodel_cli.dtypes import autocast_dtype
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.evaluation.icl.aggregate import aggregates
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.evaluation.icl.rows import Encoder
from automodel_cli.evaluation.icl.scores import ask, prepare
from automodel_cli.evaluation.icl.tasks import Task, select_tasks
from automodel_cli.evaluation.span_scores import SpanScorer
from automodel_cli.processes import own_rank

FORMAT = "automodel-task-results/1"


def run(
    cfg: TasksConfig,
    *,
    reporter: Reporter | None = None,
    options: EvaluateOptions | None = None,
) -> results_file.StoredResults:
    """Put ``cfg.tasks`` and ``cfg.harness`` to ``cfg.checkpoint``.

    Args:
        options: what the user allows: whose code may run (``cfg.harness_path``, the file or module that builds the
            model), whether programs that the model writes may, and who judges its answers.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: an unknown task, no data, no tokenizer, or the harness is not installed.
        DataError: damaged task data, or a tokenizer that is not the model's.
    """
    reporter, options = reporter or Reporter(), options or EvaluateOptions()
    results_file.check_output(cfg.output)
    if cfg.harness and importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--harness needs the package lm-eval", "pip install 'automodel-cli[eval]'")
    in_context = [word for word in cfg.tasks if not chat_tasks.is_chat(word)]
    bundle = Bundle(cfg.bundle) if in_context else None
    tasks = select_tasks(in_context, bundle.others) if bundle is not None else []
    refuse_unloadable(cfg.checkpoint, averaged=cfg.ema)  # questions may come from a Hub that lets one wait
    chat = chat_tasks.prepare(cfg, options)
    device = this_machine.pick_device(cfg.device)
    this_machine.bound_the_heap()
    world = start.join(device.type) if own_rank().size > 1 else World.single(device)
    try:
        loaded = load_model(cfg.checkpoint, device=world.device, trust=options.trust, averaged=cfg.ema)
        reporter = reporter if world.is_main else Reporter()
        for note in loaded.notes:
            reporter.say(note)
        return _run(cfg, loaded, bundle, tasks, chat, world, reporter, options.trust)
    finally:
        start.leave(world)


def _run(
    cfg: TasksConfig,
    loaded: LoadedModel,
    bundle: Bundle | None,
    tasks: list[Task],
    chat: chat_tasks.ChatQuestions,
    world: World,
    reporter: Reporter,
    trust: Sequence[str],
) -> results_file.StoredResults:
    tokenizer, separator_id = _reads_with(cfg, loaded)
    precision = compute_precision(cfg.precision, loaded, world.device)
    engine = SpanScorer(
        loaded.model,
        device=world.device,
        autocast_dtype=autocast_dtype(precision),
        batch_size=cfg.batch_size,
        world=world,
    )
    results: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": describe_weights(loaded),
        "settings": {
            "max_per_task": cfg.max_per_task,
            "num_fewshot": cfg.num_fewshot,
            "batch_size": cfg.batch_size,
            "context": loaded.model.max_seq_len,
            "tokenizer": tokenizer.name,
            "precision": precision,
            "device": world.device.type,
            "processes": world.size,
        },
        "versions": versions(),
    }
    if bundle is not None:
        encoder = Encoder(tokenizer, separator_id)
        results |= _in_context(cfg, bundle, tasks, engine, encoder, reporter)
    if chat:
        started = time.perf_counter()
        for key, value in chat_tasks.evaluate(chat, loaded, engine, tokenizer, reporter).items():
            results[key] = results.get(key, {}) | value
        results["seconds"] = results.get("seconds", 0.0) + time.perf_counter() - started
    if cfg.harness:
        results["harness"] = _harness(cfg, loaded, engine, tokenizer, separator_id, reporter, trust)
    if not world.is_main:
        return results_file.StoredResults(results, None)
    asked = (*cfg.tasks, *cfg.harness)
    return results_file.StoredResults(results, results_file.store(results, cfg.output, loaded.path, asked))


def _reads_with(cfg: TasksConfig, loaded: LoadedModel) -> tuple[Tokenizer, int | None]:
    tokenizer, separator_id = loaded.reads_with(cfg.tokenizer)
    if tokenizer.vocab_size > loaded.model.vocab_size:
        raise DataError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} ids, the model {loaded.model.vocab_size:,}",
            "name the tokenizer that the model was trained with: --tokenizer",
        )
    return tokenizer, separator_id


# -------------------------------------------------------------------------------------- in-context tasks


def _in_context(
    cfg: TasksConfig,
    bundle: Bundle,
    tasks: list[Task],
    engine: SpanScorer,
    encoder: Encoder,
    reporter: Reporter,
) -> dict[str, Any]:
    """``tasks``, ``missing``, ``means`` and ``seconds`` of the results."""
    started = time.perf_counter()
    tokenizer = encoder.tokenizer
    found: dict[str, dict[str, Any]] = {}
    missing = [task.name for task in tasks if bundle.find(task) is None]
    if len(missing) == len(tasks):
        raise ConfigError(
            f"{bundle.folder} has no data of {', '.join(missing[:5])}",
            "name another folder with --bundle, or other tasks",
        )
    for task in tasks:
        data = bundle.load(task)
        if data is None:
            continue
        context = engine.model.max_seq_len
        questions = prepare(task, data, encoder, context=context, limit=cfg.max_per_task, shots=cfg.num_fewshot)
        entry = ask(questions, engine, tokenizer, progress=_shown(reporter, task.name)).as_dict()
        own = bundle.baselines.get(task.name)
        if own is not None and abs(own / 100 - entry["baseline"]) > 1e-9:
            entry["baseline_in_bundle"] = own / 100  # where it is another than ours
        found[task.name] = entry
    return {
        "tasks": found,
        "missing": missing,
        "means": aggregates(found, cfg.tasks),
        "seconds": time.perf_counter() - started,
    }


def _shown(reporter: Reporter, name: str) -> Callable[[int, int], None]:
    return lambda done, total: reporter.progress(done, total, name)


# --------------------------------------------------------------------------------- lm-evaluation-harness


def _harness(
    cfg: TasksConfig,
    loaded: LoadedModel,
    engine: SpanScorer,
    tokenizer: Tokenizer,
    separator_id: int | None,
    reporter: Reporter,
    trust: Sequence[str],
) -> dict[str, Any]:
    """The harness' entries by task; the package is an extra, so it is imported where it is wanted."""
    from automodel_cli.evaluation.harness import run as harness

    request = harness.HarnessRequest(
        tasks=cfg.harness,
        folder=cfg.harness_path,
        shots=cfg.num_fewshot,
        limit=cfg.max_per_task,
        chat_template=cfg.chat_template,
        is_trusted=cfg.harness_path is not None and Trust(trust).allows_source(cfg.harness_path),
    )
    return harness.evaluate(
        request,
        engine,
        tokenizer,
        chat_tokenizer=_chat_tokenizer(loaded.path) if cfg.chat_template else None,
        separator_id=separator_id,
        progress=_shown(reporter, "harness"),
    )


def _chat_tokenizer(checkpoint: Path) -> Any:
    """transformers' tokenizer of a checkpoint, which knows its chat template; None where there is none.

    Raises:
        ConfigError: transformers cannot open it, or not without code that comes with it.
    """
    folder = checkpoint / "tokenizer" if (checkpoint / "tokenizer").is_dir() else checkpoint
    if not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return transformers_calls.call(
            transformers.AutoTokenizer.from_pretrained,
            {transformers_calls.SOURCE: str(folder)},
            role="tokenizer",
            is_trusted=False,
        )
    except AutomodelError:
        raise
    except Exception as error:  # transformers believes tokenizer_config.json, so whatever its content raises
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"the tokenizer in {folder} cannot be opened for its chat template: {type(error).__name__}: {first[:200]}",
            "leave --chat-template out, or correct tokenizer_config.json; code that comes with it is not run",
        ) from error
