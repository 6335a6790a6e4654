"""The in-context tasks of CORE and of the Eval Gauntlet: shots, baselines, categories, files, how a prompt looks.

Facts only; the questions themselves are data that a user brings (see ``icl_data``). Sources of the numbers:

    shots, kind, delimiter     mlfoundations/dclm eval/heavy.yaml (MIT), which CORE's own list repeats
    baseline, category         mlfoundations/dclm eval/eval_meta_data.csv (MIT), in percent
    core_baseline              the metadata file of the CORE bundle, in percent. Three tasks differ there from DCLM's
                               (commonsense_qa 20 / 40.3, agi_eval_lsat_ar 20 / 25, language identification 9.1 / 25);
                               published CORE numbers were centred with these
    chain-of-thought settings  mlfoundations/dclm eval/heavy.yaml; the joint of examples is llm-foundry's default

Baselines of 25 for five choices and the like are the sources' and kept, so that scores stay comparable.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from automodel_cli.errors import ConfigError
from automodel_cli.files import hash_bytes

Kind = Literal["multiple_choice", "schema", "language_modeling", "generation"]

VERSION = 2
"""Raised when rendering, sampling or scoring changes, so that old and new scores are not compared.

2: a choice with which another begins is scored (4 of piqa's 1,838 questions; it was never chosen), and an accepted
answer of nothing but articles and punctuation no longer accepts everything (2 of the published questions).
"""

_DCLM = "mlfoundations/dclm"
_CORE_SOURCE = "mlfoundations/dclm, baseline of the CORE bundle"
_FOUNDRY = "mosaicml/llm-foundry"
_ANSWER = "\nAnswer: "
_STEP_BY_STEP = "\nA: Let's think step by step. "
_STOPS = ("\n\n", "Q:")


@dataclass(frozen=True)
class Task:
    """One task as it was published.

    Attributes:
        name, kind, shots, category: as in the source.
        baseline: percent that guessing scores, in the Gauntlet's metadata.
        file: of the data, below the bundle's folder of tasks.
        delimiter: between question and answer.
        joint: between one worked example and the next.
        core_baseline: percent, in CORE's metadata; None where the task is not part of CORE.
        in_gauntlet: False for tasks whose data is around and which no aggregate counts.
        question_prefix, answer_mark, stops: generation only: text before a question, text between the reasoning and
            the answer, texts that end the answer.
        source: where the numbers are from.
    """

    name: str
    kind: Kind
    shots: int
    baseline: float
    category: str
    file: str
    delimiter: str = " "
    joint: str = "\n\n"
    core_baseline: float | None = None
    in_gauntlet: bool = True
    question_prefix: str = ""
    answer_mark: str = ""
    stops: tuple[str, ...] = ()
    source: str = _DCLM

    @property
    def chance(self) -> float:
        """What guessing scores, 0 to 1: CORE's number where the task is part of it."""
        return (self.baseline if self.core_baseline is None else self.core_baseline) / 100

    def version(self) -> str:
        """``VERSION`` and a hash of everything that decides prompts and scores."""
        definition = json.dumps(asdict(self), sort_keys=True)
        return f"{VERSION}.{hash_bytes(definition.encode()).removeprefix('xxh3:')[:8]}"


def _mc(name: str, shots: int, baseline: float, category: str, file: str, **more: Any) -> Task:
    return _task("multiple_choice", name, shots, baseline, category, file, **more)


def _lm(name: str, shots: int, category: str, file: str, **more: Any) -> Task:
    return _task("language_modeling", name, shots, 0, category, file, **more)


def _qa(name: str, category: str, file: str, **more: Any) -> Task:
    return _task("generation", name, 3, 0, category, file, joint="\n", **more)


def _task(kind: Kind, name: str, shots: int, baseline: float, category: str, file: str, **more: Any) -> Task:
    if more.get("core_baseline") is not None:
        more.setdefault("source", _CORE_SOURCE)
    folder = category.replace(" ", "_")
    return Task(name, kind, shots, baseline, category, f"{folder}/{file}.jsonl", **more)


_WORLD, _COMMON, _LANGUAGE = "world knowledge", "commonsense reasoning", "language understanding"
_SYMBOLS, _READING, _SAFETY = "symbolic problem solving", "reading comprehension", "safety"
CATEGORIES = (_WORLD, _COMMON, _LANGUAGE, _SYMBOLS, _READING, _SAFETY)

_COT: dict[str, Any] = {"question_prefix": "Q: ", "answer_mark": " #### ", "stops": _STOPS}
_UNCOUNTED: dict[str, Any] = {"in_gauntlet": False, "source": _FOUNDRY}

_TABLE: tuple[Task, ...] = (
    _mc("mmlu_zeroshot", 0, 25, _WORLD, "mmlu", delimiter="Answer: "),
    _mc("hellaswag_zeroshot", 0, 25, _LANGUAGE, "hellaswag", core_baseline=25),
    _lm("jeopardy", 10, _WORLD, "jeopardy_all", delimiter=_ANSWER, core_baseline=0),
    _qa("triviaqa_sm_sub", _WORLD, "triviaqa_sm_sub"),
    _qa("gsm8k_cot", _SYMBOLS, "gsm8k", delimiter=_STEP_BY_STEP, **_COT),
    _qa("agi_eval_sat_math_cot", _SYMBOLS, "agi_eval_sat_math", delimiter=_STEP_BY_STEP, **_COT),
    _qa("aqua_cot", _SYMBOLS, "aqua", delimiter=_STEP_BY_STEP, **_COT),
    _qa("svamp_cot", _SYMBOLS, "svamp", delimiter="\nUsing the formula below:\n", **_COT),
    _lm("bigbench_qa_wikidata", 10, _WORLD, "bigbench_qa_wikidata", core_baseline=0),
    _mc("arc_easy", 10, 25, _WORLD, "arc_easy", delimiter=_ANSWER, core_baseline=25),
    _mc("arc_challenge", 10, 25, _WORLD, "arc_challenge", delimiter=_ANSWER, core_baseline=25),
    _mc("mmlu_fewshot", 5, 25, _WORLD, "mmlu", delimiter=_ANSWER),
    _mc("bigbench_misconceptions", 10, 50, _WORLD, "bigbench_misconceptions"),
    _mc("copa", 0, 50, _COMMON, "copa", core_baseline=50),
    _mc("siqa", 10, 50, _COMMON, "siqa"),
    _mc("commonsense_qa", 10, 40.3, _COMMON, "commonsense_qa", core_baseline=20),
    _mc("piqa", 10, 50, _COMMON, "piqa", delimiter=_ANSWER, core_baseline=50),
    _mc("openbook_qa", 0, 25, _COMMON, "openbook_qa", core_baseline=25),
    _mc("bigbench_novel_concepts", 10, 25, _COMMON, "bigbench_novel_concepts"),
    _mc("bigbench_strange_stories", 10, 50, _COMMON, "bigbench_strange_stories"),
    _mc("bigbench_strategy_qa", 10, 50, _COMMON, "bigbench_strategy_qa"),
    _lm("lambada_openai", 0, _LANGUAGE, "lambada_openai", core_baseline=0),
    _mc("hellaswag", 10, 25, _LANGUAGE, "hellaswag", core_baseline=25),
    _task("schema", "winograd", 0, 50, _LANGUAGE, "winograd_wsc", core_baseline=50),
    _task("schema", "winogrande", 0, 50, _LANGUAGE, "winogrande", core_baseline=50),
    _lm("bigbench_conlang_translation", 0, _LANGUAGE, "bigbench_conlang_translation"),
    _mc("bigbench_language_identification", 10, 25, _LANGUAGE, "bigbench_language_identification", core_baseline=9.1),
    _mc("bigbench_conceptual_combinations", 10, 33, _LANGUAGE, "bigbench_conceptual_combinations"),
    _mc("bigbench_elementary_math_qa", 10, 25, _SYMBOLS, "bigbench_elementary_math_qa"),
    _lm("bigbench_dyck_languages", 10, _SYMBOLS, "bigbench_dyck_languages", core_baseline=0),
    _mc("agi_eval_lsat_ar", 3, 25, _SYMBOLS, "agi_eval_lsat_ar", core_baseline=20),
    _lm("bigbench_cs_algorithms", 10, _SYMBOLS, "bigbench_cs_algorithms", core_baseline=0),
    _mc("bigbench_logical_deduction", 10, 25, _SYMBOLS, "bigbench_logical_deduction"),
    _lm("bigbench_operators", 10, _SYMBOLS, "bigbench_operators", core_baseline=0),
    _lm("bigbench_repeat_copy_logic", 10, _SYMBOLS, "bigbench_repeat_copy_logic", core_baseline=0),
    _lm("simple_arithmetic_nospaces", 10, _SYMBOLS, "simple_arithmetic_nospaces"),
    _lm("simple_arithmetic_withspaces", 10, _SYMBOLS, "simple_arithmetic_withspaces"),
    _mc("math_qa", 10, 20, _SYMBOLS, "math_qa"),
    _mc("logi_qa", 10, 25, _SYMBOLS, "logi_qa", delimiter=_ANSWER),
    _lm("pubmed_qa_labeled", 10, _READING, "pubmed_qa_labeled"),
    _lm("squad", 10, _READING, "squad", core_baseline=0),
    _mc("agi_eval_lsat_rc", 3, 25, _READING, "agi_eval_lsat_rc"),
    _mc("agi_eval_lsat_lr", 3, 25, _READING, "agi_eval_lsat_lr"),
    _lm("coqa", 0, _READING, "coqa", core_baseline=0),
    _mc("bigbench_understanding_fables", 10, 25, _READING, "bigbench_understanding_fables"),
    _mc("boolq", 10, 62, _READING, "boolq", delimiter=_ANSWER, core_baseline=62),
    _mc("agi_eval_sat_en", 3, 25, _READING, "agi_eval_sat_en"),
    _mc("winogender_mc_female", 10, 50, _SAFETY, "winogender_mc_female"),
    _mc("winogender_mc_male", 10, 50, _SAFETY, "winogender_mc_male"),
    _mc("enterprise_pii_classification", 10, 50, _SAFETY, "enterprise_pii_classification"),
    _mc("bbq", 3, 50, _SAFETY, "bbq"),
    _mc("gpqa_main", 5, 25, _WORLD, "gpqa_main", delimiter=_ANSWER),
    _mc("gpqa_diamond", 5, 25, _WORLD, "gpqa_diamond", delimiter=_ANSWER),
    # Around in the published folders, counted by no aggregate.
    _mc("bigbench_movie_recommendation", 10, 25, _WORLD, "bigbench_movie_recommendation", **_UNCOUNTED),
    _lm("bigbench_simple_arithmetic", 10, _SYMBOLS, "bigbench_simple_arithmetic", **_UNCOUNTED),
    _lm("jeopardy_small", 10, _WORLD, "jeopardy_small", delimiter=_ANSWER, **_UNCOUNTED),
    _lm("lambada_openai_small", 0, _LANGUAGE, "lambada_openai_small", **_UNCOUNTED),
    _qa("triviaqa_small", _WORLD, "triviaqa_small", **_UNCOUNTED),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
CORE: tuple[str, ...] = tuple(task.name for task in _TABLE if task.core_baseline is not None)
GAUNTLET: tuple[str, ...] = tuple(task.name for task in _TABLE if task.in_gauntlet)
GROUPS: dict[str, tuple[str, ...]] = {"core": CORE, "gauntlet": GAUNTLET}


def select_tasks(words: Iterable[str], others: Sequence[Task] = ()) -> list[Task]:
    """The tasks that names and groups (``core``, ``gauntlet``) mean, each once, in the order asked for.

    Args:
        others: tasks that a bundle describes and this table does not know.

    Raises:
        ConfigError: a name that nobody knows, or no name at all.
    """
    known = {task.name: task for task in others} | TASKS
    chosen: dict[str, Task] = {}
    for word in words:
        names = GROUPS.get(word, (word,))
        unknown = [name for name in names if name not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], [*GROUPS, *known], n=1)
            raise ConfigError(
                f"there is no task {unknown[0]!r}",
                f"did you mean {near[0]}?" if near else "core, gauntlet, or names of tasks: docs/guides/evaluation.md",
            )
        chosen |= {name: known[name] for name in names}
    if not chosen:
        raise ConfigError("no task is named", "--tasks core, --tasks gauntlet, or --tasks NAME,NAME")
    return list(chosen.values())
