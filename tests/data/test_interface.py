"""Data sets say what they are: one class that derives from ``WindowDataset`` is all that a further kind needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly.facts import data_facts
from automodel_cli.assembly.scoring.data import open_named
from automodel_cli.assembly.summary import blend_table
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets import roles
from automodel_cli.data.interface import RunValues, WindowDataset, source_of
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.distributed.world import World
from automodel_cli.errors import DataError
from automodel_cli.recipes.pretraining.summary import data_line


class TextDataset(WindowDataset):
    """A file of numbers in digits, read as windows of ``seq_len`` tokens from the last one back."""

    def __init__(self, path: str, seq_len: int, first: int | None = None) -> None:
        self.path, self.seq_len, self.first = Path(path), seq_len, first
        self.tokens = np.array(self.path.read_text().split(), dtype=np.int64)

    @classmethod
    def run_arguments(cls, run: RunValues) -> dict[str, Any]:
        return {"first": run.seed}

    @classmethod
    def open_named(cls, name: str, seq_len: int, **options: Any) -> TextDataset | None:
        return cls(name, seq_len) if name.endswith(".txt") else None

    @property
    def fingerprint(self) -> str:
        return str(self.tokens.sum())

    def plan(self) -> dict[str, Any]:
        return {"kind": "text", "data": self.fingerprint, "seq_len": self.seq_len}

    def token_ranges(self):
        return [(self.path, 0, len(self.tokens))]

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        return ((len(self) - 1 - sample_numbers % len(self)) * self.seq_len)[:, None]

    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        for row, (start,) in zip(out, offsets.tolist(), strict=True):
            row[:] = self.tokens[start : start + self.seq_len + 1]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(41))))
    role = roles.ROLES["dataset"]
    target = f"{__file__}:TextDataset"
    monkeypatch.setitem(roles.ROLES, "dataset", replace(role, ours=(*role.ours, f"{__name__}.TextDataset")))
    (tmp_path / "run.yaml").write_text(
        f"""
model: {{_target_: automodel_cli.models.gpt2.build_gpt2_model, vocab_size: 64}}
dataset: {{_target_: "{target}", path: {tmp_path}/numbers.txt, seq_len: 4}}
optimizer: {{_target_: torch.optim.AdamW}}
step_scheduler: {{global_batch_size: 2, local_batch_size: 1, max_steps: 3}}
rng: {{seed: 17}}
"""
    )
    return load_config(PretrainConfig, tmp_path / "run.yaml", trust=(__file__,))


def test_a_further_kind_is_trained_on_described_and_checked(config: PretrainConfig) -> None:
    dataset = data_assembly.build_dataset(config, config.dataset, trust=(__file__,))
    assert dataset.first == 17
    loader = data_assembly.build_train_loader(config, dataset, World.single("cpu"), trust=(__file__,))
    assert isinstance(loader, TokenLoader)
    rows = [row.tolist() for update in islice(loader, 3) for batch in update for row in batch.input_ids]
    assert rows[:2] == [[36, 37, 38, 39], [32, 33, 34, 35]]
    assert data_line(dataset) == "41 tokens, 1 file, 10 sequences of 4"
    assert data_facts(dataset) == {
        "class": "TextDataset",
        "fingerprint": "820",
        "plan": {"kind": "text", "data": "820", "seq_len": 4},
    }
    assert blend_table({"training data": dataset}) is None
    assert torch_item(dataset, 0) == ([36, 37, 38, 39], [37, 38, 39, 40])
    dataset.check_vocab(41)
    with pytest.raises(DataError, match="holds token id 40, the model has 40 ids"):
        dataset.check_vocab(40)


def torch_item(dataset: WindowDataset, number: int) -> tuple[list[int], list[int]]:
    item = dataset[number]
    return item["input_ids"].tolist(), item["labels"].tolist()


def test_eval_asks_each_kind_whether_files_are_of_it(config: PretrainConfig, tmp_path: Path) -> None:
    assert type(open_named(str(tmp_path / "numbers.txt"), 4)).__name__ == "TextDataset"


def test_of_a_users_own_set_is_known_what_such_classes_have() -> None:
    class Rows(list):
        seq_length = 7
        fingerprint = "abc"

    assert data_line(Rows([1, 2])) == "2 sequences of 7"
    assert data_line([1]) == "1 sequences of ?"
    assert data_line(iter(())) == "tuple_iterator"
    assert data_facts(Rows()) == {"class": "Rows", "fingerprint": "abc", "plan": None}
    assert source_of([1]).manifest is None
    source_of([1]).check_vocab(1)
