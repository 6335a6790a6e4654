"""Lookup of settings by key, for ``automodel explain`` and for completion on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from automodel_cli.config import depth
from automodel_cli.config.explain import describe_type, section_of
from automodel_cli.config.field_help import meaning_and_default
from automodel_cli.config.schema.base import Section, keys_of, reason_ignored
from automodel_cli.config.schema.chat import MixtureConfig, PreprocessChatConfig, TaskConfig
from automodel_cli.config.schema.dedup import DedupConfig
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.pipeline import PipelineConfig
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, TokenizerTrainConfig, VerifyConfig
from automodel_cli.config.schema.pretrain import NAMED_VALIDATION_KEY, PretrainConfig
from automodel_cli.config.schema.results import (
    AverageConfig,
    EvaluateConfig,
    ExportConfig,
    ExportGGUFConfig,
    GenerateConfig,
    ImportConfig,
    InspectConfig,
    InspectDataConfig,
    PlotConfig,
    TasksConfig,
)
from automodel_cli.config.schema.serving import ChatConfig, ServeConfig
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.config.schema.sweep import RaceConfig, SweepFitConfig, SweepPlotConfig, SweepRunConfig
from automodel_cli.config.schema.watching import ReportConfig, WatchConfig
from automodel_cli.config.targets.roles import Role, role_of_section
from automodel_cli.config.targets.signatures import declared

PRETRAIN = "automodel pretrain llm"
_NEAR = 0.75  # of names: less is far-fetched
COMMANDS: tuple[tuple[str, type[Section]], ...] = (
    ("automodel preprocess nanogpt", PreprocessNanogptConfig),
    ("automodel preprocess megatron", PreprocessMegatronConfig),
    ("automodel preprocess chat", PreprocessChatConfig),
    ("automodel preprocess chat, a mixture's file", MixtureConfig),
    ("automodel preprocess chat, a task of a mixture", TaskConfig),
    ("automodel preprocess dedup", DedupConfig),
    ("automodel preprocess shuffle", ShuffleConfig),
    ("automodel preprocess tokenizer", TokenizerTrainConfig),
    ("automodel preprocess verify", VerifyConfig),
    ("automodel run", PipelineConfig),
    ("automodel eval", EvaluateConfig),
    ("automodel eval --tasks and --harness", TasksConfig),
    ("automodel inspect-ckpt", InspectConfig),
    ("automodel inspect-data", InspectDataConfig),
    ("automodel plot", PlotConfig),
    ("automodel watch", WatchConfig),
    ("automodel report", ReportConfig),
    ("automodel sweep run", SweepRunConfig),
    ("automodel sweep fit", SweepFitConfig),
    ("automodel sweep plot", SweepPlotConfig),
    ("automodel race", RaceConfig),
    ("automodel generate", GenerateConfig),
    ("automodel chat", ChatConfig),
    ("automodel serve", ServeConfig),
    ("automodel export hf", ExportConfig),
    ("automodel export gguf", ExportGGUFConfig),
    ("automodel average", AverageConfig),
    ("automodel import", ImportConfig),
)
"""The other commands that read a file, and what they read."""

# torch's, which is not imported for a page of help.
_OPTIMIZER = {
    "lr": "Learning rate, before the schedule.",
    "weight_decay": "Decoupled weight decay, of matrices and embeddings.",
    "betas": "Decay rates of the averages of gradient and squared gradient.",
    "eps": "Added to the denominator.",
}


@dataclass(frozen=True)
class Setting:
    """One key: what it takes and means.

    Attributes:
        also: other spellings of the key.
        where: the commands whose files have it, or the target that takes it.
    """

    key: str
    takes: str
    default: str
    meaning: str
    also: tuple[str, ...] = ()
    where: str = PRETRAIN


def find(key: str) -> list[Setting]:
    """What is known by a key: written in full, else by its last part; equal ones of several commands are one."""
    wanted = key.removeprefix("--").replace("-", "_")
    known = [*pretrain_settings(), *_of_commands()]
    found = [setting for setting in known if wanted in (setting.key, *setting.also)]
    return found or [setting for setting in known if setting.key.rpartition(".")[2] == wanted]


def near(key: str) -> list[str]:
    """Known keys that look like an unknown one, the likeliest first."""
    wanted = key.removeprefix("--").replace("-", "_")
    keys = [setting.key for setting in [*pretrain_settings(), *_of_commands()]]
    spelled = {key.rpartition(".")[2]: key for key in reversed(keys)} | {key: key for key in keys}
    matches = difflib.get_close_matches(wanted, spelled, n=4, cutoff=_NEAR)
    matches += difflib.get_close_matches(wanted.rpartition(".")[2], spelled, n=4, cutoff=_NEAR)
    return list(dict.fromkeys(spelled[match] for match in matches))[:3]


def pretrain_settings() -> Iterator[Setting]:
    """All keys of a training run, those of open sections by the arguments of our own targets."""
    yield from _of_section(PretrainConfig, "", PRETRAIN)


def _of_commands() -> Iterator[Setting]:
    by_key: dict[tuple[str, str], Setting] = {}
    for command, model in COMMANDS:
        for setting in _of_section(model, "", command):
            before = by_key.get((setting.key, setting.meaning))
            where = f"{before.where}, {command.removeprefix('automodel ')}" if before else command
            by_key[setting.key, setting.meaning] = replace(setting, where=where)
    yield from by_key.values()


def _of_section(model: type[Section], prefix: str, where: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key, *also = (prefix + spelling for spelling in keys_of(model, name))
        role = role_of_section(name) if model is PretrainConfig else None
        if key == NAMED_VALIDATION_KEY:
            continue
        meaning, default = meaning_and_default(model, name)
        if reason := reason_ignored(field):
            meaning = f"Ignored: {reason}."
        default = "needed" if field.is_required() else default or "off"
        takes = describe_type(field.annotation, field.metadata)
        yield Setting(key, takes, default, meaning, tuple(also), where)
        if role is not None:
            yield from _of_targets(role, key)
        elif section := section_of(field.annotation):
            yield from _of_section(section, f"{key}.", where)


def _of_targets(role: Role, section: str) -> Iterator[Setting]:
    for target, schema in role.ours.items():
        for parameter in declared(schema).parameters.values():
            if parameter.name not in role.injected:
                key, takes = f"{section}.{parameter.name}", describe_type(parameter.annotation)
                default = "needed" if parameter.required else parameter.default
                where = f"{PRETRAIN}, {target.rpartition('.')[2]}"
                yield Setting(key, takes, default, parameter.meaning, (), where)
    if section == "model":
        for one in depth.settings():
            takes, default = describe_type(one.annotation), one.default or "off"
            yield Setting(f"{section}.{one.name}", takes, default, one.meaning, (), f"{PRETRAIN}, with model.depth")
    if section == "optimizer":
        for key, meaning in _OPTIMIZER.items():
            takes = str(role.bounds.get(key, "a number"))
            yield Setting(f"{section}.{key}", takes, "the optimizer's own", meaning, (), f"{PRETRAIN}, torch.optim")
