"""The depth of a model as one number: ``model.depth`` and what follows from it, filled into the tree of a file.

It is done before anything is checked, so that the rest of the program sees a configuration with numbers in it, and a
run saves that. A key that the file or the command line gives is kept, and what follows from it follows: a batch that
was set decides the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from automodel_cli.config.problems import Problem
from automodel_cli.config.targets import aliases
from automodel_cli.config.targets.own_models import own_model
from automodel_cli.config.targets.signatures import Parameter, check_arguments, declared
from automodel_cli.config.targets.target import TARGET_KEY, LocatedDict, Target, Written
from automodel_cli.errors import ConfigError
from automodel_cli.sizing import depth as rules
from automodel_cli.sizing.depth import Multipliers, ScalingRules, Size

MOST_LAYERS = 10_000
"""Far above any model; a slip of the keyboard would otherwise be computed for minutes."""
_BUILDER = "automodel_cli.models.gpt.build_gpt_model"
_MUON, _ADAMW = "automodel_cli.train.muon.rules.muon_adamw", "torch.optim.AdamW"
_TUNED: dict[str, dict[str, float]] = {
    # GPT-2 124M, batches of half a million tokens: nanoGPT, llm.c
    _ADAMW: {"lr": 6e-4, "weight_decay": 0.1},
    _MUON: {"lr": 0.02, "scalar_lr": 6e-4, "weight_decay": 0.1},
}
_TUNED_NANOCHAT = {"lr": 0.02, "scalar_lr": 0.005, "embed_lr": 0.3, "lm_head_lr": 0.004, "weight_decay": 0.1}
"""nanochat's, for its initial values: embeddings of standard deviation 1, and an untied head near zero."""


@dataclass
class DepthArguments:
    """The dial of a ``model`` section: what builds the shape, and what the learning rates follow.

    Args:
        depth: layers; width, heads, batch, learning rates and weight decay follow, each unless it is set.
        aspect_ratio: width of a layer of depth; the width is rounded up to whole heads.
        head_dim: width of a head.
        scaling_rules: how batch, learning rates and weight decay follow: power_lines (nanochat's rules of 2026) or
            width (its older ones); they point in opposite directions.
        reference_depth: depth that learning rates and weight decay were tuned for.
        reference_batch_tokens: tokens of an update that they were tuned for.
    """

    depth: int
    aspect_ratio: float = 64
    head_dim: int = 64
    scaling_rules: ScalingRules = "power_lines"
    reference_depth: int = 12
    reference_batch_tokens: int = 1 << 19


_SCHEMA = f"{__name__}.{DepthArguments.__name__}"
_ONLY_HERE = [field.name for field in fields(DepthArguments) if field.name != "head_dim"]  # no argument of the builder


def settings() -> list[Parameter]:
    """The keys of a ``model`` section that are read here."""
    return list(declared(_SCHEMA).parameters.values())


def fill_in(root: LocatedDict) -> tuple[dict[str, Any], list[Problem]]:
    """Replace ``model.depth`` by what follows from it; what was filled in by dotted key, and what is wrong."""
    model = root.get("model")
    if not isinstance(model, LocatedDict):
        return {}, []
    if model.get("depth") is None:
        model.remove("depth")
        return {}, [_problem(model, key, "goes with model.depth") for key in _ONLY_HERE if key in model]
    if aliases.present_name(str(model.get(TARGET_KEY, _BUILDER))) != _BUILDER:
        what = f"is a key of {_BUILDER}; set this model's own layers and width instead"
        return {}, [_problem(model, "depth", what)]
    given = {key: model[key] for key in (*_ONLY_HERE, "head_dim") if model.get(key) is not None}
    dial, problems = _checked(model, given)
    if dial is None:
        return {}, problems
    filled = _Filled(root, model.written.get("depth", Written()))
    for key in _ONLY_HERE:
        model.remove(key)
    try:
        _fill_in(dial, filled)
    except ConfigError as error:
        text = error.message.removeprefix("model: ")  # as the check of targets tells it: told once
        return {}, [Problem(model.where, "model", text)]
    return filled.values, []


def _problem(model: LocatedDict, key: str, text: str) -> Problem:
    return Problem(model.written.get(key, Written()).where, f"model.{key}", text)


