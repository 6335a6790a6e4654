"""Sections of the training updates: batches, schedules, clipping, compilation, randomness."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from automodel_cli.config.schema.base import (
    Amount,
    Count,
    Interval,
    NotNegative,
    Positive,
    Section,
    TypeName,
    Whole,
    ignored,
    not_a_bool,
)
from automodel_cli.config.targets.target import describe_value

DEFAULT_SEED = 42
DEFAULT_EMA_DECAY = 0.999
HORIZONS = ("max_steps", "max_tokens", "target_flops", "tokens_per_param", "num_epochs", "max_minutes")
"""Keys of step_scheduler that say when a run ends."""

ENDS = ("until", "until_step", "until_tokens")
"""Keys of a stage, one of which says where it ends."""

# Others of inductor name compilers to execute (cpp.cxx), functions to call and folders to load from.
COMPILER_OPTIONS = frozenset({
    "max_autotune", "max_autotune_gemm", "max_autotune_pointwise", "coordinate_descent_tuning", "epilogue_fusion",
    "aggressive_fusion", "group_fusion", "permute_fusion", "shape_padding", "split_reductions", "fallback_random",
    "size_asserts", "nan_asserts", "keep_output_stride", "triton.cudagraphs", "triton.cudagraph_trees",
    "triton.unique_kernel_names", "cpp.threads", "cpp.simdlen",
})  # fmt: skip


class RngConfig(Section):
    """Randomness, all of it derived from the seed and the position: no random state is saved."""

    known_targets = ("StatefulRNG",)

    seed: Whole = DEFAULT_SEED
    """Seed of initial weights, data order and dropout. A top-level `seed:` means the same."""
    ranked: bool = True
    """Dropout differs from rank to rank; false: it is the same on all. Initial weights never depend on ranks."""


class StageEnd(Section):
    """Where a stage of a schedule ends: one of the three."""

    until: Positive | None = None
    """Share of the run's tokens, from 0 to 1."""
    until_step: Count | None = None
    """Update, counted from 1, that is the last of the stage."""
    until_tokens: Amount | None = None
    """Tokens trained on, rounded up to a whole update."""

    def problem(self) -> str | None:
        """What is wrong with it."""
        ends = [name for name in ENDS if getattr(self, name) is not None]
        if len(ends) != 1:
            return f"found {' and '.join(ends) or 'no end'}, expected one of until, until_step, until_tokens"
        if self.until is not None and self.until >= 1:
            return f"until is {self.until:g}, expected a share of the run between 0 and 1"
        return None


class BatchSizeStage(StageEnd):
    """A stage of `batch_size_schedule`."""

    size: Count
    """Sequences an update learns from, over all ranks."""


class SeqLenStage(StageEnd):
    """A stage of `seq_len_schedule`."""

    seq_len: Count
    """Tokens of a row; the data set's `seq_len` is a multiple of it."""


