"""Tensor parallel: each rank computes with its part of the large matrices, and with its own tokens elsewhere.

Shapes: B rows, t = T / (cp tp) own tokens, T' = T / cp tokens of the group, D width, n tensor-parallel ranks.

    norm [B, t, D] -> gather tokens [B, T', D] -> column matrices [B, T', D'/n] -> attention or activation
    -> row matrix, a partial sum [B, T', D] -> sum over ranks, keep own tokens [B, t, D] -> residual

Gathering tokens and summing them out again costs what one sum over ranks would cost, and norms, residuals, embeddings
and the head's loss then do not repeat each other's work (sequence parallel; there is no other mode). Parameters are
``DTensor`` over the axis tp, so that FSDP and checkpoints know what a piece is; layers see plain tensors
(``view_parameters``). Styles of a plan, by module name pattern:

    column      weight [out, in] divided by output rows; the input of its parent module is gathered
    column:3    the same for three matrices in one (queries, keys, values): rows lie in storage as one block a rank,
                and move to the rank that has their heads (3 D^2 / n elements each way) when they are used
    row         weight divided by input columns; the output is summed and divided

Everything else is stored as copies on tp whose gradients are partial until ``GradSync.reduce_partial``; the tables
outside the blocks (embedding, head) are stored in pieces and gathered when used.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from automodel_cli.distributed.collectives import gather, move_rows, sum_and_divide
from automodel_cli.distributed.context_parallel import SequenceSharder
from automodel_cli.distributed.param_views import View, view_parameters
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError

STYLES = {
    "column": "column",
    "column:3": "column:3",
    "row": "row",
    "colwise": "column",  # the names in transformers' plans
    "rowwise": "row",
}
Views = dict[str, View]


class TensorParallel:
    """Applies a plan to a model.

    Args:
        plan: module name pattern -> style.
        heads: counts that the ranks must divide evenly, by what they are (attention heads, key-value heads).
    """

    def __init__(self, world: World, plan: Mapping[str, str], heads: Mapping[str, int]) -> None:
        assert world.mesh is not None
        self.size, self.rank = world.axis_size("tp"), world.axis_rank("tp")
        self.mesh, self.group = world.mesh["tp"], world.mesh.get_group("tp")
        self.plan, self.heads = plan, heads

    def apply(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        """Divide the matrices of ``blocks`` and exchange tokens around them; in place.

        Raises:
            ConfigError: as :func:`check_plan`.
        """
        check_plan(model, self.plan, self.heads, self.size)
        names = {id(module): name for name, module in model.named_modules()}
        inner: dict[str, Views] = {names[id(block)]: {} for block in blocks}
        outer: Views = {}
        divided, tied = self._divide_matrices(model), _other_names(model)
        for name, parameter in list(model.named_parameters()):
            block = next((block for block in inner if name.startswith(f"{block}.")), None)
            view = divided.get(name) or self._place(model, [name, *tied.get(name, [])], parameter, table=block is None)
            if block is None:
                outer[name] = view
            else:
                inner[block][name.removeprefix(f"{block}.")] = view
        for name, others in tied.items():
            outer.update({other: outer[name] for other in others if name in outer})
        for name, views in inner.items():
            view_parameters(model.get_submodule(name), views)
        view_parameters(model, outer)

    # ---------------------------------------------------------------------------------------- matrices

    def _divide_matrices(self, model: nn.Module) -> Views:
        """Carry out the plan; what the layers see of each divided parameter."""
        views: Views = {}
        parents: set[str] = set()
        for name, module, style in _planned(model, self.plan):
            if style == "row":
                views[f"{name}.weight"] = self._shard(module, "weight", 1)
                self._sum_output(module)
                continue
            parents.add(name.rpartition(".")[0])
            parts = 3 if style == "column:3" else 1
            for leaf in ("weight", "bias"):
                if getattr(module, leaf) is not None:
                    views[f"{name}.{leaf}"] = self._shard(module, leaf, 0, parts=parts)
        for parent in parents:
            model.get_submodule(parent).register_forward_pre_hook(self._gather_input, with_kwargs=True)
        return views

    def _shard(self, module: nn.Linear, leaf: str, dim: int, *, parts: int = 1) -> View:
        """Divide one parameter along ``dim``."""
        parameter = getattr(module, leaf)
        setattr(module, leaf, self._distributed(parameter, Shard(dim)))
        if parts == 1:
            return _own_piece
        send, counts = rows_to_move(parameter.shape[0], parts, self.size, self.rank)
        return lambda tensor: move_rows(_own_piece(tensor), send, counts, self.group)

    def _sum_output(self, module: nn.Linear) -> None:
        """A row matrix gives a partial sum for all tokens; the bias belongs to the whole sum."""

        def forward(x: Tensor) -> Tensor:
            summed = sum_and_divide(F.linear(x, module.weight), 1, self.group)
            return summed if module.bias is None else summed + module.bias

        module.forward = forward  # type: ignore[method-assign, assignment]

    def _gather_input(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """All tokens of the group, in the dtype that the matrices compute in."""

        def gathered(hidden: Tensor) -> Tensor:
            kind = hidden.device.type
            if torch.is_autocast_enabled(kind):
                hidden = hidden.to(torch.get_autocast_dtype(kind))
            return gather(hidden, 1, self.group)

        if inputs:
            return (gathered(inputs[0]), *inputs[1:]), keywords
        return inputs, {**keywords, "hidden_states": gathered(keywords["hidden_states"])}

    # ------------------------------------------------------------------------------------ all the others

    def _place(self, model: nn.Module, names: list[str], parameter: nn.Parameter, *, table: bool) -> View:
        """Tables in pieces by rows where they divide, everything else as copies."""
        in_pieces = table and parameter.dim() > 1 and parameter.shape[0] % self.size == 0
        placed = self._distributed(parameter, Shard(0) if in_pieces else Replicate())
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, placed)
        return partial(_whole_table, group=self.group) if in_pieces else _own_tokens_only

    def _distributed(self, parameter: nn.Parameter, placement: Shard | Replicate) -> nn.Parameter:
        tensor = distribute_tensor(parameter.detach(), self.mesh, [placement], src_data_rank=None)
        return nn.Parameter(tensor, requires_grad=parameter.requires_grad)


def check_plan(model: nn.Module, plan: Mapping[str, str], heads: Mapping[str, int], size: int) -> None:
    """Check that ``size`` ranks can divide ``model`` by ``plan``, as it is before it is spread.

    Raises:
        ConfigError: the plan is empty or matches nothing, or heads or matrices do not divide.
    """
    for what, count in heads.items():
        if count % size:
            raise ConfigError(
                f"distributed.tp_size {size} does not divide the model's {count} {what}",
                f"take a divisor of {count}, or other ways to spread the model (dp, cp)",
            )
    found = _planned(model, plan)
    for name, module, style in found:
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"tp_plan: {name} is a {type(module).__name__}, only linear layers can be divided",
                "correct distributed.tp_plan",
            )
        side = module.in_features if style == "row" else module.out_features
        if side % (size * (3 if style == "column:3" else 1)):
            raise ConfigError(
                f"distributed.tp_size {size} does not divide {name}.weight {tuple(module.weight.shape)}",
                "take a smaller tp_size",
            )
    if not found:
        raise ConfigError(
            f"tensor parallel: no plan for {type(model).__name__}"
            + (f" (no module is called like {', '.join(plan)})" if plan else ""),
            "use build_gpt2_model or a Llama-like model, give distributed.tp_plan, or set tp_size to 1",
        )


def _planned(model: nn.Module, plan: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """``(name, module, style)`` of each module that the plan names."""
    styles = {pattern: _style(pattern, style) for pattern, style in plan.items()}
    matches = (
        (name, module, next((s for pattern, s in styles.items() if fnmatch.fnmatchcase(name, pattern)), None))
        for name, module in model.named_modules()
    )
    return [(name, module, style) for name, module, style in matches if style is not None]


def rotary_positions(model: nn.Module, tokens: SequenceSharder) -> None:
    """Rotary angles are computed once for all layers, outside attention: there for all tokens of the group."""

    def look(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if "position_ids" in keywords:
            keywords = {**keywords, "position_ids": tokens.positions().to(keywords["position_ids"].device)}
        elif len(inputs) > 1:
            inputs = (inputs[0], tokens.positions().to(inputs[1].device), *inputs[2:])
        return inputs, keywords

    for module in model.modules():
        if "RotaryEmbedding" in type(module).__name__:
            module.register_forward_pre_hook(look, with_kwargs=True)


def rows_to_move(rows: int, parts: int, size: int, rank: int) -> tuple[list[list[int]], list[int]]:
    """What of this rank's block of rows goes to which rank, and how many come from each.

    Storage gives rank r the r-th block of all rows; computation gives it the r-th piece of each of ``parts`` parts.
    """
    block, part, piece = rows // size, rows // parts, rows // parts // size
    user = [(row % part) // piece for row in range(rows)]
    mine = range(rank * block, (rank + 1) * block)
    send = [[row - mine.start for row in mine if user[row] == other] for other in range(size)]
    counts = [sum(user[row] == rank for row in range(other * block, (other + 1) * block)) for other in range(size)]
    return send, counts


def _own_piece(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _own_tokens_only(tensor: Tensor) -> Tensor:
    """A copy, whose gradient is marked as a copy too although it is of this rank's tokens only."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local(grad_placements=tensor.placements)


def _whole_table(tensor: Tensor, group: Any) -> Tensor:
    return gather(_own_piece(tensor), 0, group)


def _other_names(model: nn.Module) -> dict[str, list[str]]:
    """Names beyond the first of parameters that have several (tied weights)."""
    first: dict[int, str] = {}
    others: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            others.setdefault(known, []).append(name)
    return others


def _style(pattern: str, style: Any) -> str:
    if style not in STYLES:
        raise ConfigError(f"distributed.tp_plan: {pattern} has style {style!r}", f"styles are {', '.join(STYLES)}")
    return STYLES[style]
