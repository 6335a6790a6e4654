"""What ``manifest.json`` of a step folder may hold (docs/formats.md). No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from automodel_cli.checkpoint.lineage import Lineage
from automodel_cli.checkpoint.storage.tensor_file import Dtype, Shape
from automodel_cli.json_files import Count, FileModel, FiniteFloat, Items, PlainName, Xxh3

_MAX_THREADS = 4096  # no machine has more cores


class FileRecord(FileModel):
    """One file of a step folder."""

    name: PlainName
    bytes: Count
    xxh3: Xxh3


class SavedLosses(FileModel):
    """Losses at the step; ``val_loss`` by the name of the validation set, or one number.

    An update that is left out may have a loss that is no number and leave the weights as they were.
    """

    loss: float | None = None
    val_loss: float | dict[str, float | None] | None = None


class TokenizerFacts(FileModel):
    """Which tokenizer the ids are of."""

    name: str
    fingerprint: str | None = None
    separator_id: Count | None = None


class Fp8Off(FileModel):
    """A run without fp8."""

    recipe: Literal["off"]


class Fp8On(FileModel):
    """The layers that compute in fp8, and how."""

    recipe: Literal["tensorwise"]
    filter_fqns: Items[str]
    emulate: bool


class FastPathFacts(FileModel):
    """The choices that a resume takes again; a step of an earlier version lacks some."""

    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    residual: Literal["bf16", "fp16", "fp32"] = "fp32"
    compile: bool = False
    compile_mode: str = ""
    compile_scope: Literal["model", "blocks"] = "model"
    head_loss: Literal["plain", "chunked", "chunked_capped"] = "plain"
    orthogonalization: Literal["bfloat16", "float32", "none"] = "bfloat16"
    attention: str = ""
    optimizer: Literal["fused", "foreach", "loop", "own"] = "own"
    threads: int = Field(1, ge=1, le=_MAX_THREADS)
    processes: int = Field(1, ge=1, le=2**31)
    fp8: Fp8Off | Fp8On = Fp8Off(recipe="off")


class CodeFacts(FileModel):
    """The builder of a model that only its own code builds."""

    target: str
    xxh3: Xxh3 | None = None


class StepFacts(FileModel):
    """What a step says of its run; sections that are ``Any`` inside are compared or shown, nothing else."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    stage: Literal["pretraining", "mid-training"] = "pretraining"
    model: dict[str, Any] = Field(default_factory=dict)
    param_roles: dict[str, str] = Field(default_factory=dict)
    tokenizer: TokenizerFacts | None = None
    data: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    batch: dict[str, Count | None] | None = None
    precision: dict[str, str] | None = None
    fast_path: FastPathFacts | None = None
    code: CodeFacts | None = None
    lineage: Lineage | None = None


class AveragedStep(FileModel):
    """A checkpoint that went into an average, and how much it counts."""

    step: Count
    fingerprint: Xxh3
    weight: FiniteFloat = Field(gt=0)


class StepManifest(FileModel):
    """``manifest.json`` of a step folder; see docs/formats.md."""

    format: Literal["automodel-checkpoint/1"]
    step: Count
    save_format: str
    tied: dict[str, str]
    files: Items[FileRecord]
    metrics: SavedLosses
    facts: StepFacts
    tensors: dict[str, dict[str, Items[Dtype | Shape]]] = Field(default_factory=dict)
    average: Items[AveragedStep] = ()
    self: Xxh3
