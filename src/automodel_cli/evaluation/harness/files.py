"""Task files for lm-evaluation-harness from a folder that nobody trusted: data only, checked before they are used.

To the harness a task file is a program: ``!function`` imports Python beside it, ``class`` too, a metric that it does
not know is fetched and run, a data set may be of any kind, templates reach whatever Python objects reach. Without trust
only the keys below are read, with plain values, and templates are rendered in jinja's sandbox.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.api import metrics as _metrics  # noqa: F401  # registers them
from lm_eval.api.registry import metric_registry

from automodel_cli.errors import ConfigError
from automodel_cli.json_files import read_yaml, without_controls
from automodel_cli.plain_text import for_shell

_DATA_SETS = frozenset({"json", "csv", "text", "parquet", "arrow"})
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_KEYS = frozenset({
    "task", "task_alias", "tag", "group", "group_alias", "include", "metadata", "description",
    "dataset_path", "dataset_name", "dataset_kwargs", "output_type", "generation_kwargs", "repeats",
    "training_split", "validation_split", "test_split", "fewshot_split", "num_fewshot", "fewshot_config",
    "doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter", "fewshot_delimiter", "gen_prefix",
    "metric_list", "aggregate_metric_list", "weight_by_size", "filter_list",
    "should_decontaminate", "doc_to_decontamination_query",
})  # fmt: skip
_FEWSHOT_KEYS = frozenset({"sampler", "samples", "split", "doc_to_text", "doc_to_target", "doc_to_choice"})
_DATA_KEYS = frozenset({
    "data_files", "data_dir", "field", "delimiter", "sep", "names", "column_names", "header",
    "split", "encoding", "revision",
})  # fmt: skip


def check_folder(folder: Path) -> None:
    """Check every task file below ``folder``.

    Raises:
        ConfigError: it is no folder; one of them would run code, or is no plain YAML.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{without_controls(str(folder))} is not a folder", "--harness-path takes a folder of task files"
        )
    seen: set[Path] = set()
    for path in sorted((*folder.rglob("*.yaml"), *folder.rglob("*.yml"))):
        _check_file(path, folder, seen)


def _check_file(path: Path, folder: Path, seen: set[Path]) -> None:
    path = path.resolve()  # as the harness does: what a link includes lies beside the file that it leads to
    if path in seen:
        return
    seen.add(path)
    read = read_yaml(path, ConfigError, hint=_hint(folder))
    if not isinstance(read, Mapping):
        raise ConfigError(f"{without_controls(str(path))} is not a task file: it has no keys", _hint(folder))
    for key, why in _problems(read):
        raise ConfigError(f"{without_controls(f'{path}: {key} {why}')}", _hint(folder))
    for name in _listed(read.get("include")):
        included = path.parent / str(name)
        if folder.resolve() not in included.resolve().parents:
            raise ConfigError(f"{without_controls(f'{path}: include {name}')} is not in the folder", _hint(folder))
        _check_file(included, folder, seen)


def _hint(folder: Path) -> str:
    return f"if the folder is yours, or you trust it, add --trust {for_shell(folder)}"


def _problems(read: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """``(key, what is wrong)`` of one task or group."""
    for key in read:
        if key not in _KEYS:
            yield str(key), "may run code and needs trust"
    yield from _of_data(read)
    for key, known in (("fewshot_config", _FEWSHOT_KEYS), ("dataset_kwargs", _DATA_KEYS)):
        given = read.get(key)
        unknown = [name for name in given if name not in known] if isinstance(given, Mapping) else []
        if unknown or not (given is None or isinstance(given, Mapping)):
            yield f"{key}{f'.{unknown[0]}' if unknown else ''}", "may run code and needs trust"
    for key in ("metric_list", "aggregate_metric_list"):
        yield from ((key, why) for metric in _listed(read.get(key)) for why in _of_metric(metric))
    for child in _listed(read.get("task")):
        if isinstance(child, Mapping):
            yield from _problems(child)


def _of_data(read: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = read.get("dataset_path")
    if name is None:
        return
    is_builder = isinstance(name, str) and name in _PACKAGED_DATASETS_MODULES
    is_hub_name = isinstance(name, str) and bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()
    if not (name in _DATA_SETS if is_builder else is_hub_name):
        yield f"dataset_path {name!r}", f"is none of {', '.join(sorted(_DATA_SETS))}, nor a name of the hub"


def _of_metric(metric: Any) -> Iterator[str]:
    if not isinstance(metric, Mapping):
        yield "is not a list of mappings"
    elif metric.get("hf_evaluate"):
        yield "has hf_evaluate, which fetches and runs code"
    elif not isinstance(name := metric.get("metric"), str) or name not in metric_registry:
        yield f"names {name!r}, a metric that the harness would fetch and run"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


@contextlib.contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Render the harness' templates in jinja's sandbox while the block runs."""
    before = utils.env
    inside = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    inside.filters.update(before.filters)
    utils.env = inside
    try:
        yield
    finally:
        utils.env = before


@contextlib.contextmanager
def template_errors_named(whose: str) -> Iterator[None]:
    """Jinja's exceptions, those of its sandbox among them, as ConfigErrors."""
    try:
        yield
    except jinja2.TemplateError as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{whose} cannot be used: {type(error).__name__}: {without_controls(first)[:200]}",
            "templates see the item and text, not Python; correct it, or use another",
        ) from error
