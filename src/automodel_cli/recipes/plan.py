"""What a run would take, from its configuration alone: parameters, FLOPs, tokens, updates, memory, time. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from automodel_cli import device as this_machine
from automodel_cli.assembly.token_counts import TokenCounts, count_tokens, passes_by_source
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.config.horizon import Horizon, batches_of, configured_seq_len, horizon_of, row_lengths_of
from automodel_cli.config.schema.options import PlanOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets import aliases
from automodel_cli.config.targets.own_models import SizedModel, own_model
from automodel_cli.config.targets.target import Target
from automodel_cli.data.sampler import grad_accum_steps
from automodel_cli.errors import ConfigError
from automodel_cli.sizing.memory import StepPlan, moments_of, muon_bytes_of, peak_memory
from automodel_cli.sizing.shape import ParamCounts, flops_per_token
from automodel_cli.text import plural

CARDS_GIB = (8, 12, 24, 80)
_SHARE = 0.9  # of a card's memory that is planned with, as local_batch_size: auto does
_MOST_TOKENS = 131_072  # of a micro-batch: beyond that nothing gets faster
_CHUNK_TOKENS = 2048  # of the loss, near enough
FEW_EPOCHS = 4
"""Up to so many passes are nearly as good as new data (Muennighoff et al. 2023, arXiv 2305.16264)."""


@dataclass(frozen=True)
class Fit:
    """A card, the largest micro-batch that fits there (0: none does), and the highest memory of a step with it."""

    card_gib: int
    local_batch_size: int
    micro_batches: int  # of an update, on each GPU
    peak_gib: float


@dataclass(frozen=True)
class Time:
    """How long training takes at a share of a GPU's peak."""

    gpu: str
    num_gpus: int
    mfu: float
    tokens_per_s: float
    hours: float
    gpu_hours: float
    cost: float | None  # at a price of a GPU hour


@dataclass(frozen=True)
class RunEstimate:
    """What a run would take; ``data_tokens`` None: the files are not there (``missing`` says why)."""

    family: str
    params: ParamCounts
    params_by_role: dict[str, int]
    seq_len: int
    flops_per_token: int
    global_batch_size: int
    tokens_per_update: int
    steps: int
    tokens: int
    horizon: str
    flops: float
    tokens_per_param: float
    data_tokens: int | None
    epochs: float | None
    source_passes: dict[str, float]  # how often each source of a mixture is read
    missing: str
    memory: tuple[Fit, ...]
    time: Time | None
    derived: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @property
    def warnings(self) -> list[str]:
        """What a reader should not miss."""
        found = []
        if self.epochs is not None and self.epochs > 1:
            found.append(
                f"the data repeat: {self.tokens:,} tokens are needed and {self.data_tokens:,} are there "
                f"({count(self.epochs)} passes){_too_often(self.epochs)}"
            )
        repeated = {name: passes for name, passes in self.source_passes.items() if passes > 1}
        if repeated:
            words = ", ".join(f"{name} {count(passes)} passes" for name, passes in repeated.items())
            found.append(f"sources repeat, by their weights: {words}{_too_often(max(repeated.values()))}")
        return found


def _too_often(passes: float) -> str:
    return f"; beyond {FEW_EPOCHS} passes repeated tokens teach little" if passes > FEW_EPOCHS else ""


