"""Sections of a run as a whole: ranks, checkpoints, evaluation, the console."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, field_validator, model_validator

from automodel_cli.config.schema.base import (
    Amount,
    BatchSize,
    Count,
    Dtype,
    Interval,
    LocalFolder,
    Positive,
    Precision,
    Section,
    TypeName,
    Whole,
    Words,
    ignored,
)
from automodel_cli.config.targets.target import describe_value
from automodel_cli.errors import ConfigError
from automodel_cli.storage.cache.settings import (
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    CacheSettings,
    default_folder,
)
from automodel_cli.storage.urls import is_url, split_url

_HUB_NAME = re.compile(r"(\w([\w.-]*\w)?/)?\w([\w.-]{0,94}\w)?", re.ASCII)


def _checked_hub_name(value: str) -> str:
    if not _HUB_NAME.fullmatch(value) or "--" in value or ".." in value or value.endswith(".git"):
        raise ValueError(f"expected NAME or ACCOUNT/NAME of letters, digits and single . - _, found {value[:120]!r}")
    return value


HubName = Annotated[str, AfterValidator(_checked_hub_name), TypeName("ACCOUNT/NAME or NAME")]
"""A repository of the Hugging Face Hub."""
Branch = Annotated[str, Field(pattern=r"^\w[\w.-]{0,127}$"), TypeName("a branch of letters, digits and . - _")]
License = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$"), TypeName("an identifier of the Hub, such as apache-2.0")
]


class DistEnvConfig(Section):
    """Communication between ranks."""

    known_targets = ("DistEnvConfig", "DistInfo")

    backend: Literal["nccl", "gloo"] | None = None
    """Backend of collectives; null: nccl with GPUs, gloo without. nccl without a GPU becomes gloo, with a warning."""
    timeout_minutes: Positive = 30.0
    """How long a rank waits for the others before it gives up."""


class MixedPrecisionConfig(Section):
    """Types to compute and to reduce in. Parameters are stored in the model's own type, fp32 by default."""

    known_targets = ("MixedPrecisionPolicy",)

    param_dtype: Dtype | None = None
    """Compute in this type; null: as `precision` says."""
    reduce_dtype: Dtype | None = None
    """Sum gradients over ranks in this type; null: fp32."""

    # Keys of older files, without effect.
    output_dtype: Dtype | None = ignored(None, "the loss is always computed in fp32")
    cast_forward_inputs: bool = ignored(True, "token ids are integers, there is nothing to cast")


class OffloadConfig(Section):
    """Keep parameters and optimizer state in CPU memory."""

    known_targets = ("CPUOffloadPolicy",)

    pin_memory: bool = True
    """Use page-locked memory, which copies faster."""


_MEGATRON_FSDP = "it tunes Megatron-FSDP, and sharding here is FSDP2"
_STRATEGIES = {"FSDP2Manager": "fsdp2", "DDPManager": "ddp", "MegatronFSDPManager": "megatron_fsdp",
               "FSDP2Config": "fsdp2", "DDPConfig": "ddp", "MegatronFSDPConfig": "megatron_fsdp"}  # fmt: skip


