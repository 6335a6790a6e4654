"""The ``fp8:`` section: whether the blocks' matrix products run in fp8, and why not where they cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from automodel_cli import device as this_machine
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM, count_parameters
from automodel_cli.models.layers import fp8

# nanochat's log of 2026-02, eight H100: 1.17 times the tokens per second at depth 26 (about a billion
# parameters), fewer than in bf16 at depth 12.
PAYS_FROM = 1_000_000_000


def choose_fp8(
    cfg: PretrainConfig,
    *,
    stored: Mapping[str, Any] | None,
    model: CausalLM,
    device: torch.device,
    precision: str,
    tokens: int,
) -> tuple[dict[str, Any], str]:
    """What a run keeps of its choice, and the choice in words: as configured, else as stored, else off.

    ``tokens``: of a micro-batch.

    Raises:
        ConfigError: fp8 is wanted and does not work or does not pay here; all reasons at once.
    """
    kept = cfg.fp8.enabled == "auto" and stored is not None
    choice = dict(stored or {}) if kept else _configured(cfg)
    if choice["recipe"] == "off":
        return {"recipe": "off"}, ""
    converted = fp8.suitable(model, choice["filter_fqns"])
    problems = [
        *_machine_problems(cfg, device, precision, emulate=choice["emulate"]),
        *_model_problems(cfg, model, converted, tokens, force=cfg.fp8.force or kept),
    ]
    if problems:
        found, hints = zip(*problems, strict=True)
        raise ConfigError(f"fp8: {'; '.join(found)}", "; ".join([*hints, "or set fp8: false"]))
    layers = f"{len(converted)} of {len(fp8.block_linears(model))} linear layers of the blocks"
    how = ["tensorwise", "emulated" * choice["emulate"], layers, "as stored with the run" * kept]
    return choice, ", ".join(filter(None, how))


def _configured(cfg: PretrainConfig) -> dict[str, Any]:
    if cfg.fp8.enabled is not True:
        return {"recipe": "off"}
    return {
        "recipe": "tensorwise",
        "filter_fqns": list(cfg.fp8.filter_fqns),
        "emulate": cfg.fp8.emulate,
    }


def _machine_problems(
    cfg: PretrainConfig, device: torch.device, precision: str, *, emulate: bool
) -> Iterator[tuple[str, str]]:
    """(found, what to do)"""
    if not emulate and (lack := this_machine.lacks_fp8(device)) is not None:
        yield lack, "fp8.emulate: true shows the numbers without the speed"
    if precision != "bf16":
        yield f"what is not in fp8 is computed in {precision}", "set precision: bf16"
    if cfg.distributed.tp_size > 1:
        yield (
            f"distributed.tp_size is {cfg.distributed.tp_size}, and matrices in pieces have no fp8 here",
            "set tp_size to 1 and spread the model by dp or cp",
        )


def _model_problems(
    cfg: PretrainConfig, model: CausalLM, converted: list[str], tokens: int, *, force: bool
) -> Iterator[tuple[str, str]]:
    """(found, what to do)"""
    parameters = sum(count_parameters(model).values())
    if parameters < PAYS_FROM and not force:
        yield (
            f"found {parameters / 1e6:,.0f}M parameters, and it pays from about a billion: "
            "in smaller matrices casting costs more than the products save",
            "fp8.force: true trains in fp8 all the same",
        )
    tokens //= cfg.distributed.cp_size
    if tokens % fp8.MULTIPLE:
        yield (
            f"a rank's micro-batch of {tokens} tokens does not divide by {fp8.MULTIPLE}",
            "choose another local_batch_size or seq_len",
        )
    if not converted:
        yield (
            f"no linear layer in the blocks of this model can be converted (an nn.Linear whose sizes divide by "
            f"{fp8.MULTIPLE}, not named in fp8.filter_fqns)",
            "use build_gpt2_model or a Llama-like model",
        )
