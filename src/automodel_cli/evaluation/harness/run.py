"""lm-evaluation-harness over our engine: its tasks, prompts and metrics, our models, batches and processes.

The harness asks three things: the log-likelihood of a continuation, of a whole text in windows, and a written answer.
Requests with one context are one question to our engine, so the choices of an item share its computation. Every rank
runs the whole harness on all requests and the engine divides the work, so that the harness need not know of ranks.

Tokens, windows and cropping are those of the harness' own ``hf`` model, whose numbers come out. Its scores are sums of
log-probabilities with prompts of its own: they are no CORE scores.

This module needs the package lm-eval (the extra ``eval``).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager

from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.greedy import Prompt, continue_greedily, stops_at
from automodel_cli.evaluation.harness import files as harness_files
from automodel_cli.evaluation.harness.requests import Encoded, RequestEncoder
from automodel_cli.evaluation.icl.rows import Row
from automodel_cli.evaluation.span_scores import Progress, SpanScorer

_DEFAULT_CONTEXT = 2048
_DEFAULT_NEW_TOKENS = 256
_BOOTSTRAP_ROUNDS = 1000  # for metrics whose error has no formula


@dataclass(frozen=True)
class HarnessRequest:
    """Which tasks, from where, with how many examples and documents."""

    tasks: Sequence[str]
    folder: str | None = None
    shots: int | None = None
    limit: int | None = None
    chat_template: bool = False
    is_trusted: bool = False
    """Whether code in ``folder`` may run."""


def evaluate(
    request: HarnessRequest,
    engine: SpanScorer,
    tokenizer: Tokenizer,
    *,
    chat_tokenizer: Any = None,
    separator_id: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Entries by task: metrics with errors, version, shots, number of documents.

    Args:
        separator_id: what stood between documents in training, where that is known.
        chat_tokenizer: transformers' tokenizer of the checkpoint, for its chat template; None: there is none.

    Raises:
        ConfigError: an unknown task, a chat template where the tokenizer has none or that reaches for Python, or task
            files that would run code which is not trusted.
    """
    is_safe = request.folder is None or request.is_trusted
    if request.folder is not None and not is_safe:
        harness_files.check_folder(Path(request.folder))
    model = HarnessModel(engine, tokenizer, chat_tokenizer, separator_id=separator_id, progress=progress)
    with contextlib.nullcontext() if is_safe else harness_files.sandboxed_templates():
        return _evaluate(request, model)


def _evaluate(request: HarnessRequest, model: HarnessModel) -> dict[str, Any]:
    manager = _manager(request)
    unknown = _unknown(manager, request)
    if unknown:
        raise ConfigError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}",
            "lm_eval ls tasks lists what there is; task files of your own: --harness-path",
        )
    if request.chat_template and getattr(model.tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"tokenizer {model.tokenizer_name} has no chat template",
            "leave --chat-template out for a base model",
        )
    with harness_files.template_errors_named("a template of the tasks"):
        found = simple_evaluate(
            model=model,
            tasks=list(request.tasks),
            num_fewshot=request.shots,
            limit=request.limit,
            task_manager=manager,
            apply_chat_template=request.chat_template,
            bootstrap_iters=_BOOTSTRAP_ROUNDS,
            log_samples=False,
        )
    assert found is not None, "only ranks above 0 of the harness' own launcher get nothing"
    return {name: _entry(name, found, model.requests.counts.get(name)) for name in found["results"]}


def _manager(request: HarnessRequest) -> TaskManager:
    """The user's own task files; the harness' thousands, which take seconds to list, only where these do not do."""
    if request.folder is not None:
        own = TaskManager(include_path=request.folder, include_defaults=False)
        if not _unknown(own, request):
            return own
    return TaskManager(include_path=request.folder)


def _unknown(manager: TaskManager, request: HarnessRequest) -> list[str]:
    return [name for name in request.tasks if not manager.match_tasks([name])]


def _entry(name: str, found: Mapping[str, Any], requests: Mapping[str, int] | None) -> dict[str, Any]:
    values = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
    metrics = {}
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if metric.endswith("_stderr") or not filtered:
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        metrics[key] = {"value": float(value), "stderr": None if error is None else float(error)}
    return {
        "metrics": metrics,
        "version": found["versions"].get(name),
        "shots": found["n-shot"].get(name),
        "count": (found["n-samples"].get(name) or {}).get("effective"),
        "requests": None if requests is None else dict(requests),
    }


