"""Settings of `automodel pretrain llm`: closed sections as typed fields, open sections as Targets.

Section and key names are those that users' files already have. Off is ``null``, "only at the end" is
``final``. The docstring under a field is its help, and `docs/config.md` is made from these files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, field_validator, model_validator

from automodel_cli.config.schema.base import Device, Precision, Section, Whole, ignored
from automodel_cli.config.schema.domain_mixture import DomainMixtureConfig, held_out
from automodel_cli.config.schema.other_sections import (
    MfuConfig,
    MoeMetricsConfig,
    PrewarmConfig,
    without_switched_off,
)
from automodel_cli.config.schema.run_sections import (
    CheckpointConfig,
    DataCacheConfig,
    DistEnvConfig,
    DistributedConfig,
    EvaluationConfig,
    LoggingConfig,
)
from automodel_cli.config.schema.trackers import (
    TRACKERS,
    CometConfig,
    MlflowConfig,
    TensorboardConfig,
    TrackerSection,
    TrackioConfig,
    WandbConfig,
)
from automodel_cli.config.schema.training_sections import (
    ClipGradNormConfig,
    CompileConfig,
    EmaConfig,
    Fp8Config,
    LrSchedulerConfig,
    PackedSequenceConfig,
    ParamGroupOverride,
    RngConfig,
    SpikesConfig,
    StepSchedulerConfig,
)
from automodel_cli.config.targets.allowlist import translate
from automodel_cli.config.targets.roles import ROLES, role_of_section
from automodel_cli.config.targets.target import TARGET_KEY, Target, describe_value
from automodel_cli.dtypes import short_name

NAMED_VALIDATION_KEY = "validation_dataset_*"  # nobody writes this key: it gathers validation_dataset_<name>
_NAMED_VALIDATION_PREFIX = "validation_dataset_"
_NANOGPT_STARTS = {
    "resume": "leave it out: a run found in checkpoint.checkpoint_dir resumes by itself",
    "scratch": "leave it out: weights are random unless it names some",
}
_RECIPES = ("TrainFinetuneRecipeForNextTokenPrediction", "PretrainRecipe", "pretrain")


def _with_default(role: str, value: Any) -> Target:
    return Target.parse(value, default_name=ROLES[role].default_target)


OpenSection = Annotated[InstanceOf[Target], BeforeValidator(Target.parse)]
OptimizerSection = Annotated[InstanceOf[Target], BeforeValidator(partial(_with_default, "optimizer"))]
LossSection = Annotated[InstanceOf[Target], BeforeValidator(partial(_with_default, "loss_fn"))]
DataloaderSection = Annotated[InstanceOf[Target], BeforeValidator(partial(_with_default, "dataloader"))]


def _name_or_target(value: Any) -> Any:
    return Target.parse(value) if isinstance(value, Mapping) else value


class PretrainConfig(Section):
    """Everything `automodel pretrain llm` reads. Only `model` and `dataset` have to be there."""

    recipe: str | None = None
    """Name of the recipe, in files that give one; next-token pretraining is the only one."""
    seed: Whole | None = None
    """Short for `rng.seed`."""
    precision: Precision = "auto"
    """Compute in bf16, fp16 or fp32; auto: bf16 where the hardware has it. Weights are stored in fp32."""
    residual_precision: Annotated[Literal["auto", "bf16", "fp32"], BeforeValidator(short_name)] = "auto"
    """Type of the residual stream when matrix products are in bf16; auto: bf16 on CUDA, fp32 on a CPU."""
    device: Device = "auto"
    """Where to train: auto, cpu, cuda, mps."""
    stage: Literal["pretraining", "mid-training"] | None = None
    """What the run is, stored in its checkpoints: after mid-training a model is talked to in turns; null: mid-training
    where the data are conversations."""
    init_from: str | None = None
    """Weights to start from (checkpoint, Hugging Face folder, GPT-2 name), with a new optimizer and step 0."""
    init_from_any_function: bool = False
    """Use those weights even if they were trained with other heads, another activation, rotary base or norm."""
    model: OpenSection
    """What to train: `_target_` and the arguments of a model builder."""
    tokenizer: Annotated[InstanceOf[Target] | str | None, BeforeValidator(_name_or_target)] = None
    """Tokenizer of the data: a name, a folder or a `_target_`; null: the one the data came with."""
    dataset: OpenSection
    """What to train on: `_target_` and the arguments of a dataset."""
    validation_dataset: OpenSection | None = None
    """What to validate on; its results are called `default`. More sets: `validation_dataset_<name>`."""
    named_validation_datasets: dict[str, OpenSection] = Field(
        default_factory=dict, validation_alias=NAMED_VALIDATION_KEY
    )
    """Further validation sets, each written as a section `validation_dataset_<name>`."""
    validation_sources: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Short for such sections: held-out files by source of the `Mixture` in `dataset`, read as that source is. With the
    source's own `paths`: their validation split."""
    domain_mixture: DomainMixtureConfig | None = None
    """Megatron files sampled by one set of weights and trained for another."""
    dataloader: DataloaderSection | None = None
    """Data loading for datasets of your own: workers, pinning, `collate_fn`. Token files do not need it."""
    validation_dataloader: DataloaderSection | None = None
    """The same for validation."""
    data_cache: DataCacheConfig = Field(default_factory=DataCacheConfig)
    """What is kept of token files in object storage."""
    loss_fn: LossSection | None = None
    """Loss; without `_target_` masked cross-entropy, in chunks where that is faster (timed on a CPU) or saves a lot of
    memory (GPU). `z_loss_weight`: 1e-4 keeps logits small."""
    optimizer: OptimizerSection | None = None
    """Optimizer; without `_target_` AdamW. null: AdamW, lr 2e-4, betas [0.9, 0.95], weight decay 0.1."""
    param_group_overrides: tuple[ParamGroupOverride, ...] = ()
    """Exceptions to the optimizer's learning rate and weight decay, by parameter name."""
    clip_grad_norm: ClipGradNormConfig = Field(default_factory=ClipGradNormConfig)
    """Gradient clipping; a number is short for `max_norm`, null turns it off."""
    ema: EmaConfig | None = None
    """An average of the weights, validated and saved beside them; a number is short for `decay`; null: none."""
    lr_scheduler: LrSchedulerConfig | None = None
    """Schedule of learning rate and weight decay; null: constant."""
    step_scheduler: StepSchedulerConfig = Field(default_factory=StepSchedulerConfig)
    """Batch sizes, length of the run, and what happens when."""
    spikes: SpikesConfig | None = None
    """What happens at updates whose loss or gradient norm jumps; null: nothing, they are not looked for."""
    rng: RngConfig = Field(default_factory=RngConfig)
    """Randomness."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Checkpoints and the run folder."""
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    """Parallelism: how the model is divided over ranks."""
    dist_env: DistEnvConfig = Field(default_factory=DistEnvConfig)
    """Communication between ranks."""
    compile: CompileConfig = Field(default_factory=CompileConfig)
    """torch.compile; true, false or auto is short for `enabled`."""
    fp8: Fp8Config = Field(default_factory=Fp8Config)
    """Matrix products in 8-bit floating point, for large models; true or false is short for `enabled`."""
    packed_sequence: PackedSequenceConfig = Field(default_factory=PackedSequenceConfig)
    """Packing of rows of different lengths."""
    evaluation: EvaluationConfig | None = None
    """Tasks and samples during training; null: none."""
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """What the console shows."""
    wandb: WandbConfig | None = None
    """Weights & Biases; null: not used."""
    tensorboard: TensorboardConfig | None = None
    """TensorBoard; null: not used."""
    mlflow: MlflowConfig | None = None
    """MLflow; null: not used."""
    comet: CometConfig | None = None
    """Comet; null: not used."""
    trackio: TrackioConfig | None = None
    """Trackio; null: not used."""
    mfu: MfuConfig | None = None
    """What model FLOPs utilization is measured against; null: the device's own peak."""
    prewarm: PrewarmConfig | None = None
    """Ignored: warm-up before the first update."""
    moe_metrics: MoeMetricsConfig | None = None
    """Ignored: load of experts in the log."""

    # Keys of older files, without effect.
    nvtx: bool = ignored(False, "--profile N shows where the time of a run goes")

    @model_validator(mode="before")
    @classmethod
    def _switched_off_elsewhere(cls, data: Any) -> Any:
        return without_switched_off(data) if isinstance(data, Mapping) else data

    @model_validator(mode="before")
    @classmethod
    def _gather_named_validation_sets(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        named = {
            key.removeprefix(_NAMED_VALIDATION_PREFIX): value
            for key, value in data.items()
            if isinstance(key, str)
            and key.startswith(_NAMED_VALIDATION_PREFIX)
            and key not in (_NAMED_VALIDATION_PREFIX, NAMED_VALIDATION_KEY)
        }
        rest = {
            key: value for key, value in data.items() if str(key).removeprefix(_NAMED_VALIDATION_PREFIX) not in named
        }
        return {**rest, NAMED_VALIDATION_KEY: named} if named else data

    @field_validator("clip_grad_norm", mode="before")
    @classmethod
    def _number_is_max_norm(cls, value: Any) -> Any:
        return value if isinstance(value, (Mapping, ClipGradNormConfig)) else {"max_norm": value}

    @field_validator("ema", mode="before")
    @classmethod
    def _number_is_decay(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else None
        return {"decay": value} if isinstance(value, int | float) else value

    @field_validator("compile", "fp8", mode="before")
    @classmethod
    def _scalar_is_enabled(cls, value: Any) -> Any:
        if isinstance(value, (Mapping, CompileConfig, Fp8Config)):
            return value
        return {"enabled": False if value is None else value}

    @field_validator("tensorboard", "mlflow", "comet", "trackio", mode="before")
    @classmethod
    def _true_is_the_section(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @field_validator("init_from")
    @classmethod
    def _nanogpts_words(cls, value: str | None) -> str | None:
        if value in _NANOGPT_STARTS and not Path(value).exists():
            raise ValueError(f"{value!r} is a value of nanoGPT's; {_NANOGPT_STARTS[value]}")
        return value

    @field_validator("recipe", mode="before")
    @classmethod
    def _known_recipe(cls, value: Any) -> Any:
        name = value.get(TARGET_KEY) if isinstance(value, Mapping) else value
        if isinstance(name, str) and name.rpartition(".")[2] not in _RECIPES:
            raise ValueError(f"expected {_RECIPES[0]}, found {describe_value(name)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _seed_is_rng_seed(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or type(data.get("seed")) is not int or data["seed"] < 0:
            return data  # nothing to do, or wrong: the field says how
        rng = data.get("rng") or {}
        if isinstance(rng, Mapping):
            if rng.get("seed", data["seed"]) != data["seed"]:
                raise ValueError(f"seed is {data['seed']} and rng.seed is {rng['seed']}; keep one of them")
            return {**data, "seed": None, "rng": {**rng, "seed": data["seed"]}}
        return data

    @model_validator(mode="after")
    def _sources_and_domains_are_those_of_the_data(self) -> PretrainConfig:
        if self.domain_mixture is not None:
            self.domain_mixture.check(self.dataset)
        for name, path in self.validation_sources.items():
            held_out(self.dataset, name, path)
            if name in self.named_validation_datasets:
                raise ValueError(f"validation_sources.{name} and validation_dataset_{name} are one; keep one of them")
        further = {*self.validation_sources, *self.named_validation_datasets}
        if self.validation_dataset is not None and "default" in further:
            raise ValueError("validation_dataset is called default, and so is another validation set; rename that one")
        return self

    @model_validator(mode="after")
    def _can_go_back(self) -> PretrainConfig:
        saves = self.checkpoint.enabled and isinstance(self.step_scheduler.ckpt_every_steps, int)
        if self.spikes is not None and self.spikes.action == "rewind" and not saves:
            raise ValueError(
                "spikes.action rewind goes back to checkpoints: set step_scheduler.ckpt_every_steps to a number"
            )
        return self

    @property
    def validation_datasets(self) -> dict[str, Target]:
        """All validation sets by name; `validation_dataset` comes first and is called `default`."""
        first = {} if self.validation_dataset is None else {"default": self.validation_dataset}
        by_source = {name: held_out(self.dataset, name, path) for name, path in self.validation_sources.items()}
        return {**first, **by_source, **self.named_validation_datasets}

    @property
    def max_norm(self) -> float | None:
        """Norm that gradients are scaled down to; None: clipping is off."""
        return self.clip_grad_norm.max_norm

    @property
    def rng_seed(self) -> int:
        """`rng.seed`, or the top-level `seed` that is short for it."""
        return self.rng.seed

    @property
    def compute_precision(self) -> str:
        """`precision`, or where that is auto what older places of it say."""
        policy = self.distributed.mp_policy
        older = (policy.param_dtype if policy else None) or self.distributed.dtype
        return self.precision if self.precision != "auto" else older or "auto"

    @property
    def dist_backend(self) -> str | None:
        """`dist_env.backend`, or its older place; None: chosen by hardware."""
        return self.dist_env.backend or self.distributed.backend

    @property
    def active_trackers(self) -> dict[str, TrackerSection]:
        """The sections of trackers that are there and enabled, by name."""
        sections = {name: getattr(self, name) for name in TRACKERS}
        return {name: section for name, section in sections.items() if section is not None and section.enable}

    def open_sections(self) -> Iterator[tuple[str, str, Target]]:
        """``(key, role, target)`` of each open section that was given."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        given |= {_NAMED_VALIDATION_PREFIX + name: target for name, target in self.named_validation_datasets.items()}
        for key, target in given.items():
            role = role_of_section(key)
            if role is not None and isinstance(target, Target):
                yield key, role.name, target

    @property
    def derived(self) -> dict[str, Any]:
        """``dotted key -> value`` of what nobody has set and followed from `model.depth`."""
        return self._derived

    @property
    def notes(self) -> list[str]:
        """One line for each accepted key that has no effect, saying why, old targets and their arguments included."""
        return self.collect_notes()

    def collect_notes(self, prefix: str = "") -> list[str]:
        """The notes of closed sections, then those of targets."""
        notes = super().collect_notes(prefix)
        for key, role, target in self.open_sections():
            notes += [f"{key}.{note}" for note in translate(target, ROLES[role])[1]]
        return notes