def count(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def run(cfg: PretrainConfig, options: PlanOptions) -> RunEstimate:
    """Work it out.

    Raises:
        ConfigError: a budget of no update, or a model or data set of which too little is known.
    """
    model, seq_len = own_model(cfg.model), configured_seq_len(cfg)
    flops = None if model is None or seq_len is None else flops_per_token(model.shape(), seq_len)
    if model is None or seq_len is None or flops is None:
        what = "rows of this data set" if seq_len is None else cfg.model.name
        raise ConfigError(
            f"the size of {what} is not known before it is built",
            "use automodel pretrain llm --dry-run",
        )
    sizes = batches_of(cfg)
    _check_micro_batches(cfg, options.num_gpus)
    row_lengths_of(cfg, seq_len)  # which refuses what means nothing
    rows = sizes.last
    data = count_tokens(cfg, seq_len)
    horizon = horizon_of(cfg)
    if horizon.timed:
        steps, why = _timed_steps(options, horizon, flops * seq_len, sizes), horizon.reason
    else:
        steps, why = _steps(cfg, horizon, data, sizes)
    tokens = sizes.samples(steps) * seq_len
    return RunEstimate(
        family=model.family,
        params=model.counts(),
        params_by_role={role: number for role, number in model.parameters().items() if number},
        seq_len=seq_len,
        flops_per_token=flops,
        global_batch_size=rows,
        tokens_per_update=rows * seq_len,
        steps=steps,
        tokens=tokens,
        horizon=why,
        flops=float(flops) * tokens,
        tokens_per_param=tokens / model.counts().scaling,
        data_tokens=data.tokens,
        epochs=tokens / data.tokens if data.tokens else None,
        source_passes=passes_by_source(cfg, data, steps, sizes),
        missing=data.missing,
        memory=tuple(_fit(cfg, model, seq_len, options.num_gpus, card) for card in CARDS_GIB),
        time=_time(options, flops, tokens),
        derived=cfg.derived,
    )


def _check_micro_batches(cfg: PretrainConfig, num_gpus: int) -> None:
    """See that an update comes out even on so many GPUs, as the run will.

    Raises:
        ConfigError: it does not.
    """
    section, scheduler = cfg.distributed, cfg.step_scheduler
    ranks = max(1, num_gpus // (section.tp_size * section.cp_size * section.pp_size))
    rows = 1 if scheduler.local_batch_size == "auto" else scheduler.local_batch_size
    for size in scheduler.global_batch_sizes:
        grad_accum_steps(size, rows, ranks)


def _timed_steps(options: PlanOptions, horizon: Horizon, flops_per_sample: int, sizes: BatchSizes) -> int:
    """Updates that a GPU does in the time there is."""
    if horizon.seconds is None or options.gpu is None:
        raise ConfigError(
            f"step_scheduler.{horizon.reason} says no number of updates",
            "give minutes and --gpu NAME for an estimate, or another horizon",
        )
    steps = sizes.updates(int(horizon.seconds * _flops_per_s(options) // flops_per_sample))
    if not steps:
        each = sizes.at(0) * flops_per_sample / _flops_per_s(options)
        raise ConfigError(
            f"step_scheduler.{horizon.reason} is less than one update takes, about {each:.3g} s",
            "raise it, or lower step_scheduler.global_batch_size",
        )
    return steps


def _steps(cfg: PretrainConfig, horizon: Horizon, data: TokenCounts, sizes: BatchSizes) -> tuple[int, str]:
    """Updates, and why so many."""
    epochs = cfg.step_scheduler.num_epochs
    of_data = None if data.samples is None else sizes.updates((epochs or 1) * data.samples)
    if horizon.steps is not None and (epochs is None or of_data is None or horizon.steps <= of_data):
        return horizon.steps, horizon.reason
    if of_data is None:
        raise ConfigError(
            f"how long the run is depends on the data: {data.missing}",
            "set step_scheduler.target_flops, tokens_per_param, max_tokens or max_steps, or make the data",
        )
    if of_data < 1:
        raise ConfigError(
            f"the training data hold {data.samples:,} samples, less than one update of {sizes.at(0):,}",
            "lower step_scheduler.global_batch_size, or add data",
        )
    return of_data, plural(epochs or 1, "epoch")


def _fit(cfg: PretrainConfig, model: SizedModel, seq_len: int, num_gpus: int, card_gib: int) -> Fit:
    """The configured micro-batch on a card, for `auto` the largest that fits."""
    wanted, share = cfg.step_scheduler.local_batch_size, cfg.step_scheduler.global_batch_size // num_gpus
    every = math.gcd(*cfg.step_scheduler.global_batch_sizes) // num_gpus
    sizes = [wanted] if wanted != "auto" else _halves(every, _MOST_TOKENS // seq_len)
    peaks = {rows: _peak_gib(cfg, model, seq_len, rows, num_gpus) for rows in sizes}
    rows = next((rows for rows in sizes if peaks[rows] <= _SHARE * card_gib), 0)
    return Fit(card_gib, rows, -(-share // rows) if rows else 0, peaks[rows or sizes[-1]])


def _halves(rows: int, most: int) -> list[int]:
    """Divisors of ``rows``, the largest up to ``most`` first."""
    found = [size for size in range(min(rows, max(1, most)), 0, -1) if rows % size == 0]
    return found or [1]


def _peak_gib(cfg: PretrainConfig, model: SizedModel, seq_len: int, rows: int, num_gpus: int) -> float:
    """Highest memory of a compiled step in bf16 on a GPU."""
    section, optimizer = cfg.distributed, cfg.optimizer or Target("AdamW")
    name = aliases.present_name(optimizer.name).rpartition(".")[2]
    orthogonalized = optimizer.arguments.get("orthogonalization_dtype", "auto") if name == "muon_adamw" else "none"
    strategy = ("ddp" if section.strategy == "ddp" else "fsdp2") if num_gpus > 1 else None
    plan = StepPlan(
        seq_len=seq_len,
        local_batch_size=rows,
        residual_bytes=2,
        compiled=True,
        whole=num_gpus == 1,
        head_loss="chunked",
        chunk_tokens=_CHUNK_TOKENS,
        recompute=section.recompute,
        moments=moments_of(name, optimizer.arguments),
        muon_bytes=muon_bytes_of(orthogonalized),
        ranks=num_gpus,
        accumulates=max(cfg.step_scheduler.global_batch_sizes) > rows * num_gpus,
        strategy=strategy,
        shards=num_gpus,
        validates=bool(cfg.validation_datasets),
        averages=cfg.ema is not None,
    )
    peak = peak_memory(model.shape(), plan)
    return (peak.total if peak else 0) / 2**30


def _time(options: PlanOptions, flops: int, tokens: int) -> Time | None:
    if options.gpu is None:
        return None
    speed = _flops_per_s(options) / flops
    hours = tokens / speed / 3600
    gpu_hours = hours * options.num_gpus
    cost = None if options.price is None else gpu_hours * options.price
    return Time(options.gpu, options.num_gpus, options.mfu, speed, hours, gpu_hours, cost)


def _flops_per_s(options: PlanOptions) -> float:
    """Training FLOP/s of all GPUs."""
    assert options.gpu is not None
    peak = this_machine.peak_flops_by_name(options.gpu, "bf16")
    if peak is None:
        raise ConfigError(
            f"the peak of {options.gpu!r} in bf16 is not known",
            f"give one of {', '.join(this_machine.known_devices())}",
        )
    return peak * options.mfu * options.num_gpus
