"""Anybody's ``nn.Module`` that maps ``input_ids`` to logits, behind the ``CausalLM`` interface.

Shapes: B rows, T tokens, V vocabulary.

The module may return logits ``[B, T, V]``, an object with ``.logits``, or a tuple that starts with logits. What the
toolkit needs to know beyond that is read off the module: vocabulary, longest sequence, roles of parameters.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.families import family_named
from automodel_cli.models.init import is_on_meta
from automodel_cli.models.interface import CausalLM, HeadLoss, Role
from automodel_cli.models.layers.kv_cache import KVCache

_LENGTHS = ("max_seq_len", "n_positions", "block_size", "max_position_embeddings")
_POSITION_MARKS = ("wpe", "pos_", "position")
# Names of ``config.targets.resolution.load_file``.
_FOLDER_MARK = re.compile(r"^(automodel_user_\w+)_[0-9a-f]{8}\.")
# Of these packages are all modules of a model that its configuration describes; liger_kernel computes the same.
KNOWN_PACKAGES = frozenset({"automodel_cli", "torch", "transformers", "liger_kernel"})


class ExternalCausalLM(CausalLM):
    """A user's own module, kept as ``.module``; its constructor's initial values stay."""

    takes_cache = False

    def __init__(self, module: nn.Module, *, pretrained: bool = False) -> None:
        super().__init__()
        self.module = module
        self.pretrained = pretrained
        self.vocab_size = self.padded_vocab_size = _vocab_size(module)
        self.max_seq_len = _first_attribute(module, _LENGTHS)
        self.notes = [f"{type(module).__name__} returns whole logits; the loss cannot be computed in chunks"]
        parameters = inspect.signature(module.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._by_keyword = "input_ids" in parameters

    def forward(self, batch: Batch, *, head_loss: HeadLoss | None = None, cache: KVCache | None = None) -> Tensor:
        assert cache is None, "a foreign module has no cache"
        if batch.segment_ids is not None:
            self.check_keeps_apart(batch.segment_ids.shape[1])
        keywords = {"position_ids": batch.position_ids} if self._takes_positions else {}
        if self._by_keyword:
            outputs = self.module(input_ids=batch.input_ids, **keywords)
        else:
            outputs = self.module(batch.input_ids, **keywords)
        logits = _logits(outputs, self.module)
        return logits if head_loss is None else loss_from_logits(head_loss, logits, batch)

    def param_roles(self) -> dict[str, Role]:
        head = _head(self.module, self.vocab_size)
        return {name: role_of(self, name, head=head) for name, _ in self.named_parameters()}

    def init_weights(self, seed: int) -> None:
        """Nothing: the constructor has drawn them, from the global generator that the caller seeded."""
        if is_on_meta(self.module):
            raise ConfigError(
                f"{type(self.module).__name__} was built on the meta device, and only it knows its initial values",
                "build it on the CPU",
            )

    def model_config(self) -> dict[str, Any]:
        kind = type(self.module)
        return {
            "family": "foreign",
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "vocab_size": self.vocab_size,
            "parameters": {name: list(parameter.shape) for name, parameter in self.named_parameters()},
        }

    def check_keeps_apart(self, tokens: int) -> None:
        raise ConfigError(
            f"{type(self.module).__name__} cannot keep documents in one row apart: its forward takes no mask for it",
            "leave packed_sequence_size at 0 and segment_ids out of the data, or use build_gpt2_model",
        )

    def has_dropout(self) -> bool:
        return True  # a functional dropout cannot be seen from outside, and seeding costs next to nothing


def same_class_names(stored: str) -> str:
    """A stored name of a class without the mark of the folder that its file lay in: a run may be moved."""
    return _FOLDER_MARK.sub(r"\1.", stored)


def needs_code(model: CausalLM) -> bool:
    """Whether only somebody's own code builds this model: a class of theirs is in it, if only a changed block."""
    name = model.model_config().get("family")
    known = name == "hf" or family_named(name) is not None
    return not (known and packages_of(model) <= KNOWN_PACKAGES)


def packages_of(model: nn.Module) -> set[str]:
    """Where the classes of a model and of all modules in it are from."""
    return {_written_class(module).__module__.partition(".")[0] for module in model.modules()}


def _written_class(module: nn.Module) -> type:
    """Its class as somebody wrote it: FSDP2 makes one of its own for each, in whatever module the call happened."""
    lineage = type(module).__mro__
    return lineage[lineage.index(FSDPModule) + 1] if FSDPModule in lineage else lineage[0]


def loss_from_logits(head_loss: HeadLoss, logits: Tensor, batch: Batch) -> Tensor:
    """The loss of a model that gives no hidden states."""
    return head_loss.from_logits(logits, batch.labels)


def role_of(model: nn.Module, name: str, *, head: nn.Module | None) -> Role:
    """The role of a parameter, from the kind of its module and from its name."""
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    parameter = model.get_parameter(name)
    if isinstance(module, nn.Embedding):
        last = module_name.rpartition(".")[2].lower()
        return "position" if any(mark in last for mark in _POSITION_MARKS) else "embedding"
    if module is head and leaf == "weight":
        return "head"
    if "norm" in type(module).__name__.lower():
        return "norm"
    if leaf == "bias" or leaf.startswith("bias"):
        return "bias"
    if any(mark in leaf.lower() for mark in _POSITION_MARKS):
        return "position"
    return "matrix" if parameter.dim() > 1 else "norm"


def _logits(outputs: Any, module: nn.Module) -> Tensor:
    found = getattr(outputs, "logits", outputs)
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise ConfigError(
            f"{type(module).__name__} returned {_described(found)}, not logits of shape [rows, tokens, vocabulary]",
            "return logits, or an object with .logits",
        )
    return found


def _described(found: Any) -> str:
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def _vocab_size(module: nn.Module) -> int:
    """``vocab_size`` of the module or of its config, else the rows of its first embedding."""
    stated = _first_attribute(module, ("vocab_size",))
    if stated is not None:
        return stated
    for child in module.modules():
        if isinstance(child, nn.Embedding):
            return child.num_embeddings
    raise ConfigError(
        f"the vocabulary of {type(module).__name__} is not known", "give the module an attribute vocab_size"
    )


def _first_attribute(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _head(module: nn.Module, vocab_size: int) -> nn.Module | None:
    """The last linear layer with one output per token of the vocabulary, or None."""
    linears = [child for child in module.modules() if isinstance(child, nn.Linear)]
    heads = [child for child in linears if child.out_features >= vocab_size]
    return heads[-1] if heads else None