class DistributedConfig(Section):
    """Parallelism: how a model is divided over ranks. It has no effect with one process."""

    known_targets = tuple(_STRATEGIES)

    strategy: Literal["fsdp2", "ddp", "none", "megatron_fsdp"] = "fsdp2"
    """`fsdp2` shards weights, gradients and optimizer state; `ddp` copies them; `none`: one process."""
    dp_size: Count | None = None
    """Ranks that see different data; null: as many as the other sizes leave."""
    dp_replicate_size: Count | None = None
    """Copies of the sharded model (hybrid sharding); null: one under fsdp2."""
    tp_size: Count = 1
    """Ranks that share each matrix (tensor parallel)."""
    cp_size: Count = 1
    """Ranks that share each sequence (context parallel)."""
    pp_size: Count = 1
    """Ranks that share the layers (pipeline parallel)."""
    ep_size: Count = 1
    """Ranks that share experts (expert parallel)."""
    tp_plan: dict[str, Any] | None = Field(default=None, validation_alias=AliasChoices("tp_plan", "custom_tp_plan"))
    """Tensor-parallel plan to use instead of the model's own."""
    mp_policy: MixedPrecisionConfig | None = None
    """Types to compute and reduce in; null: as `precision` says, gradients summed in fp32."""
    reshard_after_forward: bool | None = None
    """Free gathered weights after the forward pass; null: in every block but the last."""
    offload_policy: OffloadConfig | None = None
    """Keep parameters in CPU memory; null: no."""
    activation_checkpointing: bool | Literal["full", "selective"] = False
    """Recompute activations in the backward pass instead of keeping them; true means full."""
    broadcast_buffers: bool = False
    """ddp: send buffers from rank 0 before every forward pass."""
    find_unused_parameters: bool = False
    """ddp: look for parameters without a gradient."""
    static_graph: bool = False
    """ddp: the graph is the same in every step."""
    bucket_cap_mb: Positive | None = None
    """ddp: size of a gradient bucket; null: torch's default."""
    gradient_as_bucket_view: bool = True
    """ddp: gradients are views of the buckets, which saves a copy."""
    backend: Literal["nccl", "gloo"] | None = None
    """Older place of `dist_env.backend`; used where that one is not given."""
    dtype: Precision | None = None
    """Older place of `precision`; used where that one is `auto`."""
    enable_fsdp2_prefetch: bool = False
    """fsdp2: gather more blocks ahead than torch does by default, at the cost of their memory."""

    # Keys of older files, without effect.
    sequence_parallel: bool = ignored(
        False, "with tp_size above one, everything between the shared matrices is divided along the sequence"
    )
    world_size: Count | None = ignored(None, "the launcher knows how many ranks there are")
    use_hf_tp_plan: bool = ignored(False, "a model brings its own tensor-parallel plan")
    enable_compile: bool = ignored(False, "compile.enabled decides")
    defer_fsdp_grad_sync: bool = ignored(True, "gradients are always summed once per update")
    enable_async_tensor_parallel: bool = ignored(False, "communication follows torch's defaults")
    autocast_dtype: Dtype | None = ignored(None, "precision decides the compute type")
    zero_dp_strategy: Any = ignored(None, _MEGATRON_FSDP)
    grad_reduce_in_fp32: bool | None = ignored(None, "gradients are summed in fp32 unless mp_policy says otherwise")
    overlap_grad_reduce: bool | None = ignored(None, _MEGATRON_FSDP)
    overlap_param_gather: bool | None = ignored(None, _MEGATRON_FSDP)
    check_for_nan_in_grad: bool | None = ignored(None, "gradients are always checked")
    init_fsdp_with_meta_device: bool | None = ignored(None, "models are always built on the meta device")

    @property
    def recompute(self) -> str | None:
        """Activation checkpointing: full, selective, or None."""
        wanted = self.activation_checkpointing
        return ("full" if wanted is True else wanted) or None

    @classmethod
    def from_known_target(cls, class_name: str, data: dict[str, Any]) -> dict[str, Any]:
        """A manager class names the strategy; a `strategy` key beside it must agree."""
        meant = _STRATEGIES[class_name]
        given = data.get("strategy", meant)
        if given != meant:
            raise ValueError(f"_target_ {class_name} means strategy {meant}, but strategy says {given}")
        return {**data, "strategy": meant}

    @field_validator("strategy", mode="before")
    @classmethod
    def _spelling(cls, value: Any) -> Any:
        return {"megatron-fsdp": "megatron_fsdp", "mfsdp": "megatron_fsdp"}.get(str(value), value)

    def collect_notes(self, prefix: str = "") -> list[str]:
        """The section's notes, and that megatron_fsdp runs as fsdp2."""
        notes = super().collect_notes(prefix)
        if self.strategy == "megatron_fsdp":
            notes.insert(0, f"{prefix}strategy megatron_fsdp runs as fsdp2, which shards the same things")
        return notes


class PushToHubConfig(Section):
    """Upload of checkpoints to the Hugging Face Hub while the run goes on. A name is short for `repo_id`."""

    repo_id: HubName
    """Repository, ACCOUNT/NAME; without ACCOUNT: in that of the token. It is made if it is not there."""
    private: bool = True
    """Make the repository private if it is new; one that is there and public is then refused."""
    every: Literal["last", "best", "all"] = "last"
    """Which checkpoints: the `last` one, each new `best` one, or `all`. If uploads are slower than saves, some are left
    out, but never the newest."""
    revision: Branch | None = None
    """Branch to upload to, which is made if it is not there; null: main."""
    license: License | None = None
    """License to name in the model card; null: none is named."""


class DataCacheConfig(Section):
    """Where pieces of token files in object storage (`s3://`, `gs://`, `az://`, `hf://`) are kept on this machine.

    Local files need none. All processes of a machine may share a folder; it can be deleted at any time.
    """

    folder: LocalFolder | None = None
    """Cache folder; null: `automodel/data` in the user's own (`XDG_CACHE_HOME`, else `~/.cache`)."""
    max_bytes: Amount = 32 << 30
    """Maximum size of the pieces; the least recently used ones go first. `500GiB` is understood."""
    chunk_bytes: Annotated[Amount, Field(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)] = 4 << 20
    """Size of a piece."""

    @property
    def settings(self) -> CacheSettings:
        """The same for those who read."""
        folder = default_folder() if self.folder is None else Path(self.folder).expanduser()
        return CacheSettings(folder, self.max_bytes, self.chunk_bytes)


