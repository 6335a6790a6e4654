"""Settings of ``automodel preprocess chat``, and the mixture of tasks that it reads."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import model_validator

from automodel_cli.config.schema.base import Amount, Count, Positive, Section, Whole
from automodel_cli.config.schema.preprocess import Fraction

TaskName = Literal["smoltalk", "mmlu_auxiliary", "gsm8k", "arc", "messages", "instructions"]
_NAME = re.compile(r"[A-Za-z0-9_]+")


class TaskConfig(Section):
    """One task of a mixture."""

    task: TaskName | None = None
    """How rows are read (smoltalk, mmlu_auxiliary, gsm8k, arc, messages, instructions); null: the task's own name."""
    dataset: str | None = None
    """Dataset on the Hub, or local .jsonl, .json or .parquet files with the same columns; null: the task's own."""
    set_name: str | None = None
    """Configuration of a Hub dataset; null: the task's own, or the dataset's default."""
    split: str | None = None
    """Split of a Hub dataset to train on; null: the task's own, or `train`."""
    val_dataset: str | None = None
    """Local files to validate on."""
    val_split: str | None = None
    """Split of a Hub dataset to validate on; null: the task's own, if it has one."""
    val_fraction: Fraction | None = None
    """Fraction of the training rows to validate on instead; null: none."""
    max_examples: Amount | None = None
    """Train on at most this many rows, a random choice; null: all."""
    max_val_examples: Amount | None = None
    """The same for validation."""
    epochs: Count = 1
    """How often its examples come in a mixture that is `proportional`; also in the length of the others."""
    weight: Positive = 1.0
    """Its share in a mixture that is `weighted`."""

    @model_validator(mode="after")
    def _one_validation(self) -> TaskConfig:
        given = [name for name in ("val_dataset", "val_split", "val_fraction") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one")
        return self


class MixtureConfig(Section):
    """A mixture of tasks, as a file."""

    strategy: Literal["proportional", "uniform", "weighted"] = "proportional"
    """`proportional`: every example `epochs` times; `uniform`: as many examples of each task; `weighted`: by `weight`.
    A task with fewer examples than its share gives all of them again."""
    examples: Amount | None = None
    """Examples in the mixture; null: as many as the tasks have, `epochs` counted."""
    seed: Whole = 42
    """Seed of the choice of examples and of their order."""
    tasks: dict[str, TaskConfig]
    """Tasks by name; files are called after it."""

    @model_validator(mode="after")
    def _named_tasks(self) -> MixtureConfig:
        known = TaskName.__args__  # type: ignore[attr-defined]
        if not self.tasks:
            raise ValueError("tasks names no task")
        for name, task in self.tasks.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"task {name!r}: a name has letters, digits and _")
            if task.task is None and name not in known:
                raise ValueError(f"task {name!r} is none of {', '.join(known)}: say which one it is with `task`")
        return self


class PreprocessChatConfig(Section):
    """Conversations to token files."""

    panels: ClassVar = {
        "Input": "mixture dataset val_fraction strict",
        "Tokens": "tokenizer train_on",
        "Output": "output_dir overwrite dry_run",
        "Speed and memory": "num_workers chunk_size prefetch",
    }

    mixture: str | None = None
    """YAML file that names the tasks; null: `dataset` is the only one."""
    dataset: str | None = None
    """One dataset of conversations or instruction pairs, on the Hub or as local files; null: there is a mixture."""
    val_fraction: Fraction | None = None
    """Fraction of `dataset` for validation; null: none."""
    tokenizer: str = "gpt2"
    """tiktoken name, Hugging Face id, folder of a tokenizer, a corpus or a checkpoint, or `byte`. Its chat template is
    used if it has one; otherwise ChatML's two marks are added."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learned: what the assistant says with the end of its turn, or all."""
    output_dir: str = "chat_data"
    """Folder to write to."""
    strict: bool = False
    """Stop at the first row that is no conversation instead of skipping and counting it."""
    overwrite: bool = False
    """First delete what an earlier run wrote to the folder; other files in it are never touched."""
    dry_run: bool = False
    """Show what would be done and exit."""
    num_workers: Whole | None = None
    """Processes that tokenize; 0 or 1: only this one; null: one per core, fewer for few examples."""
    chunk_size: Count = 64
    """Conversations handed to a worker at a time."""
    prefetch: Count = 4
    """Chunks in flight per worker; limits memory use."""

    @model_validator(mode="after")
    def _one_source(self) -> PreprocessChatConfig:
        if (self.mixture is None) == (self.dataset is None):
            raise ValueError("give `mixture` or `dataset`, one of the two")
        if self.val_fraction is not None and self.dataset is None:
            raise ValueError("`val_fraction` goes with `dataset`; in a mixture each task has its own")
        return self
