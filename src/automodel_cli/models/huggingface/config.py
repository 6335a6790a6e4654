"""Configurations of transformers: read without running their code, and as JSON."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import transformers

from automodel_cli import transformers_calls
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.json_files import without_controls
from automodel_cli.text import first_line

_FLOAT = "__float__"


def read_config(
    source: str,
    *,
    trust_remote_code: bool = False,
    overrides: Mapping[str, Any] | None = None,
    **loading: Any,
) -> transformers.PreTrainedConfig:
    """The configuration of a folder or of the hub, which cannot have code run that comes with it.

    Args:
        overrides: fields to change.
        loading: which revision of it, and the like.

    Raises:
        ConfigError: it would run code, or has no such field.
    """
    hub = {name: value for name, value in loading.items() if name in transformers_calls.HUB_ARGUMENTS}
    arguments = {**hub, transformers_calls.SOURCE: source, "trust_remote_code": trust_remote_code}
    config: transformers.PreTrainedConfig = transformers_calls.call(
        transformers.AutoConfig.from_pretrained,
        {**arguments, **(overrides or {})},
        role="hf_config",
        is_trusted=trust_remote_code,
    )
    return config


def completed_config(config: Mapping[str, Any], kind: type[transformers.PreTrainedConfig]) -> dict[str, Any]:
    """A ``config.json`` with what transformers fills in for absent keys, and under its present names."""
    fields = {key: value for key, value in config.items() if key != "model_type"}
    # A copy of all mappings: transformers adds to what it is given.
    return dict(plain_floats(kind(**floats_again(fields)).to_dict()))


@contextlib.contextmanager
def load_errors_named(source: Any) -> Iterator[None]:
    """Turn transformers' many ways of not finding something into one ConfigError."""
    try:
        yield
    except AutomodelError:
        raise
    except Exception as error:  # of many libraries, with classes of their own
        name = source if isinstance(source, str) else type(source).__name__
        raise ConfigError(
            without_controls(f"cannot build a causal language model from {name}: {first_line(error, 400)}"),
            "name a folder with config.json (and safetensors), or a hub name that this machine can reach",
        ) from error


def plain_floats(value: Any) -> Any:
    """Infinity and NaN, which JSON lacks, as transformers writes them: ``{"__float__": "Infinity"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: plain_floats(item) for key, item in value.items()}
    return [plain_floats(item) for item in value] if isinstance(value, list | tuple) else value


def floats_again(value: Any) -> Any:
    """What ``plain_floats`` was given (tuples as lists)."""
    if isinstance(value, Mapping):
        named = value.get(_FLOAT) if len(value) == 1 else None
        if named in ("Infinity", "-Infinity", "NaN"):
            return float(named)
        return {key: floats_again(item) for key, item in value.items()}
    return [floats_again(item) for item in value] if isinstance(value, list | tuple) else value