class CheckpointConfig(Section):
    """Checkpoints: what is saved and where, how many are kept, and which one a run continues from."""

    known_targets = ("CheckpointingConfig", "CheckpointConfig")

    enabled: bool = True
    """Save checkpoints. Without them a run cannot be resumed."""
    checkpoint_dir: LocalFolder = "checkpoints/"
    """The run folder: config, metrics and one folder for each saved step. A run found here is resumed."""
    model_save_format: Literal["safetensors", "torch_save"] = "safetensors"
    """`safetensors` is readable everywhere; `torch_save` is torch's distributed format."""
    save_consolidated: Literal[False, "final", "every"] = "final"
    """Also write a Hugging Face folder: `final`: at the end; `every` or true: each time; false: never."""
    is_async: bool = False
    """Write in the background while training goes on."""
    restore_from: str | None = None
    """What to continue from: LATEST, BEST, the name of a step's folder, or a path; null: LATEST, if any."""
    accept_data_change: bool = False
    """Resume with another mixture than the checkpoint's: other weights, a source more or one less."""
    best_metric_key: str = "default"
    """Validation set whose loss decides which checkpoint is BEST; `default (ema)`: that of the averaged weights."""
    keep_last: Count | None = Field(default=None, validation_alias=AliasChoices("keep_last", "max_recent_checkpoints"))
    """Keep the N newest, besides LATEST and BEST; null: all. Old name: `max_recent_checkpoints`."""
    keep_every: Count | None = None
    """Also keep checkpoints whose step is a multiple of this."""
    push_to_hub: PushToHubConfig | None = None
    """Upload checkpoints to the Hugging Face Hub; a name is short for `repo_id`; null: nothing is sent anywhere. The
    token comes from HF_TOKEN or `hf auth login`, never from here."""
    mirror: str | None = None
    """URL (`s3://bucket/run`, `gs://`, `az://`, `file://`) to copy each checkpoint to in the background. A run whose
    folder is empty goes on from there. Credentials come from the environment, never from here; null: no copies."""

    # Keys of older files, without effect.
    consolidation_timeout_minutes: Positive | None = ignored(None, "dist_env.timeout_minutes covers it")
    single_rank_consolidation: bool = ignored(False, "the layout decides who writes what")
    staging_dir: str | None = ignored(None, "files are written beside their final place and renamed")
    v4_compatible: bool = ignored(False, "the export is what transformers 5 and 4 both read")
    allow_legacy_pickle_restore: bool = ignored(False, "no checkpoint file is ever unpickled")

    @field_validator("save_consolidated", mode="before")
    @classmethod
    def _true_is_every(cls, value: Any) -> Any:
        return "every" if value is True else False if value is None else value

    @field_validator("push_to_hub", mode="before")
    @classmethod
    def _name_is_repo_id(cls, value: Any) -> Any:
        if isinstance(value, bool):  # transformers' spelling, with the name under another key
            if value:
                raise ValueError("expected the name of a repository, ACCOUNT/NAME, found true")
            return None
        return {"repo_id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _saves_what_it_uploads(self) -> CheckpointConfig:
        if self.push_to_hub is not None and not self.enabled:
            raise ValueError("push_to_hub uploads checkpoints, and enabled: false makes none; remove one of them")
        if self.mirror is not None and not self.enabled:
            raise ValueError("mirror copies checkpoints, and enabled: false makes none; remove one of them")
        return self

    @field_validator("mirror")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not is_url(value):
            raise ValueError(f"expected a URL such as s3://bucket/run, found {describe_value(value)}")
        try:
            address = split_url(value)
        except ConfigError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None
        if address.scheme == "hf":
            raise ValueError("expected a bucket, found a repository of the Hub; push_to_hub uploads there")
        return str(address)

    @field_validator("restore_from", mode="before")
    @classmethod
    def _lowest_val_is_best(cls, value: Any) -> Any:
        return "BEST" if value == "LOWEST_VAL" else value


class EvaluationConfig(Section):
    """Evaluation during training, besides the training loss: validation loss, tasks, samples."""

    every_steps: Interval = "final"
    """Updates between evaluations; `final`: only at the end; null: never. Each begins with a validation pass."""
    tasks: Words = ()
    """In-context tasks: `core`, `gauntlet` or names."""
    bundle: str = "eval_bundle"
    """Folder with the data of the tasks."""
    max_per_task: Count | None = 100
    """Maximum number of questions per task; null: all."""
    num_fewshot: Whole | None = None
    """Worked examples before each question; null: as published."""
    batch_size: BatchSize = "auto"
    """Sequences scored at once; auto: chosen by their number of tokens."""
    prompts: tuple[str, ...] = ()
    """Prompts to generate samples from."""
    max_new_tokens: Count = 32
    """Tokens per sample, always the most likely one."""


class LoggingConfig(Section):
    """What the console shows of a run."""

    format: Literal["compact", "classic"] = "compact"
    """Line of an update: `compact`, as wide as the terminal; `classic`: NeMo AutoModel's fields, for programs."""
