"""Are weights those of the same function? Tensors of equal shapes can mean something else: another number of heads,
another activation, another base of the rotary angles. Sizes are left to the tensors, whose shapes are compared anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from automodel_cli.json_files import without_controls
from automodel_cli.models.external import same_class_names
from automodel_cli.models.families import family_named
from automodel_cli.models.interface import CausalLM

# What configurations hold besides the function that is computed on given weights: sizes that shapes tell, special
# tokens, what only training or the output's form depends on.
_NOT_FUNCTION = re.compile(
    r"_.*|output_.*|summary_.*|time_step_(?!limit|rank).*|.*(dropout|pdrop|dropout_prob|layerdrop|token_id)"
    r"|architectures|attn_implementation|auto_map|chunk_size_feed_forward|dtype|torch_dtype|head_dim|id2label|label2id"
    r"|initializer_range|is_decoder|is_encoder_decoder|max_position_embeddings|n_positions|pretraining_tp|problem_type"
    r"|reorder_and_upcast_attn|rescale_prenorm_residual|return_dict|router_jitter_noise|scale_residual_init"
    r"|transformers_version|use_cache|use_mambapy|vocab_size"
)
# Names of one activation.
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
_TOLERANCE = 1e-9


def differences(stored: Mapping[str, Any], model: CausalLM) -> list[str]:
    """What tells the function of a stored ``model_config()`` from that of ``model``, a line each; none: they agree."""
    here = model.model_config()
    found = _compared(here, stored, ["family", "class", "model_type"])
    if found or here.get("family") == "foreign":
        return found
    if here.get("family") == "hf":
        return _between(here["config"], stored.get("config") or {})
    return _between(here, stored)


def differences_from_hf(stored: Mapping[str, Any], model: CausalLM) -> list[str]:
    """The same for a ``config.json``."""
    here = model.model_config()
    kind = here["model_type"] if here.get("family") == "hf" else (model.hf_config() or {}).get("model_type")
    if kind != stored.get("model_type"):
        return [f"model_type is {kind} here and {stored.get('model_type')} there"]
    if here.get("family") == "hf":
        from automodel_cli.models.huggingface.config import completed_config  # transformers: seconds
        from automodel_cli.models.huggingface.model import HFCausalLM

        assert isinstance(model, HFCausalLM)
        return _between(here["config"], completed_config(stored, type(model.hf.config)))
    family = family_named(here.get("family"))
    return [] if family is None else _between(here, family.config.from_hf(stored))


def _compared(here: Mapping[str, Any], there: Mapping[str, Any], keys: list[str]) -> list[str]:
    return [
        f"{key} is {_shown(here.get(key))} here and {_shown(there.get(key))} there"
        for key in keys
        if not _same(here.get(key), there.get(key))
    ]


def _between(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Of the keys that both have: another version of the software knows others."""
    keys = sorted(key for key in here.keys() & there.keys() if not _NOT_FUNCTION.fullmatch(key))
    return _compared(here, there, keys)


def _same(one: Any, other: Any) -> bool:
    """Equal values; numbers up to how JSON spells them, lists and tuples alike, absent as null."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_same(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return one == other or abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))
    if isinstance(one, str) and isinstance(other, str):
        one, other = same_class_names(one), same_class_names(other)
        return _ACTIVATIONS.get(one, one) == _ACTIVATIONS.get(other, other)
    return bool(one == other)


def _shown(value: Any) -> str:
    text = str(value)
    return without_controls(text if len(text) <= 80 else text[:77] + "...")
