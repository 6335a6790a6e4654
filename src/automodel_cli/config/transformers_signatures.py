"""What callables of transformers take whose own signature is ``**kwargs``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from automodel_cli import transformers_calls
from automodel_cli.config import signatures
from automodel_cli.config.signatures import CallSignature, Parameter
from automodel_cli.transformers_calls import SOURCE


def _signature(known: Mapping[str, Any], required: str, *, is_open: bool) -> CallSignature:
    parameters = {name: Parameter(name, annotation) for name, annotation in known.items()}
    return CallSignature(
        {required: Parameter(required, str if required == SOURCE else Any, required=True), **parameters},
        open=is_open,
    )


_FROM_CONFIG = _signature(transformers_calls.BUILT_ARGUMENTS, "config", is_open=False)
# open: keys of the configuration are not known before it is loaded; `call` checks them then
_FROM_PRETRAINED = {
    "model": _signature(transformers_calls.MODEL_ARGUMENTS, SOURCE, is_open=True),
    "hf_config": _signature(transformers_calls.HUB_ARGUMENTS, SOURCE, is_open=True),
    "tokenizer": _signature(transformers_calls.TOKENIZER_ARGUMENTS, SOURCE, is_open=False),
}


def fixed_signature(name: str, role: str) -> CallSignature | None:
    """The arguments of a class method of transformers, where its own signature is ``**kwargs``."""
    method = name.rpartition(".")[2]
    if method == "from_config":
        return _FROM_CONFIG
    return _FROM_PRETRAINED.get(role) if method == "from_pretrained" else None


def config_signature(owner: type) -> CallSignature | None:
    """A configuration's fields. transformers takes any name and keeps it; here a name must be one the class knows."""
    signature = signatures.from_callable(owner)
    if signature is None:
        return None
    known = dict(signature.parameters)
    for name in (*getattr(owner, "attribute_map", {}), *transformers_calls.FIELDS):
        known.setdefault(name, Parameter(name))
    return CallSignature(known, open=False)


def model_type_signature(model_type: Any) -> CallSignature | None:
    """The arguments of ``AutoConfig.for_model``: those of the configuration that this model type has."""
    mapping = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in mapping:
        return None
    signature = config_signature(mapping[model_type])
    if signature is None:
        return None
    return CallSignature({"model_type": Parameter("model_type", str, required=True), **signature.parameters})
