"""What `automodel import` reads."""

from __future__ import annotations

from typing import Literal

from automodel_cli.config.schema.base import Section


class ImportConfig(Section):
    """What `automodel import` reads: a checkpoint of another trainer, to be made a Hugging Face folder."""

    source: str
    """nanoGPT's `ckpt.pt`, or a folder of litgpt (`lit_model.pth`, `model_config.yaml`) or lingua (`consolidated.pth`,
    `params.json`)."""
    output: str
    """Folder to make; it must not exist."""
    tokenizer: str | None = None
    """Tokenizer to put beside the weights: a name or folder; null: the one in the folder, if there is one."""
    activation: Literal["gelu", "gelu_tanh"] | None = None
    """What nanoGPT's model.py had; null: gelu (erf), which it has since June 2023."""
