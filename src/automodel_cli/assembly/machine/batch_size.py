"""``step_scheduler.local_batch_size: auto``: the largest micro-batch that fits, chosen once and kept with the run.

Gradients are sums over the global batch, so the choice alters time and memory, and numbers only in their last bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.assembly.facts import Facts
from automodel_cli.assembly.machine import memory as memory_assembly
from automodel_cli.assembly.machine.fast_path import Choices, StepPath
from automodel_cli.assembly.machine.memory import DeviceMemory
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM
from automodel_cli.sizing.memory import PeakMemory
from automodel_cli.text import binary_size

SHARE = 0.9
"""Part of the free memory that is planned with: the prediction may be off, and allocators leave gaps."""

_MOST_TOKENS = {"cpu": 16_384, "cuda": 131_072}
"""Tokens of a micro-batch beyond which nothing gets faster."""


@dataclass(frozen=True)
class LocalBatch:
    """Rows of a micro-batch, and why; "" for as configured."""

    rows: int
    reason: str


def settled(cfg: PretrainConfig, chosen: LocalBatch) -> PretrainConfig:
    """``cfg`` with the number in the place of ``auto``."""
    scheduler = cfg.step_scheduler.model_copy(update={"local_batch_size": chosen.rows})
    return cfg.model_copy(update={"step_scheduler": scheduler})


def choose(
    cfg: PretrainConfig,
    model: CausalLM,
    world: World,
    memory: DeviceMemory | None,
    *,
    seq_len: int,
    stored: Facts,
) -> LocalBatch:
    """The local batch size: as configured; for ``auto`` as ``stored`` with the run, else the largest that fits.

    Every rank calls it and gets the same answer.

    Args:
        stored: of the checkpoint that the run continues from; empty for a run that begins.

    Raises:
        ConfigError: nothing fits, or that cannot be told.
    """
    scheduler = cfg.step_scheduler
    if scheduler.local_batch_size != "auto":
        return LocalBatch(scheduler.local_batch_size, "")
    size = math.gcd(*scheduler.global_batch_sizes)
    if size % world.dp_world:
        raise ConfigError(
            f"step_scheduler.global_batch_size {size} is not a multiple of "
            f"{world.dp_world} data-parallel ranks, so no local_batch_size fits",
            "change it, or the number of ranks",
        )
    share = size // world.dp_world
    kept = (stored.batch or {}).get("local")
    if isinstance(kept, int) and kept > 0 and share % kept == 0:
        return LocalBatch(kept, "auto: as stored with the run")
    if memory is None:
        raise ConfigError(
            f"step_scheduler.local_batch_size auto: the memory of {world.device} is not known",
            "give a number",
        )
    own = _largest(cfg, model, world, memory, seq_len=seq_len, share=share, stored=stored.fast_path or {})
    return min((LocalBatch(*one) for one in world.gather([own.rows, own.reason])), key=lambda one: one.rows)


def _largest(
    cfg: PretrainConfig,
    model: CausalLM,
    world: World,
    memory: DeviceMemory,
    *,
    seq_len: int,
    share: int,
    stored: Mapping[str, Any],
) -> LocalBatch:
    """The largest divisor of ``share`` that fits this rank's device, and no more tokens than help."""
    limit = _MOST_TOKENS.get(world.device.type, _MOST_TOKENS["cuda"])
    sizes = [rows for rows in range(share, 0, -1) if share % rows == 0]
    useful = [rows for rows in sizes if rows * seq_len <= limit] or [1]
    for rows in useful:
        choices = Choices(cfg, model, world.device, rows=rows, seq_len=seq_len, stored=stored, processes=world.size)
        peak = _predicted(choices, world, memory)
        if memory.fits(peak, SHARE):
            needs = f"needs about {binary_size(peak.total)}"
            return LocalBatch(rows, f"auto: {needs}, {_bound(rows, useful, sizes, limit)}")
    raise ConfigError(
        f"step_scheduler.local_batch_size auto: even 1 sequence of {seq_len:,} tokens needs about "
        f"{binary_size(peak.total)}, and {SHARE:.0%} of the free memory here is "
        f"{binary_size(SHARE * memory.free + memory.resident)}",
        "set distributed.activation_checkpointing: full, a shorter seq_len, or take more ranks (fsdp2 divides weights)",
    )


def _bound(rows: int, useful: list[int], sizes: list[int], limit: int) -> str:
    """What kept it from being larger."""
    if rows != useful[0]:
        return "the next larger does not fit"
    if rows != sizes[0]:
        return f"more than {limit:,} tokens at once would not be faster"
    return "all that a rank has of the global batch"


def _predicted(choices: Choices, world: World, memory: DeviceMemory) -> PeakMemory:
    """The peak on the path the run will take; where compiling is still open, whichever needs more."""
    cfg, model = choices.cfg, choices.model
    compiled = cfg.compile.enabled
    if compiled == "auto":
        compiled = choices.stored.get("compile", "auto")
    step = choices.of_step()
    found = [
        memory_assembly.predict(
            cfg,
            model,
            world,
            StepPath(**step, compile=is_compiled),
            seq_len=choices.seq_len,
            local_batch_size=choices.rows,
            resident=memory.resident,
        )
        for is_compiled in ([True, False] if compiled == "auto" else [bool(compiled)])
    ]
    peaks = [peak for peak in found if peak is not None]
    if not peaks:
        raise ConfigError(
            f"step_scheduler.local_batch_size auto: what {type(model).__name__} needs of memory is not known",
            "give a number",
        )
    return max(peaks, key=lambda peak: peak.total)
