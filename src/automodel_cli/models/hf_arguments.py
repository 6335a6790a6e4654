"""Arguments of the builders for transformers' models. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class FromConfig:
    """What ``hf.from_config`` takes.

    Args:
        config: a ``PretrainedConfig``, or a hub name or folder to read one from.
        torch_dtype: storage dtype; None and "auto" are fp32, the only one with a sound Adam.
        attn_implementation: as in transformers (sdpa, eager, flash_attention_2, ...); None lets it choose.
        is_meta_device: allocate nothing; ``materialize(device, seed)`` does it later.
        use_liger_kernel: patch the model family with Liger's kernels (needs the package liger-kernel).
        use_sdpa_patching: accepted for older configurations; SDPA picks its kernel by itself.
        trust_remote_code: run code that comes with the model.
    """

    config: Any
    torch_dtype: Any = None
    attn_implementation: str | None = None
    is_meta_device: bool = False
    use_liger_kernel: bool = False
    use_sdpa_patching: bool = True
    trust_remote_code: bool = False


class FromPretrained:
    """What ``hf.from_pretrained`` takes.

    Args:
        pretrained_model_name_or_path: a folder with ``config.json`` and safetensors, or a hub name.
        overrides: fields of the configuration to change (for example ``attn_pdrop: 0.2``), and how to load
            (``revision`` and the like); the rest as in ``from_config``.
    """

    def __init__(
        self,
        pretrained_model_name_or_path: str,
        *,
        torch_dtype: Any = None,
        attn_implementation: str | None = None,
        use_liger_kernel: bool = False,
        use_sdpa_patching: bool = True,
        trust_remote_code: bool = False,
        **overrides: Any,
    ) -> None:
        self.source, self.overrides = pretrained_model_name_or_path, overrides
        self.torch_dtype, self.attn_implementation = torch_dtype, attn_implementation
        self.use_liger_kernel, self.trust_remote_code = use_liger_kernel, trust_remote_code
