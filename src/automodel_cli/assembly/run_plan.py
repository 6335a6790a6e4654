"""What a run is to become, worked out from the ``config.yaml`` in its folder. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from automodel_cli.config.horizon import batches_of, configured_seq_len, horizon_of
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.own_models import own_model
from automodel_cli.errors import AutomodelError
from automodel_cli.sizing.shape import flops_per_token


def plan_of(config: Path) -> dict[str, Any]:
    """``steps``, ``tokens``, ``params``, ``seq_len``, ``global_batch_size`` and ``flops_per_token``, as far as known.

    Never fails: another version may have written the file, or the model's own code is not here.
    """
    try:
        cfg = load_config(PretrainConfig, config)
    except (AutomodelError, OSError, ValueError):
        return {}
    plan: dict[str, Any] = {}
    try:
        seq_len, sizes = configured_seq_len(cfg), batches_of(cfg)
        plan |= {"seq_len": seq_len, "global_batch_size": sizes.last}
        model = own_model(cfg.model)
        if model is not None and seq_len is not None:
            plan |= {"params": model.counts().total, "flops_per_token": flops_per_token(model.shape(), seq_len)}
        horizon = horizon_of(cfg)
        plan |= {"steps": horizon.steps, "horizon": horizon.reason}
        if horizon.steps is not None and seq_len is not None:
            plan["tokens"] = sizes.samples(horizon.steps) * seq_len
    except (AutomodelError, OSError, ValueError, ArithmeticError):
        pass  # what is known so far
    return {key: value for key, value in plan.items() if value is not None}
