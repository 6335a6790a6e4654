"""A pretrained transformers model without its weights: its architecture on the meta device, and where they lie."""

from __future__ import annotations

from typing import Any

import transformers

from automodel_cli.errors import ConfigError
from automodel_cli.models.hf import HFCausalLM, from_config


def pretrained_on_meta(
    pretrained_model_name_or_path: str, *, trust_remote_code: bool = False, **arguments: Any
) -> HFCausalLM:
    """As ``hf.from_pretrained``, with the weights left to be read once it is known which are needed here.

    Raises:
        ConfigError: the folder or name cannot be read.
    """
    builders = {"torch_dtype", "attn_implementation", "use_liger_kernel", "use_sdpa_patching"}
    if "dtype" in arguments:  # transformers' newer name
        arguments["torch_dtype"] = arguments.pop("dtype")
    try:
        config = transformers.AutoConfig.from_pretrained(
            pretrained_model_name_or_path, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model can be built from {pretrained_model_name_or_path}: {str(error).splitlines()[0]}",
            "name a folder with config.json and safetensors, or a hub name that this machine can reach",
        ) from error
    overrides = {name: value for name, value in arguments.items() if name not in builders}
    if unknown := [name for name in overrides if not hasattr(config, name)]:
        raise ConfigError(
            f"{type(config).__name__} has no field {', '.join(unknown)}", "correct the model section"
        )
    config.update(overrides)
    options = {name: value for name, value in arguments.items() if name in builders}
    model = from_config(config, is_meta_device=True, trust_remote_code=trust_remote_code, **options)
    model.pretrained = True
    return model
