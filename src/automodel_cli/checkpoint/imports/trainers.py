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

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from automodel_cli.checkpoint.imports import torch_file
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel, FiniteFloat, read_json, read_yaml, validated
from automodel_cli.models.families import build_from_config
from automodel_cli.models.interface import CausalLM
from automodel_cli.plain_text import without_controls

Size = Annotated[Count, Field(ge=1)]
Weights = dict[str, Tensor]
_LONGEST = 400  # of a message: names in a file are as long as they like

_FILES = {
    "nanoGPT": ("ckpt.pt",),
    "litgpt": ("lit_model.pth", "model_config.yaml"),
    "lingua": ("consolidated.pth", "params.json"),
}
_WHAT = (
    "name nanoGPT's ckpt.pt, or a folder with lit_model.pth and model_config.yaml (litgpt) or "
    "consolidated.pth and params.json (lingua)"
)
_NOT_HELD = (
    "our GPT-2 and Llama do not have that; make a Hugging Face folder of it with the trainer's own tools, "
    "which transformers may load"
)


@dataclass(frozen=True)
class Imported:
    """A model of one of our families, its weights under our names, in the logical vocabulary."""

    source: str
    family: str
    arguments: dict[str, Any]
    weights: Weights
    where: Path
    notes: tuple[str, ...] = ()

    def model(self) -> CausalLM:
        """The architecture on the meta device, once every weight is known to be there, in its shape, and no other.

        Raises:
            CheckpointError: one is missing, left over, or of another shape.
            ConfigError: sizes that no such model can have.
        """
        model = build_from_config({"family": self.family, **self.arguments}, is_meta_device=True)
        there = model.hf_tensors()
        shapes = {name: (there[name].rows or one.shape[0], *one.shape[1:]) for name, one in model.named_parameters()}
        problems = [f"the weight {name} is missing" for name in shapes.keys() - self.weights.keys()]
        problems += [f"{name} is not a weight of this model" for name in self.weights.keys() - shapes.keys()]
        problems += [
            f"{name} has shape {tuple(tensor.shape)}, expected {shapes[name]}"
            for name, tensor in self.weights.items()
            if name in shapes and tuple(tensor.shape) != shapes[name]
        ]
        _refuse(self.where, sorted(problems))
        return model

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The types of the weights."""
        return {name: tensor.dtype for name, tensor in self.weights.items()}

    def read(self, name: str) -> Tensor:
        """One weight.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        if not self.weights[name].isfinite().all():
            raise CheckpointError(f"{self.where}: {name} holds NaN or infinity", "use a checkpoint from before that")
        return self.weights[name]


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
        raise CheckpointError(f"{path} cannot be imported: {found}", _WHAT)
    if trainer == "nanoGPT":
        return _nanogpt(path if path.is_file() else path / "ckpt.pt", activation)
    folder = path.parent if path.is_file() else path
    return (_litgpt if trainer == "litgpt" else _lingua)(folder)


