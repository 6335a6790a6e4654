"""A pretrained transformers model without its weights: its architecture on the meta device, and where they lie."""

from __future__ import annotations

from typing import Any

from automodel_cli.models.hf import HFCausalLM, from_config, load_errors_named, read_config


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
    overrides = {name: value for name, value in arguments.items() if name not in builders}
    with load_errors_named(pretrained_model_name_or_path):
        config = read_config(
            pretrained_model_name_or_path, trust_remote_code=trust_remote_code, overrides=overrides
        )
    options = {name: value for name, value in arguments.items() if name in builders}
    model = from_config(config, is_meta_device=True, trust_remote_code=trust_remote_code, **options)
    model.pretrained = True
    return model