def _checked(model: LocatedDict, given: Mapping[str, Any]) -> tuple[DepthArguments | None, list[Problem]]:
    values, found = check_arguments(declared(_SCHEMA), given, callee="model.depth", opaque=lambda value: False)
    found += [
        (key, f"expected a number above 0, found {value}")
        for key, value in values.items()
        if isinstance(value, int | float) and value <= 0
    ]
    if isinstance(depth := values.get("depth"), int) and depth > MOST_LAYERS:
        found.append(("depth", f"expected at most {MOST_LAYERS:,} layers, found {depth:,}"))
    if (layers := model.get("num_hidden_layers")) not in (None, values.get("depth")):
        found.append(("depth", f"is {given['depth']} and model.num_hidden_layers {layers}; keep one of them"))
    problems = [_problem(model, key, text) for key, text in found]
    return (None if problems else DepthArguments(**values)), problems


class _Filled:
    """What is filled into a tree, where nobody has set it."""

    def __init__(self, root: LocatedDict, written: Written) -> None:
        self.root, self.written = root, written
        self.values: dict[str, Any] = {}

    def section(self, name: str) -> LocatedDict:
        """A section, made where it is not there."""
        if not isinstance(self.root.get(name), LocatedDict):
            self.root.put(name, LocatedDict(where=self.written.where), self.written)
        section: LocatedDict = self.root[name]
        return section

    def put(self, section: str, **values: Any) -> None:
        """Set what is not set."""
        for key, value in values.items():
            if self.section(section).get(key) is None:
                self.section(section).put(key, value, Written(self.written.where))
                self.values[f"{section}.{key}"] = value


def _fill_in(dial: DepthArguments, filled: _Filled) -> None:
    reference_model = {**filled.section("model"), **_shape(dial, dial.reference_depth)}
    filled.section("model").setdefault(TARGET_KEY, _BUILDER)
    _put_shape(dial, filled)
    size, reference = _size(filled.section("model")), _size(reference_model)
    seq_len = _seq_len(filled.root)
    batch = rules.batch_tokens(dial.scaling_rules, size, reference, dial.reference_batch_tokens)
    filled.put("step_scheduler", global_batch_size=max(1, round(batch / seq_len)))
    rows = filled.section("step_scheduler")["global_batch_size"]
    if not isinstance(rows, int):
        return  # the schema says what is wrong with it
    ratio = rows * seq_len / dial.reference_batch_tokens
    _put_optimizer(filled, rules.multipliers(dial.scaling_rules, size, reference, ratio))


def _shape(dial: DepthArguments, depth: int) -> dict[str, int]:
    width = rules.width_of(depth, dial.aspect_ratio, dial.head_dim)
    return {"num_hidden_layers": depth, "hidden_size": width, "num_attention_heads": width // dial.head_dim}


def _put_shape(dial: DepthArguments, filled: _Filled) -> None:
    shape = _shape(dial, dial.depth)
    width = filled.section("model").get("hidden_size")
    if isinstance(width, int) and "num_attention_heads" not in filled.section("model"):
        shape["num_attention_heads"] = max(1, width // dial.head_dim)
    filled.put("model", **shape)


def _size(model: Mapping[str, Any]) -> Size:
    found = _model(model)
    shape = found.shape()
    return Size(shape.layers, shape.hidden, found.counts().scaling)


def _model(model: Mapping[str, Any]) -> Any:
    return own_model(Target.parse({TARGET_KEY: _BUILDER, **model}))


def _seq_len(root: LocatedDict) -> int:
    """Tokens of a row: of a pack or of the data set, else the model's context."""
    places = (
        ("packed_sequence", "packed_sequence_size"),
        ("dataset", "seq_len"),
        ("dataset", "seq_length"),
        ("model", "max_position_embeddings"),
    )
    for section, key in places:
        value = root[section].get(key) if isinstance(root.get(section), Mapping) else None
        if isinstance(value, int) and value > 0:
            return value
    return 1024  # the builder's own


def _put_optimizer(filled: _Filled, factors: Multipliers) -> None:
    """Learning rates and weight decay, of optimizers that there are tuned values for."""
    if filled.root.get("optimizer") is None:
        filled.put("optimizer", **{TARGET_KEY: "muon_adamw"})
    name = aliases.present_name(str(filled.section("optimizer").get(TARGET_KEY, _ADAMW)))
    model, tuned = _model(filled.section("model")), _TUNED.get(name, {})
    if name == _MUON and model.init == "nanochat" and not model.tie_word_embeddings:
        tuned = _TUNED_NANOCHAT
    factor = {"weight_decay": factors.weight_decay}
    if name == _MUON:
        factor["lr"] = factors.muon_lr
    values = {key: value * factor.get(key, factors.adamw_lr) for key, value in tuned.items()}
    filled.put("optimizer", **{key: float(f"{value:.6g}") for key, value in values.items()})
