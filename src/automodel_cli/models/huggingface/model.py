"""A transformers causal language model behind the ``CausalLM`` interface.

Shapes: B rows, T tokens, D model width, V vocabulary.

Weights keep the vocabulary size that the configuration says (no padding rows). Initial values follow the model's own
``_init_weights``, with a generator per module, so that they depend on (seed, module name) alone.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.external import loss_from_logits, role_of
from automodel_cli.models.huggingface.attention import (
    ANSWERED,
    PLAIN_CAUSAL,
    SpreadAttention,
    attend_blocks_ourselves,
)
from automodel_cli.models.huggingface.cache import preallocated_cache
from automodel_cli.models.huggingface.config import plain_floats
from automodel_cli.models.huggingface.fused import matrix_layouts
from automodel_cli.models.init import DrawOnCPU, children_first, derive_seed
from automodel_cli.models.interface import CausalLM, HeadLoss, HFTensor, MatrixLayout, Role
from automodel_cli.models.layers.attention_kernels import kernel_preferred
from automodel_cli.models.layers.document_attention import dense_mask, document_mask
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import Attend
from automodel_cli.sizing.shape import Shape

# Families whose logits are exactly hidden @ W^T: a test compares each at a tiny size. Others (soft caps,
# scaled logits, a bias on the head) compute whole logits and hand those to the loss.
DIRECT_HEADS = frozenset(
    {"gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}
)

# Matrices of a Llama-like block that tensor-parallel ranks divide by output and by input.
_COLUMN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROW = ("self_attn.o_proj", "mlp.down_proj")

# Dropouts of a configuration that act during language modelling (not those of classification heads).
_DROPOUTS = (
    "attn_pdrop",
    "attention_dropout",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "layerdrop",
    "resid_pdrop",
    "residual_dropout",
)


class HFCausalLM(CausalLM):
    """A ``transformers`` causal language model; its own module is ``.hf``."""

    has_hf_format = True

    def __init__(self, hf: transformers.PreTrainedModel, *, pretrained: bool = False) -> None:
        super().__init__()
        self.hf = hf
        self.pretrained = pretrained
        self.vocab_size = self.padded_vocab_size = self._text.vocab_size
        self.max_seq_len = getattr(self._text, "max_position_embeddings", None)
        self.direct_head = _has_direct_head(hf)
        self.attn_implementation = hf.config._attn_implementation
        self.attention: SpreadAttention | None = None
        self.kernel: str | None = None
        self.dropout = max(_dropouts(hf.config).values(), default=0.0)  # the largest of all kinds
        self.takes_blocks = _is_listed(hf) and self.attn_implementation in ANSWERED
        self.takes_residual_dtype = _is_listed(hf)
        arguments = inspect.signature(hf.forward).parameters
        self.takes_positions = "position_ids" in arguments
        self.takes_use_cache = "use_cache" in arguments
        self.cache_argument = cache_argument(hf)
        self.takes_cache = self.cache_argument is not None
        self.notes = _notes(hf, self.direct_head)
        attend_blocks_ourselves()

    def forward(self, batch: Batch, *, head_loss: HeadLoss | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits ``[B, T, V]``, or what ``head_loss`` makes of the last hidden states."""
        inputs = self._inputs(batch, cache)
        if self.attention is not None:
            self.attention.check_used(self.hf)
        in_head = head_loss is not None and self.direct_head
        with contextlib.nullcontext() if self.kernel is None else kernel_preferred(self.kernel):
            outputs = (self.hf.base_model if in_head else self.hf)(**inputs)
        if cache is not None:  # keep what this forward has added
            cache.foreign = outputs[self.cache_argument]
            cache.length += batch.input_ids.shape[1]
        if head_loss is None:
            return outputs.logits
        if not in_head:
            return loss_from_logits(head_loss, outputs.logits, batch)
        weight = self.hf.get_output_embeddings().weight
        hidden = outputs.last_hidden_state  # [B, T, D]
        return head_loss(hidden, weight, batch.labels, vocab_size=self.vocab_size)

    def _inputs(self, batch: Batch, cache: KVCache | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if self.takes_use_cache:  # absent, it is the config's, and training would fill a cache
            inputs["use_cache"] = cache is not None
        if cache is not None:
            self._add_cache(inputs, batch, cache)
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if self.attention is None and cache is None:
            inputs["attention_mask"] = self._mask(batch)
        return inputs

    def _mask(self, batch: Batch) -> Any:
        """What this model is told of who may look where; None leaves it to transformers."""
        if batch.segment_ids is not None:
            return self._segment_mask(batch.segment_ids)
        if self.takes_blocks and self._narrow_window(batch.input_ids.shape[1]) is None:
            return PLAIN_CAUSAL
        # Without any mask transformers would take positions that begin anew for documents to keep apart.
        return None if batch.position_ids is None else torch.ones_like(batch.input_ids)

    def _add_cache(self, inputs: dict[str, Any], batch: Batch, cache: KVCache) -> None:
        """What was seen before; for rows with padding on the left also where they begin."""
        if cache.foreign is None:
            cache.foreign = preallocated_cache(self.hf, cache.capacity)
        inputs[str(self.cache_argument)] = cache.foreign
        if cache.left_padding is not None:
            tokens, device = batch.input_ids.shape[1], batch.input_ids.device
            places = torch.arange(cache.length + tokens, device=device)
            inputs["attention_mask"] = (places >= cache.left_padding[:, None]).long()  # [B, S]
            if self.takes_positions:
                inputs["position_ids"] = cache.positions(tokens, device)

    def _segment_mask(self, segment_ids: Tensor) -> Any:
        """Attention within segments, as this model takes it: blocks, or bool ``[B, 1, T, T]``; for eager the same as
        numbers that are added to the scores (0, or the lowest one).

        Raises:
            ConfigError: this implementation takes no such mask, or the model has a mask of its own kind.
        """
        self.check_keeps_apart(segment_ids.shape[1])
        if self.attn_implementation == "eager":
            allowed = dense_mask(segment_ids)
            added = torch.zeros(allowed.shape, dtype=self.hf.dtype, device=allowed.device)
            return added.masked_fill(~allowed, torch.finfo(added.dtype).min)
        if self.takes_blocks:
            mask = document_mask(segment_ids, dropout=self.dropout if self.training else 0.0)
        else:
            mask = dense_mask(segment_ids)
        if isinstance(mask, BlockMask):
            mask.ndim = 4  # type: ignore[attr-defined]  # transformers' GPT-2 asks before it looks what it is
        elif self.attn_implementation != "sdpa":
            raise self._takes_no_mask()
        return mask

    def _takes_no_mask(self) -> ConfigError:
        return ConfigError(
            f"documents in one row cannot be kept apart with attn_implementation {self.attn_implementation!r}",
            "use attn_implementation: sdpa",
        )

    def check_keeps_apart(self, tokens: int) -> None:
        """A mask given from outside replaces the one that limits how far back a layer looks, and reaches no state."""
        if (why := self._crosses_documents()) is not None:
            raise ConfigError(
                f"{type(self.hf).__name__} cannot keep documents in one row apart: it {why}",
                "leave packed_sequence_size at 0 and intra_document false, or use a model of attention only",
            )
        if self.attn_implementation not in ("sdpa", "eager") and not self.takes_blocks:
            raise self._takes_no_mask()
        if (found := self._narrow_window(tokens)) is not None:
            name, width = found
            raise ConfigError(
                f"{type(self.hf).__name__} looks back {width} tokens ({name}), which cannot be combined with "
                f"documents kept apart in rows of {tokens}",
                f"set seq_len (packed_sequence_size) to at most {width}, or train with intra_document: false",
            )

    def _crosses_documents(self) -> str | None:
        """What in this model is reached by no attention mask."""
        kinds = getattr(self._text, "layer_types", None) or ()
        other = [kind for kind in kinds if kind == "linear_attention" or not kind.endswith("attention")]
        if self.hf._is_stateful:
            return "carries a state from token to token"
        if other:
            return f"has layers of kind {other[0]}"
        return None if self.takes_positions else "takes no position_ids"

    def _narrow_window(self, tokens: int) -> tuple[str, int] | None:
        """(setting, width) where a layer may look back less far than a row of ``tokens`` is long."""
        text = self._text
        widths = ((name, getattr(text, name, None)) for name in ("sliding_window", "attention_chunk_size"))
        return next(((name, width) for name, width in widths if width is not None and width < tokens), None)

    def attention_shape(self) -> tuple[int, int] | None:
        heads, width = self._heads()
        return (heads, width) if heads and width and self.attn_implementation == "sdpa" else None

    def prefer_attention(self, kernel: str) -> None:
        self.kernel = kernel

    def keep_residual_in(self, dtype: torch.dtype) -> None:
        """Embeddings begin the stream; what blocks add to it comes out of matrix products, in the compute dtype."""
        for module in self.hf.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(lambda module, inputs, output: output.to(dtype))

    def param_roles(self) -> dict[str, Role]:
        head = self.hf.get_output_embeddings()
        return {name: role_of(self, name, head=head) for name, _ in self.named_parameters()}

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        return matrix_layouts(self, self.hf.config.get_text_config())

    def to_empty(self, *, device: Any, recurse: bool = True) -> HFCausalLM:
        """As in torch; and what no file holds is right again: tied weights are one tensor, buffers have values."""
        super().to_empty(device=device, recurse=recurse)
        self.hf.tie_weights()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for _, module, owner in children_first(self.hf, transformers.PreTrainedModel):
                if any(buffer is not None for buffer in module.buffers(recurse=False)):
                    owner._init_weights(module)
        return self

    def init_weights(self, seed: int) -> None:
        for parameter in self.hf.parameters():
            # transformers leaves tensors that carry this mark alone: they came from a file.
            parameter.__dict__.pop("_is_hf_initialized", None)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), DrawOnCPU():
            for name, module, owner in children_first(self.hf, transformers.PreTrainedModel):
                torch.manual_seed(derive_seed(seed, "init", name))
                owner._init_weights(module)

    def model_config(self) -> dict[str, Any]:
        config = self.hf.config.to_dict()
        config.pop("transformers_version", None)
        return {
            "family": "hf",
            "class": type(self.hf).__name__,
            "model_type": config["model_type"],
            "attn_implementation": self.attn_implementation,
            "config": plain_floats(config),
            "shape": self._shape(),
        }

    def shape(self) -> Shape:
        return Shape(**self._shape())

    def _shape(self) -> dict[str, Any]:
        """The fields of ``Shape``."""
        text, (heads, width), blocks = self._text, self._heads(), self.blocks()
        roles, sizes = self.param_roles(), Counter[str]()
        for name, parameter in self.named_parameters():
            sizes[roles[name]] += parameter.numel()
        tied = self.hf.get_output_embeddings() is not None and "head" not in roles.values()
        looked_up = sizes["position"] + (0 if tied else sizes["embedding"])
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
        return {
            "stored_params": sizes.total(),
            "matmul_params": sizes.total() - looked_up,
            "layers": getattr(text, "num_hidden_layers", None),
            "width": heads * width if heads and width else None,
            "padded_vocab_size": self.padded_vocab_size,
            "hidden": text.hidden_size,
            "heads": heads,
            "key_width": key_heads * width if key_heads and width else None,
            "mlp_width": inner or 4 * text.hidden_size,
            "table_params": sizes["embedding"],
            "head_params": sizes["head"],
            "block_params": sum(parameter.numel() for block in blocks for parameter in block.parameters()),
            "llama_like": any(_is_linear(block, "mlp.gate_proj") for block in blocks),
        }

    @property
    def _text(self) -> Any:
        """The part of the configuration that is about text."""
        return self.hf.config.get_text_config()

    def _heads(self) -> tuple[int | None, int | None]:
        """Query heads, and the width of one."""
        text = self._text
        heads = getattr(text, "num_attention_heads", None)
        return heads, getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)

    def hf_tensors(self) -> dict[str, HFTensor]:
        """What a file of this model holds, by transformers' names; of tied weights the first name."""
        kept = dict(self.hf.named_parameters())
        ties = {name for name, _ in self.hf.named_parameters(remove_duplicate=False)} - kept.keys()
        names = [*kept, *(name for name in self.hf.state_dict() if name not in kept and name not in ties)]
        return {f"hf.{name}": HFTensor(name) for name in names}

    def has_dropout(self) -> bool:
        return bool(_dropouts(self.hf.config))

    def tp_plan(self) -> dict[str, str]:
        """The Llama-like layout, where every block has it."""
        blocks = self.blocks()
        names = [*_COLUMN, *_ROW]
        if not blocks or not all(_is_linear(block, name) for block in blocks for name in names):
            return {}
        styles = dict.fromkeys(_COLUMN, "column") | dict.fromkeys(_ROW, "row")
        return {f"*.layers.*.{name}": style for name, style in styles.items()}

    def head_counts(self) -> dict[str, int]:
        text = self._text
        heads = text.num_attention_heads
        return {
            "attention heads (num_attention_heads)": heads,
            "key-value heads (num_key_value_heads)": getattr(text, "num_key_value_heads", None) or heads,
        }

    @property
    def spreads_attention(self) -> bool:
        return self.hf.config.model_type in DIRECT_HEADS

    def change_attention(self, change: Callable[[Attend], Attend]) -> None:
        if not self.spreads_attention:
            super().change_attention(change)
        self.attention = SpreadAttention(self.hf, change)


