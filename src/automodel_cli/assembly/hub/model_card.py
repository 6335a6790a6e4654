"""The model card (``README.md``) of an exported checkpoint: how to load it, data, scores, training, configuration.

The front matter is what the Hugging Face Hub reads. Names of files, tasks and targets, and all values of the
configuration, are data: they stand in code spans and code blocks, where they can be no Markdown, HTML or YAML. Secrets
and the folders of absolute paths are left out. The same checkpoint and scores give the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from automodel_cli.assembly.scoring.data import training_config
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf.config import turn_ends
from automodel_cli.config.schema.trackers import TRACKERS
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.evaluation.compare import Results
from automodel_cli.json_files import read_json, read_model
from automodel_cli.plain_text import without_controls
from automodel_cli.text import human

CARD = "README.md"
_MOST_SCORES = 100
_GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_NOT_OF_THE_MODEL = {"checkpoint", *TRACKERS, "logging", "recipe", "prewarm", "moe_metrics"}
_SECRET_KEY = re.compile(  # for search: nothing that repeats
    r"(?i)secret|credential|authorization|connection_string|^token$|(^|[_-])(passw"
    r"|(access|account|api|auth|private)[_-]?keys?$|(access|api|auth|bearer|hf|hub|refresh|sas|session)[_-]?tokens?$)"
)
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")  # of the environment, without a default
_SECRET = re.compile(
    r"\b(hf_\w{16,}|sk-[\w-]{16,}|gh[opsu]_\w{16,}|github_pat_\w+|AKIA\w{12,}|eyJ[\w-]{8,}\.[\w.-]+)"
    r"|(?<=://)[^/@\s]+(?=@)"  # user:password@ of an address
    r"|(?<=\?)[^\s?]*=\S+"  # the query of one, which may be signed
)
_ABSOLUTE = re.compile(r"(?:file:/*|~|[A-Za-z]:)?[\\/].*", re.DOTALL)
_FOLDERS = re.compile(r"""(?<![\w/.~}-])(?:~|[A-Za-z]:)?[\\/](?:[^\s,;:'"\\/]+[\\/])+""")
_LEFT_OUT = "(left out)"


@dataclass(frozen=True)
class Score:
    """One number of an evaluation."""

    name: str  # of the token file or task
    metric: str
    value: float
    file: str  # of results


# ------------------------------------------------------------------------------------------------ the card


def model_card(step: Path, *, repo_id: str | None = None, license: str | None = None, averaged: bool = False) -> str:
    """The card of a step folder, or of the average of its weights; ``repo_id`` and ``license`` are valid names."""
    manifest = layout.read_step_manifest(step)
    facts, config = manifest["facts"], training_config(step)
    chat = bool(turn_ends(step / "tokenizer" if (step / "tokenizer").is_dir() else None))
    scores = scores_of(step, manifest, averaged=averaged)
    name = repo_id or _family(facts)
    front = _front_matter(facts, config, scores, name, license, chat=chat)
    parts = [
        f"---\n{front}---\n",
        f"# {name}\n\n{_opening(manifest, step, averaged=averaged)}",
        _usage(repo_id or "FOLDER", facts, chat=chat),
        _data(facts, config, step),
        _scores(scores),
        _training(manifest, config),
        _license(license),
        _configuration(config),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def _front_matter(
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    scores: Sequence[Score],
    name: str,
    license: str | None,
    *,
    chat: bool,
) -> str:
    base = _base_model(config.get("init_from"))
    content = {
        **({"license": license} if license else {}),
        **({"base_model": base} if base else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["automodel", facts.get("stage", "pretraining"), *(["conversational"] if chat else [])],
        **({"model-index": [{"name": name, "results": list(map(_result, scores))}]} if scores else {}),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=math.inf)


def _result(score: Score) -> dict[str, Any]:
    """A score as the Hub reads it."""
    name = _one_line(score.name)
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": name, "type": name},
        "metrics": [{"name": _one_line(score.metric), "type": _one_line(score.metric), "value": score.value}],
    }


def _base_model(init_from: Any) -> str | None:
    """The repository of the Hub that the weights began as; None for none, and for folders of one's own."""
    if init_from in _GPT2:
        return f"openai-community/{init_from}"
    is_name = isinstance(init_from, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", init_from, re.ASCII)
    return init_from if is_name and not Path(init_from.partition("/")[0]).exists() else None


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _family(facts: Mapping[str, Any]) -> str:
    model = _section(facts, "model")
    named = _section(model, "config").get("model_type") if model.get("family") == "hf" else model.get("family")
    return re.sub(r"[^A-Za-z0-9-]+", "-", str(named or "model"))[:60].strip("-") or "model"


def _opening(manifest: Mapping[str, Any], step: Path, *, averaged: bool) -> str:
    facts = manifest["facts"]
    count = sum(number for number in _section(facts, "param_counts").values() if isinstance(number, int))
    size = f" with {human(count)} parameters" if count else ""
    seen = _tokens_seen(step)
    tokens = f" and {seen:,} tokens" if seen is not None else ""
    average = " Its weights are an average of those after several updates." if averaged else ""
    made = f"after {manifest['step']:,} updates{tokens}, trained with automodel"
    return f"A {_family(facts)} model{size} {made}.{average}\n"


def _usage(name: str, facts: Mapping[str, Any], *, chat: bool) -> str:
    what = '[{"role": "user", "content": "Hello!"}]' if chat else '"Once upon a time"'
    dtype = _section(facts, "precision").get("stored", "float32")
    exact = " --dtype float32" if dtype == "float32" else ""
    code = f'from transformers import pipeline\n\ngenerate = pipeline("text-generation", "{name}")\n'
    code += f'print(generate({what}, max_new_tokens=50)[0]["generated_text"])'
    return f"## Use\n\n{_fenced(code, 'python')}\n{_fenced(f'vllm serve {name}{exact}', 'bash')}"


def _data(facts: Mapping[str, Any], config: Mapping[str, Any], step: Path) -> str:
    data, tokenizer = _section(facts, "data"), _section(facts, "tokenizer")
    plan = _section(data, "plan")
    seen = _tokens_seen(step)
    rows = [
        ("data set", public(data.get("class"))),
        ("files", list(dict.fromkeys(_texts(public(config.get("dataset"), "dataset"))))),
        ("tokens in the files", plan.get("tokens")),
        ("tokens seen", seen),
        ("sequence length", plan.get("seq_len")),
        ("fingerprint of the data", data.get("fingerprint")),
        ("tokenizer", public(tokenizer.get("name"))),
        ("fingerprint of the tokenizer", tokenizer.get("fingerprint")),
        ("vocabulary", _section(facts, "model").get("vocab_size")),
    ]
    return "## Data\n\n" + _listed(rows)


def _training(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    facts, losses = manifest["facts"], manifest["metrics"]
    found = losses.get("val_loss")
    val_losses = found if isinstance(found, Mapping) else {"default": found}
    rows = [
        ("stage", facts.get("stage", "pretraining")),
        ("weights from", public(config["init_from"]) if config.get("init_from") else "random values"),
        ("updates", manifest["step"]),
        ("sequences in an update", _section(facts, "batch").get("global")),
        ("loss of the last update", losses.get("loss")),
        *((f"validation loss, {_one_line(name)}", loss) for name, loss in val_losses.items()),
        ("optimizer", public(_section(facts, "optimizer").get("class"))),
        ("precision", _section(facts, "precision").get("compute")),
        ("seed", _section(config, "rng").get("seed")),
        ("versions", [f"{name} {version}" for name, version in _section(facts, "versions").items()]),
    ]
    return "## Training\n\n" + _listed(rows)


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    rows = [f"{_cell(one.name)} | {_cell(one.metric)} | {one.value:.4f} | {_cell(one.file)}" for one in scores]
    head = ["| what | metric | value | results of `automodel eval` |", "|---|---|---:|---|"]
    return "\n".join(["## Scores\n", *head, *(f"| {row} |" for row in rows)])


def _license(license: str | None) -> str:
    named = (
        f"{_code(license)}." if license else "None was named: `license:` at the top of this file is the place for it."
    )
    return f"## License\n\n{named}"


def _configuration(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    text = yaml.safe_dump(public(config), sort_keys=False, allow_unicode=True, width=math.inf)
    left_out = "Secrets, folders of absolute paths, and where checkpoints and logs went are left out.\n\n"
    return f"## Configuration\n\n{left_out}{_fenced(without_controls(text).rstrip(), 'yaml')}"


# ------------------------------------------------------------------------------------------------ what it says


def scores_of(step: Path, manifest: Mapping[str, Any], *, averaged: bool = False) -> list[Score]:
    """What ``automodel eval`` found of these very weights, from the results files beside them."""
    found: list[Score] = []
    for path in sorted(step.parent.glob(f"results_{step.name}_*.json")):
        try:
            results = read_model(path, Results)
        except AutomodelError:  # of another program, or damaged: no reason not to export
            continue
        of_average = results.checkpoint.weights == "ema"
        if results.checkpoint.fingerprint == manifest["self"] and of_average == averaged:
            numbers = _numbers_in(results)
            found += [Score(name, metric, value, path.name) for name, metric, value in numbers if value is not None]
    return found[:_MOST_SCORES]


def _numbers_in(results: Results) -> Iterator[tuple[str, str, float | None]]:
    """What was scored, the metric, the number."""
    for one in results.sets:
        name = Path(one.data).name
        yield name, "loss", one.loss
        yield name, "bits per byte", one.bits_per_byte
    for name, mean in results.means.items():
        yield name, f"mean of {mean.tasks} tasks", mean.score
    for name, task in results.tasks.items():
        yield name, f"accuracy, {task.shots} shots", task.accuracy
    for name, of_harness in results.harness.items():
        for metric, found in of_harness.metrics.items():
            yield name, metric, found.value


def _tokens_seen(step: Path) -> int | None:
    try:
        state = read_json(step / "state.json", CheckpointError)["state"]["train"]["tokens_seen"]
    except (AutomodelError, LookupError, TypeError):  # an earlier version's, or a test's
        return None
    return state if isinstance(state, int) else None


def _texts(section: Any) -> Iterator[str]:
    """The texts in a section that may be published, without targets and what was left out."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key != "_target_":
                yield from _texts(value)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from _texts(value)
    elif isinstance(section, str) and section != _LEFT_OUT:
        yield section


def public(value: Any, key: str = "") -> Any:
    """A value of a configuration as it may be published: no secrets, no folders of absolute paths, nothing unset."""
    if isinstance(value, list | tuple):
        return [public(one, key or "-") for one in value]
    if _SECRET_KEY.search(key) and not (isinstance(value, bool | None) or _VARIABLE.fullmatch(str(value))):
        return _LEFT_OUT
    if isinstance(value, Mapping):
        unset: tuple[Any, ...] = () if "_target_" in value else (None, [], {})
        kept = {name: one for name, one in value.items() if key or name not in _NOT_OF_THE_MODEL}
        return {public(str(name)): public(one, str(name)) for name, one in kept.items() if one not in unset}
    if not isinstance(value, str):
        return value
    shown = _SECRET.sub(_LEFT_OUT, value)
    if _ABSOLUTE.fullmatch(shown):
        return ".../" + re.split(r"[\\/]", shown.rstrip("\\/"))[-1]
    return _FOLDERS.sub(".../", shown)


# ------------------------------------------------------------------------------------------------ Markdown


def _one_line(text: str) -> str:
    return " ".join(without_controls(text).split())


def _listed(rows: Sequence[tuple[str, Any]]) -> str:
    """``- name: value``, without what is not known."""
    known = [(name, value) for name, value in rows if value not in (None, [], "")]
    return "\n".join(f"- {_plain(name)}: {_value(value)}" for name, value in known)


def _plain(name: str) -> str:
    """Our own words as they are; of a name that a user gave, letters and digits."""
    return re.sub(r"[^\w ,.-]+", " ", name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_code, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _code(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _cell(text: str) -> str:
    return _code(text).replace("|", "\\|")


def _code(value: object) -> str:
    """A code span: nothing in it means anything."""
    text = _one_line(str(value)) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text: str, language: str) -> str:
    """A code block, between more backticks than ``text`` has anywhere."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}\n"
