"""A family's configuration: what its builder takes, a YAML file gives and a checkpoint keeps. Imports no torch.

What follows from the numbers alone is here as well: how large the model is, and its Hugging Face ``config.json``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.sizing.shape import ParamCounts, Shape, padded_vocab

UNSTORED = frozenset({"is_meta_device", "n_ctx"})
"""Arguments of builders that say nothing about the architecture."""
MOST_LAYERS = 10_000
"""Far above any model; a slip of the keyboard would otherwise be built for minutes."""


class ModelConfig(ABC):
    """What every family's configuration, a dataclass, has."""

    # Its name in checkpoints, and the ``model_type`` of its Hugging Face format where it has one
    family: ClassVar[str]
    vocab_size: int
    attn_implementation: str
    is_meta_device: bool

    @abstractmethod
    def parameters(self) -> dict[str, int]:
        """Logical number of parameters by role, tied weights once, without padding rows."""

    @abstractmethod
    def dimensions(self) -> dict[str, Any]:
        """The fields of ``Shape`` that are not counts of parameters: layers, width, hidden, heads, and so on."""

    def counts(self) -> ParamCounts:
        """The number of parameters, by convention."""
        by_role, hidden = self.parameters(), self.dimensions().get("hidden")
        total, embedding = sum(by_role.values()), by_role.get("embedding", 0)
        tied = self.vocab_size * hidden if hidden else embedding
        return ParamCounts(
            total=total,
            non_embedding=total - embedding - by_role.get("position", 0),
            scaling=by_role.get("matrix", 0) + (by_role.get("head") or tied),
        )

    def shape(self) -> Shape:
        """What cost formulas need."""
        counts, padded = self.parameters(), self.padded_vocab_size
        rest = {"layers": None, "width": None, **self.dimensions()}
        embedding, head, norm = (counts.get(role, 0) for role in ("embedding", "head", "norm"))
        table, own_head = (size // self.vocab_size * padded for size in (embedding, head))
        total = sum(counts.values())
        looked_up = counts.get("position", 0) + (embedding if head else 0)
        last_norm = norm // (2 * (rest["layers"] or 0) + 1)
        return Shape(
            stored_params=total - embedding - head + table + own_head,
            matmul_params=total - looked_up,
            padded_vocab_size=padded,
            table_params=table,
            head_params=own_head,
            block_params=counts.get("matrix", 0) + counts.get("bias", 0) + norm - last_norm,
            **rest,
        )

    def stored(self) -> dict[str, Any]:
        """JSON from which ``families.build_from_config`` makes the same architecture."""
        this: Any = self
        names = [field.name for field in fields(this) if field.name not in UNSTORED]
        return {"family": self.family, **{name: getattr(self, name) for name in names}}

    def hf_config(self) -> dict[str, Any] | None:
        """The ``config.json`` that makes ``transformers`` build the same function; None: there is no such format."""
        return None

    @classmethod
    def reads(cls, model_type: Any) -> bool:
        """Whether Hugging Face folders of this ``model_type`` become this family."""
        return bool(model_type == cls.family)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The builder's arguments for a Hugging Face ``config.json`` of this ``model_type``.

        Raises:
            CheckpointError: it uses something that this family does not have.
        """
        raise CheckpointError(f"{cls.family} has no Hugging Face format")

    @classmethod
    def _same_names(cls, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Arguments that ``config.json`` calls alike, with our defaults for those it lacks."""
        return {name: config.get(name, getattr(cls, name)) for name in names}

    @property
    def padded_vocab_size(self) -> int:
        """Rows that the token tables are stored with."""
        return padded_vocab(self.vocab_size)


def refuse_arguments(builder: str, problems: Iterable[str]) -> None:
    """Raise one ConfigError that names every argument out of range; nothing where there is none."""
    if text := "; ".join(problems):
        raise ConfigError(f"{builder}: {text}", "correct the model section")


def refuse_unsupported(title: str, builder: str, found: Mapping[str, bool]) -> None:
    """Raise a CheckpointError that names what of a ``config.json`` (true in ``found``) ``builder`` cannot do."""
    if unsupported := [text for text, is_there in found.items() if is_there]:
        raise CheckpointError(
            f"this {title} configuration has {', '.join(unsupported)}, which {builder} does not",
            "load it with transformers.AutoModelForCausalLM.from_pretrained as the model's _target_",
        )


def is_positive(value: Any, *, whole: bool = False) -> bool:
    """Whether ``value`` is a number above 0, or a whole one."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and value > 0


class GroupedHeads:
    """The heads of families whose key-value heads are shared (Ainslie et al. 2023), part of their configuration."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int | None
    head_dim: int | None

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def head_problems(self, *, rotated: bool) -> list[str]:
        """What does not fit; a head that is ``rotated`` has an even width."""
        width, heads, problems = self.hidden_size, self.num_attention_heads, []
        if heads % self.kv_heads:
            problems.append(f"num_attention_heads {heads} is not divisible by num_key_value_heads {self.kv_heads}")
        if self.head_dim is None and width % heads:
            problems.append(f"hidden_size {width} is not divisible by num_attention_heads {heads}")
        elif rotated and self.head_width % 2:
            problems.append(f"a head of {self.head_width} has no pairs to rotate")
        return problems


def size_problems(config: ModelConfig, names: Sequence[str]) -> list[str]:
    """What is wrong with the sizes called ``names``."""
    problems = [
        f"{name} is {getattr(config, name)!r}, expected a whole number of at least 1"
        for name in names
        if not is_positive(getattr(config, name), whole=True)
    ]
    layers = next((name for name in names if name in ("n_layer", "num_hidden_layers")), None)
    if not problems and layers and getattr(config, layers) > MOST_LAYERS:
        problems.append(f"{layers} is {getattr(config, layers):,}, expected at most {MOST_LAYERS:,}")
    return problems


def token_ids(value: int | list[int] | None) -> list[int]:
    """The ids that a special token of a configuration stands for."""
    return value if isinstance(value, list) else [] if value is None else [value]


def token_problems(config: Any) -> list[str]:
    """Special tokens that the vocabulary does not have."""
    return [
        f"{name} {token} is not below vocab_size {config.vocab_size}"
        for name in ("bos_token_id", "eos_token_id")
        for token in token_ids(getattr(config, name))
        if not 0 <= token < config.vocab_size
    ]


def known_tokens(config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The special tokens of a ``config.json``, where the vocabulary has them: transformers fills in defaults."""
    found = {name: config.get(name) for name in ("bos_token_id", "eos_token_id")}
    return {
        name: value if all(token < vocab_size for token in token_ids(value)) else None for name, value in found.items()
    }