class StepSchedulerConfig(Section):
    """How much data an update takes, how many updates there are, and what happens at which of them."""

    known_targets = ("StepScheduler", "StepSchedulerConfig")

    global_batch_size: Count = 32
    """Sequences an update learns from, over all ranks. A list like `[{until_tokens: 50M, size: 64}, {size: 256}]` is
    short for a `batch_size_schedule` that ends with this number."""
    batch_size_schedule: tuple[BatchSizeStage, ...] = ()
    """Stages with other global batch sizes before that one, each with an end: `until` (share of the run), `until_step`
    or `until_tokens`. For token files."""
    seq_len_schedule: tuple[SeqLenStage, ...] = ()
    """Stages of shorter rows before the data set's `seq_len`, with ends as above: each row is cut into rows of
    `seq_len`, so an update learns from the same tokens. For token files."""
    local_batch_size: Count | Literal["auto"] = 1
    """Sequences a rank puts through the model at once; gradients accumulate up to the global batch. `auto`: as many as
    fit in the device's memory, predicted before training starts."""
    num_epochs: Count | None = None
    """Maximum number of passes over the data; null: as many as are needed, or one where nothing else ends the run."""
    max_steps: Count | None = None
    """Stop after N updates. At most one of this and the next four is set, or `num_epochs`; only `max_steps` and
    `num_epochs` go together, and what comes first counts."""
    max_tokens: Amount | None = None
    """Stop after N tokens, in whole updates."""
    target_flops: Positive | None = None
    """Stop after so many FLOPs of training, by the formula that the start-up table and `automodel plan` show."""
    tokens_per_param: Positive | None = None
    """Stop after so many tokens for each parameter, which are counted as `scaling`: matrices of the blocks and head."""
    max_minutes: Positive | Literal["auto"] | None = None
    """Stop so many minutes after the command was started, the last validation and checkpoint included; `auto`: before
    the Slurm job ends. The schedule then needs a length of its own (`lr_scheduler.lr_decay_steps`)."""
    ckpt_every_steps: Interval = 1000
    """Save a checkpoint every N updates and at the end; `final`: only at the end; null: never."""
    save_checkpoint_every_epoch: bool = False
    """Also save when a pass over the data ends."""
    val_every_steps: Interval = "final"
    """Validate every N updates and at the end; `final`: only at the end; null: never."""
    val_on_start: bool = True
    """Also validate before the first update of a run that begins: the loss of untrained weights. Training is not
    affected."""
    limit_val_batches: Count | None = None
    """Maximum number of batches per validation, from each set; null: the whole set."""
    log_every_steps: Count = 1
    """Print and record a line every N updates."""
    log_remote_every_steps: Count = 1
    """Send a record to W&B every N updates."""
    gc_every_steps: Count | None = 100
    """Run Python's garbage collector every N updates; null: whenever Python decides to."""
    max_skipped_steps: Count | None = 10
    """Stop after N updates in a row were skipped because of a loss that is not finite; null: never."""
    preemption_signal: tuple[str, ...] = ("SIGTERM", "SIGINT", "SIGUSR1")
    """Signals on which a run saves a checkpoint and exits with code 75. A name, a number, a list, or null."""
    loss_average_window_steps: Count | None = None
    """Also show the mean loss of the last N updates, as `loss_avg`; null: not shown."""
    validate_on_checkpoint: bool = True
    """Also validate before a checkpoint is saved, so that the best one is known."""

    # Keys of older files, without effect.
    start_step: Whole = ignored(0, "a resumed run knows its step from the checkpoint")
    start_epoch: Whole = ignored(0, "a resumed run knows its epoch from the checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _list_is_a_schedule(cls, data: Any) -> Any:
        sizes = data.get("global_batch_size") if isinstance(data, Mapping) else None
        if not isinstance(sizes, (list, tuple)):
            return data
        last = sizes[-1] if sizes else None
        if not isinstance(last, Mapping) or set(last) != {"size"}:
            raise ValueError("global_batch_size: the last entry of a list is the size at the end, like {size: 256}")
        if data.get("batch_size_schedule"):
            raise ValueError("global_batch_size is a list and batch_size_schedule is given; keep one of them")
        return {**data, "global_batch_size": last["size"], "batch_size_schedule": sizes[:-1]}

    @model_validator(mode="after")
    def _one_horizon(self) -> StepSchedulerConfig:
        given = [name for name in HORIZONS if getattr(self, name) is not None]
        if len(given) > 1 and set(given) != {"max_steps", "num_epochs"}:
            raise ValueError(f"found {' and '.join(given)}, expected one of them: set the others to null")
        return self

    @model_validator(mode="after")
    def _stages_end(self) -> StepSchedulerConfig:
        for key in ("batch_size_schedule", "seq_len_schedule"):
            for number, stage in enumerate(getattr(self, key)):
                if problem := stage.problem():
                    raise ValueError(f"{key}[{number}]: {problem}")
        return self

    @property
    def global_batch_sizes(self) -> list[int]:
        """Those of all stages, in order."""
        return [*(stage.size for stage in self.batch_size_schedule), self.global_batch_size]

    @property
    def local_rows(self) -> int:
        """``local_batch_size`` as a number; `auto` has been settled by then."""
        assert self.local_batch_size != "auto", "local_batch_size is settled before anybody asks for it"
        return self.local_batch_size

    @field_validator("preemption_signal", mode="before")
    @classmethod
    def _signal_names(cls, value: Any) -> Any:
        items = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return tuple(_signal_name(item) for item in items)


class LrSchedulerConfig(Section):
    """Learning rate and weight decay as functions of the update. Absent: both stay constant."""

    known_targets = ("OptimizerParamScheduler", "LRSchedulerConfig", "OptimizerParamSchedulerConfig")

    lr_decay_style: Literal["cosine", "linear", "constant", "inverse-square-root", "WSD"] = "cosine"
    """Shape after the warm-up. WSD is warm-up, stable, decay."""
    lr_warmup_steps: Whole | None = None
    """Updates from `init_lr` up to `max_lr`, linear; null: min(1000, a tenth of the run)."""
    lr_decay_steps: Count | None = None
    """Update at which `min_lr` is reached; it stays from then on; null: the end of the run."""
    init_lr: NotNegative | None = None
    """Learning rate of the first update; null: a tenth of the optimizer's `lr`."""
    max_lr: Positive | None = None
    """Highest learning rate; null: the optimizer's `lr`."""
    min_lr: NotNegative | None = None
    """Lowest learning rate; null: a hundredth of the optimizer's `lr`."""
    start_wd: NotNegative | None = None
    """Weight decay of the first update; null: the optimizer's `weight_decay`."""
    end_wd: NotNegative | None = None
    """Weight decay at the end; null: the optimizer's `weight_decay`."""
    wd_incr_steps: Count | None = None
    """Updates from `start_wd` to `end_wd`; null: the whole run."""
    wd_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    """Shape from `start_wd` to `end_wd`."""
    wsd_decay_steps: Count | None = None
    """Length of the decay of WSD, ending at `lr_decay_steps`; needed with WSD."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] | None = None
    """Shape of the decay of WSD; needed with WSD."""

    # Keys of older files, without effect.
    use_checkpoint_opt_param_scheduler: bool = ignored(
        False, "on resume the file's schedule is used, and what changed is printed"
    )
    override_opt_param_scheduler: bool = ignored(
        True, "on resume the file's schedule is used, and what changed is printed"
    )

    @field_validator("lr_decay_style", mode="before")
    @classmethod
    def _spelling(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        folded = value.lower().replace("_", "-")
        return {"wsd": "WSD", "inverse-sqrt": "inverse-square-root"}.get(folded, folded)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> LrSchedulerConfig:
        if self.lr_decay_style == "WSD" and self.wsd_decay_steps is None:
            raise ValueError("lr_decay_style WSD needs wsd_decay_steps (and may have lr_wsd_decay_style)")
        if self.min_lr is not None and self.max_lr is not None and self.min_lr > self.max_lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above max_lr {self.max_lr:g}")
        return self


class ClipGradNormConfig(Section):
    """Gradient clipping. A number (`clip_grad_norm: 1.0`) is short for `max_norm`."""

    max_norm: Positive | None = 1.0
    """Scale gradients down to this norm, taken over all parameters and ranks; null: off."""


class EmaConfig(Section):
    """An average of the weights, kept beside them in fp32. A number (`ema: 0.999`) is short for `decay`."""

    decay: Annotated[float, not_a_bool, Field(gt=0, lt=1), TypeName("a number between 0 and 1")] | None = None
    """Exponential average of about the last 1 / (1 - decay) updates; null: 0.999, or a mean where `tail_steps` is
    set."""
    tail_steps: Count | None = None
    """Mean of the weights after each of the last N updates of the run; null: an exponential average."""
    every: Count = 1
    """Take in the weights only after every N-th update; `decay` and `1 / (1 - decay)` then count those."""

    @model_validator(mode="after")
    def _one_rule(self) -> EmaConfig:
        if self.decay is not None and self.tail_steps is not None:
            raise ValueError(f"found decay {self.decay:g} and tail_steps {self.tail_steps}, expected one of them")
        if self.tail_steps is not None and self.tail_steps % self.every:
            raise ValueError(f"tail_steps {self.tail_steps} is no multiple of every {self.every}")
        return self


class SpikesConfig(Section):
    """Finite spikes: updates whose loss or gradient norm is far above those before (`docs/guides/loss_spikes.md`)."""

    action: Literal["note", "skip", "rewind"] = "note"
    """`note`: log the update, with the windows, sources and documents it was made of. `skip`: also leave the weights as
    they were. `rewind`: go back to the last checkpoint before it, and go around its samples."""
    window: Annotated[int, not_a_bool, Field(ge=48, le=10_000), TypeName("a whole number from 48 to 10000")] = 128
    """Accepted updates that a new one is compared with; the first 48 of a run are not judged."""
    threshold: Positive = 7.0
    """How far above their median is a spike, in standard deviations (robust ones: 1.4826 times the median absolute
    deviation) of the loss, or of the logarithm of the gradient norm."""
    max_in_a_row: Count = 10
    """After so many spikes in a row the new level counts as usual, and the comparison begins anew."""
    max_rewinds: Count = 5
    """Go back to one checkpoint so often at most; further spikes before the next checkpoint are only noted."""
    rewind_margin: Whole = 0
    """Updates before and after the spike whose samples are gone around too."""
    skip_samples: tuple[tuple[Whole, Whole], ...] = ()
    """Samples never to be trained on, as [first, end] pairs that an event of an earlier run names (end: one past the
    last); empty: none."""

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> SpikesConfig:
        for first, end in self.skip_samples:
            if not first < end <= 2**53:
                raise ValueError(f"skip_samples has [{first}, {end}], expected a first sample and a later end")
        return self


class ParamGroupOverride(Section):
    """Another learning rate or weight decay for the parameters whose name a pattern matches."""

    pattern: str
    """Regular expression, searched for in the parameter's name."""
    lr_mult: NotNegative = 1.0
    """Factor on the learning rate."""
    wd_mult: NotNegative = 1.0
    """Factor on the weight decay."""

    @field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from None
        return pattern


class CompileConfig(Section):
    """torch.compile. A scalar (`compile: false`) is short for `enabled`."""

    known_targets = ("CompileConfig",)

    enabled: bool | Literal["auto"] = "auto"
    """true, false, or `auto`: compile if the run is long enough for it to pay off."""
    scope: Literal["auto", "model", "blocks"] = "auto"
    """Compile the whole `model`, or its `blocks` one by one, identical ones only once; auto: blocks if there are
    many."""
    shared_cache: bool = True
    """Keep compiled code for all runs of this user in ~/.cache/automodel; false: where torch keeps it. For another
    folder set the variable TORCHINDUCTOR_CACHE_DIR; a file cannot name one, because code is loaded from it."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """torch.compile's mode: default, reduce-overhead, max-autotune; null: default."""
    fullgraph: bool = False
    """Fail instead of falling back if a part of the model cannot be compiled."""
    dynamic: bool | None = False
    """Allow shapes to change without compiling again."""
    backend: str | None = None
    """Compiler to use; null: inductor."""
    options: dict[str, bool | int] | None = None
    """Options for the compiler: switches and numbers of inductor, except those that name a program or a file."""
    dynamo_cache_size_limit: Count | None = None
    """Maximum number of compiled versions of one function; null: torch's default."""

    @field_validator("options")
    @classmethod
    def _harmless(cls, value: dict[str, bool | int] | None) -> dict[str, bool | int] | None:
        for name in value or {}:
            if name not in COMPILER_OPTIONS:
                raise ValueError(f"{name} is none of {', '.join(sorted(COMPILER_OPTIONS))}")
        return value


class Fp8Config(Section):
    """Matrix products of the blocks in 8-bit floating point. A scalar (`fp8: true`) is short for `enabled`."""

    known_targets = ("FP8Config",)

    enabled: bool | Literal["auto"] = "auto"
    """true, false, or `auto`: as the run that is resumed, else false. Needs `precision` bf16."""
    force: bool = False
    """Use fp8 even below a billion parameters, where casting costs more than the faster products save."""
    recipe_name: str | None = None
    """`tensorwise` (also null): one scale per tensor. There is no other recipe."""
    filter_fqns: tuple[str, ...] = ()
    """Skip linear layers whose name contains one of these, or matches it if it has a `*`."""
    emulate: bool = False
    """Round as fp8 does but multiply as usual, to see the numbers on a device without fp8. Not faster."""

    # Keys of older files, without effect.
    enable_fsdp_float8_all_gather: bool = ignored(False, "weights are gathered in bf16")
    precompute_float8_dynamic_scale_for_fsdp: bool = ignored(False, "each rank computes the scale of a gathered weight")
    force_recompute_fp8_weight_in_bwd: bool = ignored(True, "weights are always cast again in the backward pass")

    @field_validator("recipe_name")
    @classmethod
    def _only_tensorwise(cls, value: str | None) -> str | None:
        if value not in (None, "tensorwise"):
            raise ValueError(f"expected tensorwise or null, found {describe_value(value)}")
        return value

    @field_validator("filter_fqns", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        return () if value is None else value


class PackedSequenceConfig(Section):
    """Packing of rows of different lengths from datasets of your own; token files are read in full windows anyway."""

    known_targets = ("PackedSequenceConfig",)

    packed_sequence_size: Whole = 0
    """Tokens per pack; 0: rows are padded to the longest of their batch. Rows are packed by best fit, are split only if
    `split_across_pack` is true, and do not see each other. Batch sizes then count packs."""
    drop_long_samples: bool = True
    """Skip rows longer than a pack, and count them; false: such a row is an error."""
    split_across_pack: bool = False
    """Split rows longer than a pack into pack-sized pieces instead of skipping them."""

    # Keys of older files, without effect.
    packing_strategy: str | None = ignored(None, "rows are packed by best fit")
    num_proc: Count | None = ignored(None, "dataloader.num_workers processes read the rows")
    max_packs: Count | None = ignored(None, "step_scheduler.max_steps bounds a run")
    prepacked: bool = ignored(False, "rows that bring segment_ids are used as they are")

    @model_validator(mode="after")
    def _refuse_other_packing(self) -> PackedSequenceConfig:
        if self.packed_sequence_size and self.max_packs is not None:
            raise ValueError("max_packs does not go with packed_sequence_size: set step_scheduler.max_steps instead")
        if self.packed_sequence_size and self.prepacked:
            raise ValueError("prepacked: true means rows that are packed already: set packed_sequence_size to 0")
        return self

    @property
    def long_rows(self) -> Literal["drop", "split", "refuse"]:
        """What becomes of rows longer than a pack."""
        if self.split_across_pack:
            return "split"
        return "drop" if self.drop_long_samples else "refuse"


def _signal_name(value: Any) -> str:
    """``15``, ``TERM``, ``sigterm`` and ``SIGTERM`` are one signal: ``SIGTERM``."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return signal.Signals(value).name
        except ValueError:
            raise ValueError(f"there is no signal number {value}") from None
    name = str(value).upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in signal.Signals.__members__:
        raise ValueError(f"there is no signal {value}; usual ones are SIGTERM and SIGUSR1")
    if name in ("SIGKILL", "SIGSTOP"):
        raise ValueError(f"{name} cannot be caught by a process")
    return name
