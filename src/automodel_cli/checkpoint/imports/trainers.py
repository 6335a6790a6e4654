"""Checkpoints of other trainers that our families can hold: nanoGPT's, litgpt's, lingua's. In only.

    nanoGPT   ckpt.pt                                  {"model", "model_args", "optimizer", "iter_num", "config", ...}
    litgpt    lit_model.pth + model_config.yaml        {"model": ...} or the weights alone
    lingua    consolidated.pth + params.json           {"model": ...} or the weights alone

Sources of names and layouts: karpathy/nanoGPT model.py and train.py; Lightning-AI/litgpt litgpt/model.py,
litgpt/config.py and scripts/convert_lit_checkpoint.py; facebookresearch/lingua lingua/transformer.py,
apps/main/transformer.py, lingua/checkpoint.py and Meta's Llama, whose names lingua has.

    nanoGPT                      our GPT-2's names below "transformer.", matrices [out, in]; erf GELU since June 2023
    litgpt attn.qkv.weight       rows of all queries, all keys, all values
    litgpt attn.attn.weight      (before pull request 1013) for each key-value head: its queries, key, value
    lingua wq, wk                rotary pairs are neighbours (2i, 2i + 1); ours are halves (i, i + width / 2)

Sizes are those of the tensors; what the configuration says has to agree with them. It decides only what no shape tells.
"""

from __future__ import annotations

from pathlib import Path

from automodel_cli.checkpoint.imports.imported import WHAT, Imported
from automodel_cli.checkpoint.imports.lingua import lingua_model
from automodel_cli.checkpoint.imports.litgpt import litgpt_model
from automodel_cli.checkpoint.imports.nanogpt import nanogpt_model
from automodel_cli.errors import CheckpointError

_FILES = {
    "nanoGPT": ("ckpt.pt",),
    "litgpt": ("lit_model.pth", "model_config.yaml"),
    "lingua": ("consolidated.pth", "params.json"),
}


def trainer_of(path: str | Path) -> str | None:
    """Whose checkpoint lies there (nanoGPT, litgpt, lingua), by the names of the files; None for other things."""
    path = _place(Path(path))
    folder = path.parent if path.is_file() else path
    for name, files in _FILES.items():
        if all((folder / file).is_file() for file in files) and path in (folder, folder / files[0]):
            return name
    return "nanoGPT" if path.is_file() and path.suffix in (".pt", ".pth") else None


def _place(path: Path) -> Path:
    """lingua puts its whole weights into a folder below the step's."""
    below = path / "consolidated"
    return below if (below / "consolidated.pth").is_file() else path


def read(path: str | Path, *, activation: str | None = None) -> Imported:
    """The model of a checkpoint of another trainer.

    Args:
        activation: of nanoGPT's MLP, gelu or gelu_tanh; None: what its version had, as far as the file tells.

    Raises:
        CheckpointError: no such checkpoint, damaged, of another architecture, or names and sizes that do not agree.
    """
    path = _place(Path(path))
    trainer = trainer_of(path)
    if trainer is None:
        found = "there is nothing" if not path.exists() else "it is none of these"
        raise CheckpointError(f"{path} cannot be imported: {found}", WHAT)
    if trainer == "nanoGPT":
        return nanogpt_model(path if path.is_file() else path / "ckpt.pt", activation)
    folder = path.parent if path.is_file() else path
    return (litgpt_model if trainer == "litgpt" else lingua_model)(folder)
