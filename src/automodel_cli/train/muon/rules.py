"""What updates the parameters of each role under ``muon_adamw``: Muon the matrices of the blocks, AdamW the rest."""

from __future__ import annotations

from functools import partial
from typing import Protocol, get_args

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from automodel_cli.arguments import takes
from automodel_cli.models.interface import CausalLM, MatrixLayout, Role
from automodel_cli.train.muon.arguments import MuonArguments
from automodel_cli.train.muon.optimizer import MuonAdamW
from automodel_cli.train.param_groups import UpdateRule


class MakesRules(Protocol):
    """What makes the table for ``build_optimizer``: one optimizer, two rules. A tied head is an embedding, once."""

    def __call__(
        self, model: CausalLM, mesh: DeviceMesh | None = None, *, fused: bool = False
    ) -> dict[Role, UpdateRule]:
        """For ``model``.

        Args:
            mesh: all ranks, where every rank has all weights (DDP).
            fused: whether AdamW runs its fused kernel.
        """


@takes(MuonArguments)
def muon_adamw(arguments: MuonArguments) -> MakesRules:
    """Rules of an ``optimizer`` section. Arguments: ``MuonArguments``."""
    return partial(_rules, arguments)


def _rules(
    arguments: MuonArguments, model: CausalLM, mesh: DeviceMesh | None = None, *, fused: bool = False
) -> dict[Role, UpdateRule]:
    named = dict(model.named_parameters())
    layouts: dict[Tensor, MatrixLayout] = {named[name]: layout for name, layout in model.matrix_layouts().items()}
    # Groups have multiples of these two, also where an override leaves none that has them itself.
    build = partial(MuonAdamW, lr=arguments.lr, weight_decay=arguments.weight_decay, layouts=layouts, mesh=mesh)
    own = arguments.orthogonalization_dtype  # auto: a run has chosen before
    matrices = {
        "rule": "muon",
        "momentum": arguments.momentum,
        "momentum_start": arguments.momentum_start,
        "momentum_warmup": arguments.momentum_warmup_steps,
        "nesterov": arguments.nesterov,
        "cautious": arguments.cautious_weight_decay,
        "method": arguments.orthogonalization,
        "steps": arguments.orthogonalization_steps,
        "epsilon": arguments.epsilon,
        "dtype": "bfloat16" if own == "auto" else own,
        "beta2": arguments.normuon_beta2,
        "adjust_lr": arguments.adjust_lr,
    }
    others = {"rule": "adamw", "eps": arguments.scalar_eps, "fused": fused}
    rules: dict[Role, UpdateRule] = {
        role: UpdateRule(
            build,
            arguments.lr_of(role),
            arguments.weight_decay_of(role),
            decays=role == "head" or arguments.weight_decay_of(role) > 0,
            settings={**others, "betas": tuple(arguments.betas_of(role))},
        )
        for role in get_args(Role)
    }
    rules["matrix"] = UpdateRule(build, arguments.lr, arguments.weight_decay, settings=matrices)
    return rules