def cache_argument(hf: transformers.PreTrainedModel) -> str | None:
    """What this model calls the cache that it takes and returns; None where it has one of its own kind, or none.

    transformers 5.24 calls it ``cache``, earlier ones ``past_key_values``. State-space models take the common cache
    under another name; xLSTM and RWKV have kinds of their own.
    """
    parameters = inspect.signature(hf.forward).parameters
    if name := next((name for name in ("cache", "past_key_values") if name in parameters), None):
        return name
    states = parameters.get("cache_params")
    common = states is not None and re.search(r"\bCache\b", str(states.annotation))
    return "cache_params" if common else None


def _is_listed(hf: transformers.PreTrainedModel) -> bool:
    """A family whose head and masks a test has seen to be handled as we think, run by transformers' own code."""
    return hf.config.model_type in DIRECT_HEADS and type(hf).__module__.startswith("transformers.")


def _has_direct_head(hf: transformers.PreTrainedModel) -> bool:
    """Whether logits are hidden @ W^T and nothing else: a listed family, run by transformers' own code."""
    head = hf.get_output_embeddings()
    return _is_listed(hf) and isinstance(head, nn.Linear) and head.bias is None and hf.base_model is not hf


def _is_linear(block: nn.Module, name: str) -> bool:
    try:
        return isinstance(block.get_submodule(name), nn.Linear)
    except AttributeError:
        return False


def _dropouts(config: Any) -> dict[str, float]:
    values = {name: getattr(config, name, None) for name in _DROPOUTS}
    return {name: value for name, value in values.items() if isinstance(value, int | float) and value > 0}


def _notes(hf: transformers.PreTrainedModel, direct_head: bool) -> list[str]:
    notes = []
    if dropouts := _dropouts(hf.config):
        shown = ", ".join(f"{name} {value:g}" for name, value in dropouts.items())
        notes.append(f"the model trains with dropout ({shown}); pretraining usually sets it to 0")
    if hf.dtype in (torch.bfloat16, torch.float16):
        notes.append(f"weights and Adam's moments are stored in {hf.dtype}: there is no fp32 master copy")
    if not direct_head:
        notes.append(f"{type(hf).__name__} has a head of its own kind: the loss uses whole logits")
    return notes