def _weights(stored: Any, where: Path) -> Weights:
    """Names without what torch.compile puts before them -> tensors."""
    found = stored.get("model", stored) if isinstance(stored, dict) else None
    tensors = list(found.values()) if isinstance(found, dict) else []
    if found is None or not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise CheckpointError(f"{where} holds no model", _WHAT)
    weights = {str(name).replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
    asked, held = sum(tensor.nbytes for tensor in weights.values()), where.stat().st_size
    if asked > 2 * held:  # a tied head is one storage twice
        raise CheckpointError(f"{where} has {held:,} bytes, its weights {asked:,}: they share storage", _NOT_HELD)
    if odd := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        raise CheckpointError(
            f"{where}: {without_controls(odd[0][:_LONGEST])} holds whole numbers: quantized weights",
            "use the original weights",
        )
    return weights


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _refuse(where: Path, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        shown = without_controls("; ".join(problems[:3])[:_LONGEST])
        raise CheckpointError(f"{where}: {shown}{more}", _NOT_HELD)


def _layers(names: list[str]) -> int:
    """How many layers the names are of: one more than the largest number, as far as there are so many tensors."""
    numbers = {int(found[1]) for name in names if (found := re.match(r"\D*?\.(\d{1,9})\.", name))}
    return min(max(numbers, default=-1) + 1, len(names))


def _check_sizes(where: Path, told: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    differing = {key: value for key, value in found.items() if told.get(key) not in (None, value)}
    _refuse(where, [f"{key} is {told[key]!r}, the weights have {value}" for key, value in differing.items()])


def _size(weights: Weights, name: str, dimension: int, where: Path) -> int:
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != 2:
        raise CheckpointError(f"{where} has no matrix {name}", _WHAT)
    return tensor.shape[dimension]


# --------------------------------------------------------------------------------------------- nanoGPT


class _ModelArgs(FileModel):
    """``model_args``; another key is another architecture."""

    n_layer: Size
    n_head: Size
    n_embd: Size
    block_size: Size
    vocab_size: Size
    bias: bool = True
    dropout: FiniteFloat = 0.0


def _nanogpt(path: Path, activation: str | None) -> Imported:
    stored = torch_file.read(path)
    if not isinstance(stored, dict) or "model_args" not in stored:
        raise CheckpointError(f"{path} has no model_args: it is not a checkpoint of nanoGPT", _WHAT)
    where = path.with_name(f"{path.name}: model_args")
    told = stored["model_args"]
    args = validated(told, _ModelArgs, where, CheckpointError, hint=_NOT_HELD)
    _refuse(path, [f"model_args has {key}" for key in told if key not in _ModelArgs.model_fields])
    weights = {name.removeprefix("transformer."): tensor for name, tensor in _weights(stored, path).items()}
    for name in [name for name in weights if name.endswith((".attn.bias", ".attn.masked_bias"))]:
        del weights[name]
    head = weights.pop("lm_head.weight", None)
    sizes = {
        "vocab_size": _size(weights, "wte.weight", 0, path),
        "n_embd": _size(weights, "wte.weight", 1, path),
        "block_size": _size(weights, "wpe.weight", 0, path),
        "n_layer": _layers(list(weights)),
    }
    _check_sizes(where, told, sizes)
    if head is not None and not _same(head, weights["wte.weight"]):
        _refuse(path, ["lm_head.weight is not wte.weight"])
    sizes["n_positions"] = sizes.pop("block_size")
    likely = "gelu" if "bias" in told else "gelu_tanh"
    told_only = {"n_head": args.n_head, "bias": args.bias, "dropout": args.dropout}
    arguments = {**sizes, **told_only, "activation": activation or likely}
    notes = () if activation else (_ACTIVATION_NOTES[likely],)
    return Imported("nanoGPT", "gpt2", arguments, weights, path, notes)


_ACTIVATION_NOTES = {
    "gelu": "activation gelu (erf), nanoGPT's since June 2023; of an older one say --activation gelu_tanh",
    "gelu_tanh": "activation gelu_tanh: model_args has no bias, as an early nanoGPT's; else say --activation gelu",
}


# ---------------------------------------------------------------------------------------------- Llama


def _renamed(weights: Weights, names: Mapping[str, str], where: Path) -> Weights:
    """By ``names``, {theirs: ours} with ``{}`` for the number of a layer."""
    found = {}
    for name, tensor in weights.items():
        number = re.search(r"\.(\d{1,9})\.", name)
        template = name if number is None else name.replace(f".{number[1]}.", ".{}.", 1)
        _refuse(where, [f"{name} is not a weight of a Llama"] * (template not in names))
        found[names[template].format(number[1] if number else "")] = tensor
    return found


def _llama(source: str, where: Path, weights: Weights, told: Mapping[str, Any]) -> Imported:
    """``told``: keywords of ``build_llama_model`` that no shape tells, and those that one does."""
    embedding, head = weights["embed_tokens.weight"], weights.get("lm_head.weight")
    tied = head is None or head.data_ptr() == embedding.data_ptr()
    if tied:
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    return Imported(source, "llama", {**told, "tie_word_embeddings": tied}, weights, where)


_LITGPT_NAMES = {
    "lm_head.weight": "lm_head.weight",
    "transformer.wte.weight": "embed_tokens.weight",
    "transformer.h.{}.norm_1.weight": "layers.{}.input_layernorm.weight",
    "transformer.h.{}.attn.qkv.weight": "layers.{}.self_attn.qkv",
    "transformer.h.{}.attn.attn.weight": "layers.{}.self_attn.qkv_by_group",
    "transformer.h.{}.attn.proj.weight": "layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.norm_2.weight": "layers.{}.post_attention_layernorm.weight",
    "transformer.h.{}.mlp.fc_1.weight": "layers.{}.mlp.gate_proj.weight",
    "transformer.h.{}.mlp.fc_2.weight": "layers.{}.mlp.up_proj.weight",
    "transformer.h.{}.mlp.proj.weight": "layers.{}.mlp.down_proj.weight",
    "transformer.ln_f.weight": "norm.weight",
}


class _LitgptConfig(FileModel):
    """What is used of ``model_config.yaml``, with litgpt's defaults."""

    name: str = ""
    block_size: Size = 4096
    n_layer: Size
    n_embd: Size
    n_head: Size
    n_query_groups: Size | None = None
    head_size: Size | None = None
    intermediate_size: Size | None = None
    padded_vocab_size: Size | None = None
    norm_eps: Annotated[FiniteFloat, Field(gt=0)] = 1e-5
    rope_base: Annotated[FiniteFloat, Field(gt=0)] = 10000
    rope_adjustments: dict[str, FiniteFloat] | None = None


# What a Llama has, and litgpt's default where the file says nothing.
_LITGPT_IS = {
    "norm_class_name": ("RMSNorm", "LayerNorm"),
    "mlp_class_name": ("LLaMAMLP", "GptNeoxMLP"),
    "parallel_residual": (False, True),
    "rotary_percentage": (1.0, 0.25),
    "rope_condense_ratio": (1, 1),
    "bias": (False, True),
    "norm_1": (True, True),
    "norm_2": (True, True),
}
# Of no effect on a model that has the above.
_LITGPT_FREE = {
    "hf_config", "vocab_size", "padding_multiple", "norm_qk_type", "gelu_approximate", "attention_scores_scalar",
    "moe_intermediate_size", "n_expert_per_token",
}  # fmt: skip


def _litgpt(folder: Path) -> Imported:
    where = folder / "model_config.yaml"
    told = read_yaml(where, CheckpointError)
    config = validated(told, _LitgptConfig, where, CheckpointError, hint=_WHAT)
    width = config.head_size or config.n_embd // config.n_head
    other = told.keys() - _LitgptConfig.model_fields.keys() - _LITGPT_IS.keys() - _LITGPT_FREE
    problems = [
        f"{key} is {told.get(key, default)!r}"
        for key, (wanted, default) in _LITGPT_IS.items()
        if told.get(key, default) != wanted
    ]
    problems += [f"{key} is {told[key]!r}" for key in sorted(other, key=str) if told[key]]
    problems += ["it is a Gemma"] * ("gemma" in config.name.lower())
    scale = told.get("attention_scores_scalar")
    problems += [f"attention_scores_scalar is {scale!r}"] * (scale not in (None, width))
    _refuse(where, problems)
    path = folder / "lit_model.pth"
    groups = config.n_query_groups or config.n_head
    weights = _renamed(_weights(torch_file.read(path), path), _LITGPT_NAMES, path)
    weights = _without_joined_heads(weights, config.n_head, groups, width, path)
    sizes = _llama_sizes(weights, path)
    keys = ("padded_vocab_size", "n_embd", "intermediate_size", "n_layer")
    _check_sizes(where, told, dict(zip(keys, sizes.values(), strict=True)))
    return _llama("litgpt", path, weights, {
        **sizes, "num_attention_heads": config.n_head, "num_key_value_heads": groups, "head_dim": width,
        "max_position_embeddings": config.block_size, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
        "rope_scaling": _litgpt_scaling(config.rope_adjustments),
    })  # fmt: skip


def _litgpt_scaling(given: Mapping[str, float] | None) -> dict[str, Any] | None:
    if not given:
        return None
    renamed = {"original_max_seq_len": "original_max_position_embeddings"}
    return {"rope_type": "llama3", **{renamed.get(key, key): value for key, value in given.items()}}


def _without_joined_heads(weights: Weights, heads: int, groups: int, width: int, where: Path) -> Weights:
    """With three matrices for each that litgpt has of queries, keys and values."""
    found: Weights = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if not kind.startswith("qkv"):
            found[name] = tensor
            continue
        if heads % groups or tuple(tensor.shape[:1]) != ((heads + 2 * groups) * width,):
            expected = f"{heads} heads and 2 x {groups} of {width}"
            _refuse(where, [f"{stem} has {tuple(tensor.shape)}, which are not {expected}"])
        if kind == "qkv_by_group":
            by_group = tensor.view(groups, heads // groups + 2, width, -1)
            parts = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
        else:
            parts = tensor.split((heads * width, groups * width, groups * width))
        for part, letter in zip(parts, "qkv", strict=True):
            found[f"{stem}.{letter}_proj.weight"] = part.reshape(-1, tensor.shape[-1])
    return found


def _llama_sizes(weights: Weights, where: Path) -> dict[str, int]:
    return {
        "vocab_size": _size(weights, "embed_tokens.weight", 0, where),
        "hidden_size": _size(weights, "embed_tokens.weight", 1, where),
        "intermediate_size": _size(weights, "layers.0.mlp.gate_proj.weight", 0, where),
        "num_hidden_layers": _layers(list(weights)),
    }


_LINGUA_NAMES = {
    "output.weight": "lm_head.weight",
    "output.tied_module.weight": "lm_head.weight",
    "tok_embeddings.weight": "embed_tokens.weight",
    "layers.{}.attention_norm.weight": "layers.{}.input_layernorm.weight",
    "layers.{}.attention.wq.weight": "layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.wk.weight": "layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.wv.weight": "layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.wo.weight": "layers.{}.self_attn.o_proj.weight",
    "layers.{}.ffn_norm.weight": "layers.{}.post_attention_layernorm.weight",
    "layers.{}.feed_forward.w1.weight": "layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.w2.weight": "layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.w3.weight": "layers.{}.mlp.up_proj.weight",
    "norm.weight": "norm.weight",
}


class _LinguaModel(FileModel):
    """What is used of ``model`` in ``params.json``, with lingua's defaults."""

    dim: Size
    n_layers: Size
    n_heads: Size | None = None
    head_dim: Size | None = None
    n_kv_heads: Size | None = None
    norm_eps: Annotated[FiniteFloat, Field(gt=0)] = 1e-5
    rope_theta: Annotated[FiniteFloat, Field(gt=0)] = 10000.0
    max_seqlen: Size = 1024
    vocab_size: int = -1


_LINGUA_FREE = {
    "ffn_dim_multiplier", "multiple_of", "init_base_std", "init_std_factor", "seed", "weight_tying", "attn_impl",
}  # fmt: skip


def _lingua(folder: Path) -> Imported:
    where = folder / "params.json"
    told = read_json(where, CheckpointError)
    told = told.get("model", told) if isinstance(told, dict) else told
    config = validated(told, _LinguaModel, where, CheckpointError, hint=_WHAT)
    other = told.keys() - _LinguaModel.model_fields.keys() - _LINGUA_FREE
    _refuse(where, [f"model.{key} is {told[key]!r}" for key in sorted(other, key=str) if told[key]])
    if config.n_heads is None and config.head_dim is None:
        _refuse(where, ["model has neither n_heads nor head_dim"])
    width = config.head_dim or config.dim // (config.n_heads or 1)
    heads = config.n_heads or config.dim // width
    path = folder / "consolidated.pth"
    weights = _renamed(_weights(torch_file.read(path), path), _LINGUA_NAMES, path)
    weights = {name: _halves(name, tensor, width, path) for name, tensor in weights.items()}
    sizes = _llama_sizes(weights, path)
    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "vocab_size": "vocab_size"}
    known_rows = told.get("vocab_size") if config.vocab_size > 0 else None
    found = {theirs: sizes[ours] for theirs, ours in names.items()}
    _check_sizes(where, {**told, "vocab_size": known_rows}, found)
    return _llama("lingua", path, weights, {
        **sizes, "num_attention_heads": heads, "num_key_value_heads": config.n_kv_heads or heads, "head_dim": width,
        "max_position_embeddings": config.max_seqlen, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
    })  # fmt: skip


def _halves(name: str, tensor: Tensor, width: int, where: Path) -> Tensor:
    """Rows of queries and keys, from rotary pairs that are neighbours to pairs that are half a head apart."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    if tensor.dim() != 2 or width < 2 or tensor.shape[0] % width or width % 2:
        _refuse(where, [f"{name} has shape {tuple(tensor.shape)}, which are no heads of {width}"])
    return tensor.view(-1, width // 2, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