class HarnessModel(TemplateLM):
    """What the harness calls a model: one engine and one tokenizer."""

    def __init__(
        self,
        engine: SpanScorer,
        tokenizer: Tokenizer,
        chat_tokenizer: Any = None,
        *,
        separator_id: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._separator_id = separator_id
        self._engine, self._ours, self._progress = engine, tokenizer, progress
        self._parsing = tokenizer.parsing_engine()
        self._before, self._after = tokenizer.added_ids()
        self.tokenizer = chat_tokenizer  # where the harness looks for a chat template
        self.max_length = engine.model.max_seq_len or _DEFAULT_CONTEXT
        self.requests = RequestEncoder(self.tok_encode, lambda: self.prefix_token_id, self.max_length)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text id, else the beginning-of-text one."""
        first = self._ours.eot_id if self._ours.eot_id is not None else self._ours.bos_id
        if first is None:
            raise ConfigError(
                f"tokenizer {self._ours.name} has no end-of-text token", "the harness needs one to begin with"
            )
        return first

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: what began documents in training, where that is known."""
        if self._separator_id is not None:
            return self._separator_id
        return self._ours.bos_id if self._ours.bos_id is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness' cache of requests."""
        return f"{self._ours.name} {self._ours.fingerprint()}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, by the tokenizer's own template."""
        with harness_files.template_errors_named("the checkpoint's chat template"):
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, special tokens in it recognised, with what the tokenizer adds unless told otherwise."""
        ids = self._parsing.encode(string).tolist()
        begun = add_special_tokens is None and self._before and ids[: len(self._before)] == self._before
        if add_special_tokens is False or begun:
            return ids
        return [*self._before, *ids, *self._after]

    # ----------------------------------------------------------------------------------- likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each (context, continuation)."""
        return self._loglikelihood_tokens(
            [self.requests.pair(*request.args, task=request.task_name or "") for request in requests]
        )

    def _loglikelihood_tokens(self, requests: list[Encoded], **_: Any) -> list[tuple[float, bool]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_texts, context, _continuation) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(number)
        rows = [[self._row(requests[number]) for number in numbers] for numbers in groups.values()]
        scores = self._engine.score(rows, progress=self._progress)
        numbered = zip(
            (number for numbers in groups.values() for number in numbers),
            ((-score.nll, score.greedy) for of_one in scores for score in of_one),
            strict=True,
        )
        found = dict(numbered)
        return [found[number] for number in range(len(requests))]

    def _row(self, request: Encoded) -> Row:
        """The last ``max_length`` ids before the last one, which is predicted only."""
        _texts, context, continuation = request
        ids = tuple([*context, *continuation][-(self.max_length + 1) :])
        return Row(ids, max(1, len(ids) - len(continuation)), len(ids))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text, in windows of the context length."""
        windows: list[Encoded] = []
        ends = [0]
        for (text,) in (request.args for request in requests):
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(("", ""), *utils.make_disjoint_window(pair)) for pair in pairs]
            ends.append(len(windows))
        values = [value for value, _ in self._loglikelihood_tokens(windows)]
        return [sum(values[first:end]) for first, end in itertools.pairwise(ends)]

    # ------------------------------------------------------------------------------------ generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, up to its first stop.

        Raises:
            ConfigError: a task that wants samples.
        """
        asked = [(request.args[0], self._settings(request.args[1])) for request in requests]
        prompts = [
            self._prompt(context, settings, request.task_name or "")
            for request, (context, settings) in zip(requests, asked, strict=True)
        ]
        ends = frozenset(i for i in (self._separator_id, self._ours.eot_id) if i is not None)
        written = continue_greedily(
            self._engine,
            prompts,
            stop_ids=ends,
            usable_ids=self._ours.vocab_size,
            progress=self._progress,
        )
        return [
            postprocess_generated_text(self._ours.decode(ids), settings["until"], None)
            for ids, (_, settings) in zip(written, asked, strict=True)
        ]

    def _settings(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        settings = normalize_gen_kwargs(dict(given), _DEFAULT_NEW_TOKENS)
        if settings.get("do_sample"):
            raise ConfigError(
                "this harness task draws samples, and answers here are greedy",
                "export the model and use lm_eval's hf",
            )
        return {**settings, "until": handle_stop_sequences(settings.get("until"), eos=None)}

    def _prompt(self, context: str, settings: Mapping[str, Any], task: str) -> Prompt:
        new, stops = settings["max_gen_toks"], settings["until"]
        tail = 8 + max((len(stop) for stop in stops), default=0)
        room = self.max_length - new
        if room < 1:
            raise ConfigError(
                f"the task writes up to {new} tokens, the model's context has {self.max_length}",
                "take another task, or a model with a longer context",
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self.requests.note(task, cut=len(ids) > room)
        return Prompt(tuple(ids[-room:]), new, stops_at(stops, self._ours.decode, tail=tail))
