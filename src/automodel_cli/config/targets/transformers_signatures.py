"""What callables of transformers take whose own signature is ``**kwargs``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from automodel_cli import transformers_calls
from automodel_cli.config.schema.base import not_a_bool
from automodel_cli.config.targets import signatures
from automodel_cli.config.targets.signatures import CallSignature, Parameter
from automodel_cli.transformers_calls import SOURCE


def _signature(known: Mapping[str, Any], required: str, *, is_open: bool) -> CallSignature:
    parameters = {name: Parameter(name, annotation) for name, annotation in known.items()}
    return CallSignature(
        {required: Parameter(required, str if required == SOURCE else Any, required=True), **parameters},
        open=is_open,
    )


_NUMBER = Annotated[float, not_a_bool]
_ROTARY_OF_4: dict[str, Any] = {
    "rope_scaling": dict[str, Any] | None,
    **dict.fromkeys(("rope_theta", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"), _NUMBER),
    **dict.fromkeys(("rope_local_base_freq", "global_rope_theta", "local_rope_theta"), _NUMBER),
}
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
    if "rope_parameters" in known:
        for name in _rotary_names_of_4(owner):
            known.setdefault(name, Parameter(name, _ROTARY_OF_4[name]))
    return CallSignature(known, open=False)


def _rotary_names_of_4(owner: Any) -> Iterator[str]:
    """The names of transformers 4 that this configuration's own reader of old files takes for ``rope_parameters``.

    It takes them as keywords too; others it would keep without effect (GPT-NeoX knows no ``rope_theta``).
    """
    named = set(owner.convert_rope_params_to_dict.__code__.co_consts)
    own = {
        "rotary_emb_base": "rope_theta",
        "rotary_pct": "partial_rotary_factor",
        "global_rope_theta": "rope_theta",
    }
    hidden = {new for old, new in own.items() if old in named}
    return (name for name in _ROTARY_OF_4 if name in named - hidden)


def model_type_signature(model_type: Any) -> CallSignature | None:
    """The arguments of ``AutoConfig.for_model``: those of the configuration that this model type has."""
    mapping = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in mapping:
        return None
    signature = config_signature(mapping[model_type])
    if signature is None:
        return None
    return CallSignature({"model_type": Parameter("model_type", str, required=True), **signature.parameters})
