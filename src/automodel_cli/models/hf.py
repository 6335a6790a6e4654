"""Builds Hugging Face causal language models: of a configuration, a folder, a name on the hub, or a module that exists.

Weights are stored in fp32 unless a dtype is asked for by name; the training step computes in bf16 through autocast.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from automodel_cli import doors, dtypes, transformers_calls
from automodel_cli.arguments import takes
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.models.external import ExternalCausalLM
from automodel_cli.models.hf_arguments import FromConfig, FromPretrained
from automodel_cli.models.huggingface.config import floats_again, load_errors_named, read_config
from automodel_cli.models.huggingface.model import HFCausalLM
from automodel_cli.models.interface import CausalLM


@takes(FromConfig)
def from_config(given: FromConfig) -> HFCausalLM:
    """A causal language model of this configuration, without meaningful weights: ``init_weights`` follows.

    Raises:
        ConfigError: the configuration cannot be read, or is not one of a causal language model.
    """
    config, is_trusted = given.config, given.trust_remote_code
    options = _options(given)
    with load_errors_named(config):
        if isinstance(config, str):
            config = read_config(config, trust_remote_code=is_trusted)
        liger_notes = _apply_liger(config, given.use_liger_kernel)
        with torch.device("meta"):
            hf = transformers.AutoModelForCausalLM.from_config(config, **options)
    model = HFCausalLM(hf)
    model.notes += liger_notes
    if not given.is_meta_device:
        model.to_empty(device="cpu")
    return model


@takes(FromPretrained)
def from_pretrained(given: FromPretrained) -> HFCausalLM:
    """A causal language model with the weights of a local folder or of the hub.

    Raises:
        ConfigError: the folder or name cannot be read.
    """
    source, is_trusted = given.source, given.trust_remote_code
    options = _options(given)
    loading = {name: given.overrides[name] for name in transformers_calls.MODEL_ARGUMENTS if name in given.overrides}
    overrides = {name: value for name, value in given.overrides.items() if name not in loading}
    with load_errors_named(source):
        config = read_config(source, trust_remote_code=is_trusted, overrides=overrides, **loading)
        liger_notes = _apply_liger(config, given.use_liger_kernel)
        hf = transformers_calls.call(
            transformers.AutoModelForCausalLM.from_pretrained,
            {transformers_calls.SOURCE: source, **loading, "config": config, **options},
            role="model",
            is_trusted=is_trusted,
        )
    model = HFCausalLM(hf, pretrained=True)
    model.notes += liger_notes
    return model


@takes(FromPretrained)
def pretrained_on_meta(given: FromPretrained) -> HFCausalLM:
    """As ``from_pretrained``, with the weights left to be read once it is known which are needed here.

    Raises:
        ConfigError: the folder or name cannot be read.
    """
    dtype = given.overrides.pop("dtype", given.torch_dtype)  # transformers' newer name
    with load_errors_named(given.source):
        config = read_config(given.source, trust_remote_code=given.trust_remote_code, overrides=given.overrides)
    model = from_config(
        config,
        torch_dtype=dtype,
        attn_implementation=given.attn_implementation,
        is_meta_device=True,
        use_liger_kernel=given.use_liger_kernel,
        trust_remote_code=given.trust_remote_code,
    )
    model.pretrained = True
    return model


def from_pretrained_complete(folder: str) -> tuple[HFCausalLM, list[str]]:
    """As ``from_pretrained`` of a folder, and the weights that it lacks: transformers draws those at random."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        config=read_config(folder),
        dtype=torch.float32,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    module, info = loaded
    return HFCausalLM(module, pretrained=True), sorted(info["missing_keys"])


def wrap(module: nn.Module, *, pretrained: bool = False) -> CausalLM:
    """Any module as a ``CausalLM``: one already, a transformers model, or one that maps input_ids to logits.

    A transformers model that was built in half precision is brought to fp32, which the optimizer needs.
    """
    if isinstance(module, CausalLM):
        return module
    if isinstance(module, transformers.PreTrainedModel):
        model = HFCausalLM(module, pretrained=pretrained)
        if module.dtype != torch.float32:
            model.notes.append(f"weights came as {module.dtype}, are stored in torch.float32")
            module.float()
        return model
    return ExternalCausalLM(module, pretrained=pretrained)


def rebuild(config: Mapping[str, Any], *, is_meta_device: bool = False) -> HFCausalLM:
    """The architecture of a ``model_config()`` with family ``hf``.

    Raises:
        CheckpointError: this version of transformers does not know the model type, or the file would run code.
    """
    try:
        doors.check_config(config, "the checkpoint's model")
    except ConfigError as error:
        raise CheckpointError(error.message, error.hint) from None
    try:
        fields = {"model_type": config["model_type"], **floats_again(config["config"])}
        hf_config = transformers.AutoConfig.for_model(**fields)
        return from_config(
            hf_config, attn_implementation=config.get("attn_implementation"), is_meta_device=is_meta_device
        )
    except (ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot build {config.get('class')}: {error}",
            "use the version of transformers that the checkpoint names, or --trust its code",
        ) from error


def storage_dtype(setting: str | torch.dtype | None) -> torch.dtype:
    """The dtype that weights are stored in: fp32 for None and "auto", else the one named."""
    if setting is None or setting == "auto":
        return torch.float32
    dtype = setting if isinstance(setting, torch.dtype) else dtypes.torch_dtype(str(setting))
    if dtype is None or not dtype.is_floating_point:
        raise ConfigError(f"torch_dtype {setting!r} is not known", "choose float32 or bfloat16")
    return dtype


def _options(given: FromConfig | FromPretrained) -> dict[str, Any]:
    options = {"dtype": storage_dtype(given.torch_dtype), "trust_remote_code": given.trust_remote_code}
    if given.attn_implementation is not None:
        options["attn_implementation"] = given.attn_implementation
    return options


def _apply_liger(config: Any, wanted: bool) -> list[str]:
    """Patch the classes of this model family with Liger's kernels; returns what to tell the user."""
    if not wanted:
        return []
    if importlib.util.find_spec("liger_kernel") is None:
        return ["use_liger_kernel: the package liger-kernel is not installed, the model runs without"]
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel

    _apply_liger_kernel(config.model_type)
    return []
