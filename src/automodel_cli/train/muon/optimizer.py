"""Muon for matrices and AdamW for everything else, in one optimizer, on one rank or many.

For a weight matrix W with gradient G, momentum M and learning rate eta (Jordan et al. 2024):

    M <- mu M + (1 - mu) G              U = (1 - mu) G + mu M, with Nesterov; else M
    O = orthogonalize(U)                each matrix of a fused weight by itself
    with beta2 (NorMuon, Li et al. 2025, arXiv 2510.05491): V <- beta2 V + (1 - beta2) mean(O^2) over the short side;
                                        O <- O / sqrt(V), scaled back to the norm it had
    W <- W - eta lambda W - eta s O     s from the shape of the matrix (``LR_SCALES``)

Cautious weight decay (Chen et al. 2025, arXiv 2510.12402) leaves out elements that the update moves away from zero.

How it lies over ranks: momentum and AdamW's moments are divided over all ranks: as the weights are, where these are
``DTensor`` (FSDP, replicas of it, tensor parallel); by rows, where every rank has all weights (DDP). Each matrix has an
owner that makes it orthogonal (``team``). What is saved are tensors in the shapes of the weights, so that a run goes on
with any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim.adamw import adamw

from automodel_cli.distributed.chunks import narrowed
from automodel_cli.distributed.collectives import gather_bytes
from automodel_cli.distributed.grad_sync import local
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import MatrixLayout
from automodel_cli.train.muon.matrices import LR_SCALES, Matrix, matrices_of
from automodel_cli.train.muon.orthogonal import METHODS, orthogonalize
from automodel_cli.train.muon.team import Part, Stacks, Team, row_chunk

Rule = Literal["muon", "adamw"]
_ONE_MATRIX = MatrixLayout()
_DIVIDED = ("momentum_buffer", "exp_avg", "exp_avg_sq")
_AT_ONCE = 1 << 26  # elements that are worked on at a time: more make nothing faster, and cost up to 12 bytes each
_OF_A_GROUP = {"params", "lr", "weight_decay", "lr_mult", "wd_mult", "initial_lr"}


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups whose ``rule`` is muon, AdamW for those whose rule is adamw.

    Args:
        params: parameters, or groups of them; a group may set any of the arguments below for itself.
        rule: muon (weights of two dimensions) or adamw.
        lr: learning rate.
        momentum: mu, from ``momentum_start`` on reached linearly within ``momentum_warmup`` updates (0.85 and 300 in
            modded-nanogpt); without these it is constant.
        nesterov: look one gradient ahead.
        weight_decay: lambda, decoupled: times ``lr``, whatever the shape.
        cautious: decay only where the update shrinks the weight too. Of Muon only.
        method, steps, epsilon: how matrices are made orthogonal (``orthogonal``).
        dtype: in which they are: bfloat16 or float32.
        beta2: of NorMuon's average of squares; None: plain Muon.
        adjust_lr: keller, spectral_norm or rms_norm (``LR_SCALES``).
        betas, eps: AdamW's.
        fused: AdamW's kernel.
        layouts: how weights consist of matrices, where they are not one ``[out, in]`` each.
        mesh: all ranks, where every rank has all weights; None in one process. ``DTensor`` know theirs.

    Raises:
        ConfigError: a group's settings are not possible, or its weights are no matrices.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        rule: Rule = "muon",
        lr: float = 0.02,
        momentum: float = 0.95,
        momentum_start: float | None = None,
        momentum_warmup: int = 0,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        cautious: bool = False,
        method: str = "polar_express",
        steps: int = 5,
        epsilon: float = 1e-7,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        beta2: float | None = None,
        adjust_lr: str = "keller",
        betas: Sequence[float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = False,
        *,
        layouts: Mapping[Tensor, MatrixLayout] | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        defaults = {
            "rule": rule,
            "lr": lr,
            "momentum": momentum,
            "momentum_start": momentum_start,
            "momentum_warmup": momentum_warmup,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "cautious": cautious,
            "method": method,
            "steps": steps,
            "epsilon": epsilon,
            "dtype": dtype,
            "beta2": beta2,
            "adjust_lr": adjust_lr,
            "betas": tuple(betas),
            "eps": eps,
            "fused": fused,
        }
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self._layouts, self._mesh = dict(layouts or {}), mesh
        self._teams: dict[Tensor, Team] = {}
        for group in self.param_groups:
            check_settings(group)
            for parameter in group["params"]:
                self.state[parameter] = self._first_state(parameter, group)

    # ------------------------------------------------------------------------------------------- state

    def _first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """State exists before the first update, so that a stored one has something to go into."""
        device = local(parameter).device
        if group["rule"] == "adamw":
            on = device if group["fused"] else "cpu"
            first, second = (self._divided(torch.zeros_like(parameter.detach())) for _ in range(2))
            return {"step": torch.zeros((), device=on), "exp_avg": first, "exp_avg_sq": second}
        momentum = self._divided(torch.zeros_like(parameter.detach()))
        state = {"step": torch.zeros(()), "momentum_buffer": momentum}
        matrices = self._matrices([parameter])
        if group["beta2"] is not None:
            state["mean_square"] = torch.zeros(sum(m.stacked_shape[1] for m in matrices), device=device)
        return state

    def _divided(self, whole: Tensor) -> Tensor:
        """State in the shape of a parameter: this rank's rows of it, where all ranks have the parameter."""
        if isinstance(whole, DTensor) or self._mesh is None or whole.dim() == 0:
            return whole
        rows = whole[self._rows(whole)].clone()
        return DTensor.from_local(
            rows, self._mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )

    def _rows(self, parameter: Tensor) -> slice:
        """The rows of this rank's piece of a parameter whose state is here: all, but where all ranks have all."""
        if isinstance(parameter, DTensor) or self._mesh is None:
            return slice(None)
        (begin, *_), (size, *_) = row_chunk(tuple(parameter.shape), self._mesh.get_local_rank(), self._mesh.size())
        return slice(begin, begin + size)

    def _own(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """Of a parameter or its gradient, what this rank has the state of."""
        piece = local(tensor)
        return piece if piece.dim() == 0 else piece[self._rows(parameter)]

    def _matrices(self, parameters: Sequence[Tensor]) -> list[Matrix]:
        layouts = [self._layouts.get(parameter, _ONE_MATRIX) for parameter in parameters]
        return matrices_of([tuple(parameter.shape) for parameter in parameters], layouts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take stored state, whole or divided as the parameters are, and keep this rank's share of it."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({key: self._divided(state[key]) for key in _DIVIDED if key in state})
            if "mean_square" in state:
                state["mean_square"] = local(state["mean_square"]).float()

    # ------------------------------------------------------------------------------------------- an update

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups; every rank calls it, or none."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for alike in with_equal_settings([group for group in self.param_groups if group["rule"] == "muon"]):
            self._muon(alike)
        for group in self.param_groups:
            if group["rule"] == "adamw":
                self._adamw(group)
        return loss

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        weights = [self._own(parameter, parameter) for parameter in parameters]
        used = [index for index, weight in enumerate(weights) if weight.numel()]
        for index in set(range(len(parameters))) - set(used):  # rows of few: this rank has none
            states[index]["step"] += 1
        adamw(
            [weights[i] for i in used],
            [self._own(parameters[i], parameters[i].grad) for i in used],
            [local(states[i]["exp_avg"]) for i in used],
            [local(states[i]["exp_avg_sq"]) for i in used],
            [],
            [states[i]["step"] for i in used],
            foreach=False if group["fused"] else None,
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if self._mesh is not None:
            ranks = range(self._mesh.size())
            whole = [p for p in parameters if not isinstance(p, DTensor) and p.dim()]
            gather_bytes([_rows_by_rank(parameter, len(ranks)) for parameter in whole], self._mesh.get_group())

    def _muon(self, groups: Sequence[dict[str, Any]]) -> None:
        """Groups that differ in learning rate and weight decay only: one stack a shape, one exchange."""
        parameters = [parameter for group in groups for parameter in group["params"]]
        settings = groups[0]
        team = self._team(parameters, settings)
        stacks = team.collect(self._momentum_updates(parameters, settings))
        self._make_orthogonal(stacks, team, parameters, settings)
        parts = dict(zip(parameters, team.spread(stacks), strict=True))
        for group in groups:
            apply_update(group, parts)

    def _team(self, parameters: Sequence[Tensor], settings: dict[str, Any]) -> Team:
        """Made at the first update: by then a model that was built on the meta device lies where it will."""
        if parameters[0] not in self._teams:
            dtype = getattr(torch, settings["dtype"])
            self._teams[parameters[0]] = Team(parameters, self._matrices(parameters), self._mesh, dtype)
        return self._teams[parameters[0]]

    def _momentum_updates(self, parameters: Sequence[Tensor], settings: dict[str, Any]) -> list[Tensor]:
        """What is to be made orthogonal of each weight: this rank's chunk of it."""
        states = [self.state[parameter] for parameter in parameters]
        buffers = [local(state["momentum_buffer"]) for state in states]
        gradients = [
            torch.zeros_like(buffer) if p.grad is None else self._own(p, p.grad).to(buffer.dtype)
            for p, buffer in zip(parameters, buffers, strict=True)
        ]
        mu = momentum_at(settings, float(states[0]["step"]))
        for state in states:
            state["step"] += 1
        torch._foreach_lerp_(buffers, gradients, 1 - mu)
        if not settings["nesterov"]:
            return buffers
        dtype = getattr(torch, settings["dtype"])  # at once: all of them in fp32 would be a copy of the weights
        return [gradient.lerp(buffer, mu).to(dtype) for gradient, buffer in zip(gradients, buffers, strict=True)]

    def _make_orthogonal(
        self, stacks: Stacks, team: Team, parameters: Sequence[Tensor], settings: dict[str, Any]
    ) -> None:
        """This rank's matrices, in place."""
        averages = self._mean_squares(team, parameters) if settings["beta2"] is not None else []
        scale = LR_SCALES[settings["adjust_lr"]]
        how = {key: settings[key] for key in ("method", "steps", "epsilon")}
        for shape, stack in stacks.items():
            size = max(1, _AT_ONCE // math.prod(shape))
            for begin in range(0, len(stack), size):
                places, part = team.mine[shape][begin : begin + size], stack[begin : begin + size]
                found = orthogonalize(part, **how)
                if averages:
                    found = even_out(found, [averages[index] for index in places], settings["beta2"])
                factors = [scale(*team.matrices[index].out_in) for index in places]
                torch.mul(found, torch.tensor(factors, device=found.device)[:, None, None], out=part)
        team.share(averages)

    def _mean_squares(self, team: Team, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Of each matrix the view of its averages, one for each place of the long side."""
        views = []
        for index, parameter in enumerate(parameters):
            lengths = [m.stacked_shape[1] for m in team.matrices if m.weight == index]
            views.extend(self.state[parameter]["mean_square"].split(lengths))
        return views


def check_settings(group: Mapping[str, Any]) -> None:
    """Check one group's arguments.

    Raises:
        ConfigError: a word is not known, or a number is out of range.
    """
    words = {
        "rule": ("muon", "adamw"),
        "method": METHODS,
        "adjust_lr": LR_SCALES,
        "dtype": ("bfloat16", "float32"),
    }
    for key, known in words.items():
        if group[key] not in known:
            raise ConfigError(f"optimizer.{key} is {group[key]!r}", f"choose one of {', '.join(known)}")
    below_one = [group["momentum"], *group["betas"]]
    below_one += [group[key] for key in ("momentum_start", "beta2") if group[key] is not None]
    if not all(0 <= value < 1 for value in below_one):
        raise ConfigError(
            f"optimizer: momentum, beta2 and betas are {below_one}, expected numbers from 0 to below 1",
            "correct the optimizer section",
        )
    if min(group["lr"], group["weight_decay"], group["steps"], group["momentum_warmup"]) < 0:
        raise ConfigError(
            "optimizer: lr, weight_decay, steps or momentum_warmup is below 0",
            "correct the optimizer section",
        )


def momentum_at(settings: Mapping[str, Any], updates_done: float) -> float:
    """mu of the update after ``updates_done``."""
    start, warmup = settings["momentum_start"], settings["momentum_warmup"]
    if start is None or updates_done >= warmup:
        return settings["momentum"]
    return start + (settings["momentum"] - start) * updates_done / warmup


def even_out(found: Tensor, averages: Sequence[Tensor], beta2: float) -> Tensor:
    """NorMuon's step on a stack ``[K, short, long]``; ``averages``, ``[long]`` each, are updated in place."""
    wide = found.float()
    now = torch.stack([average.to(wide.device) for average in averages])
    now.lerp_(wide.square().mean(dim=-2), 1 - beta2)
    for average, new in zip(averages, now, strict=True):
        average.copy_(new)
    evened = wide * now.clamp(min=1e-10).rsqrt()[:, None, :]
    norms = [tensor.norm(dim=(-2, -1), keepdim=True) for tensor in (wide, evened)]
    return (evened * (norms[0] / norms[1].clamp(min=1e-10))).to(found.dtype)


def apply_update(group: Mapping[str, Any], parts: Mapping[Tensor, Sequence[Part]]) -> None:
    """Weight decay and the update, on this rank's chunks of a group's weights; in place."""
    given = [
        (narrowed(local(parameter), (0, 0), chunk), values)
        for parameter in group["params"]
        if parameter.grad is not None
        for chunk, values in parts[parameter]
    ]
    for some in _up_to(_AT_ONCE, given):
        _apply(group, some)


def _apply(group: Mapping[str, Any], given: Sequence[tuple[Tensor, Tensor]]) -> None:
    """The same on some chunks, each with the update of it."""
    weights = [weight for weight, _ in given]
    updates = [values.to(weight) for weight, values in given]
    decay = group["lr"] * group["weight_decay"]
    if decay and group["cautious"]:
        kept = [1 - decay * (weight * update >= 0).to(weight) for weight, update in zip(weights, updates, strict=True)]
        torch._foreach_mul_(weights, kept)
    elif decay:
        torch._foreach_mul_(weights, 1 - decay)
    torch._foreach_add_(weights, updates, alpha=-group["lr"])


def _up_to(elements: int, given: Sequence[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """``given`` in lists of at most so many elements, or of one chunk."""
    some: list[tuple[Tensor, Tensor]] = []
    room = elements
    for weight, update in given:
        room -= weight.numel()
        if some and room < 0:
            yield some
            some, room = [], elements - weight.numel()
        some.append((weight, update))
    if some:
        yield some


def with_equal_settings(groups: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups together that differ only in what applying an update asks for."""
    alike: list[list[dict[str, Any]]] = []
    for group in groups:
        if not group["params"]:
            continue
        settings = {key: value for key, value in group.items() if key not in _OF_A_GROUP}
        for others in alike:
            if settings == {key: value for key, value in others[0].items() if key not in _OF_A_GROUP}:
                others.append(group)
                break
        else:
            alike.append([group])
    return alike


def _rows_by_rank(parameter: Tensor, ranks: int) -> list[Tensor]:
    """The rows whose state each rank has, as views."""
    shape = tuple(parameter.shape)
    chunks = [row_chunk(shape, rank, ranks) for rank in range(ranks)]
    return [parameter.detach()[offsets[0] : offsets[0] + sizes[0]] for offsets, sizes in chunks]
