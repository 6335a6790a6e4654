"""The folder while a corpus is made: whose files they are, what may be continued, what an old plan lacks."""

import json
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.build.corpus_writer import CorpusLayout, CorpusWriter, state_is_on_disk
from automodel_cli.corpus.build.nanogpt_output import NanogptOutput
from automodel_cli.corpus.build.output import difference
from automodel_cli.corpus.documents.units import TokenChunk
from automodel_cli.corpus.formats.journal import PROGRESS_NAME, Position, read_progress, write_progress
from automodel_cli.corpus.shuffle.splitting import SplitRule
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.files import write_manifest

PLAN = {"options": {"max_tokens": 5, "format": "bin"}, "source": {"name": "a"}, "tokenizer": {"name": "byte"}}


def layout(folder: Path) -> CorpusLayout:
    return CorpusLayout(folder, "nemo", np.dtype("<u2"), 4)


def place(folder: Path) -> NanogptOutput:
    return NanogptOutput(layout(folder), ByteTokenizer())


def ask(folder: Path, plan: dict = PLAN) -> tuple[Position | None, list[str]]:
    lines: list[str] = []
    return place(folder).interrupted_position(plan, lines.append), lines


def interrupted(folder: Path) -> Position:
    writer = CorpusWriter(layout(folder), SplitRule())
    writer.feed(TokenChunk.of_documents(np.arange(6, dtype=np.uint16), np.array([6]), unfinished=True))
    here = Position("write", {"file": 0, "at": 12}, rows=3, bad={"count": 1, "first": ["x"]}, writer=writer.sync())
    write_progress(folder, PLAN, here)
    return here


def test_a_position_survives_and_continues(tmp_path: Path) -> None:
    here = interrupted(tmp_path)
    assert read_progress(tmp_path) == (PLAN, here)
    found, lines = ask(tmp_path)
    assert found == here and "continuing" in lines[0]


def test_another_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    interrupted(tmp_path)
    other = {**PLAN, "options": {"max_tokens": 9, "format": "bin"}}
    with pytest.raises(ConfigError, match=r"max_tokens 5 -> 9"):
        ask(tmp_path, other)


def test_the_difference_of_nested_and_of_long_values_is_short() -> None:
    def plan(filters: object) -> dict[str, dict[str, object]]:
        return {"options": {"filters": filters, "near": 0.8}}

    limits = {f"max_{k}": k / 10 for k in range(20)}
    assert difference(plan(limits), plan(limits | {"max_3": 1})) == "filters.max_3 0.3 -> 1"
    told = difference(plan(limits), plan(None))
    assert told.startswith("filters {'max_0': 0.0, ") and told.endswith("... -> None") and len(told) < 90


@pytest.mark.parametrize("damage", ["journal", "temporary", "shard"])
def test_what_cannot_be_continued_starts_over(tmp_path: Path, damage: str) -> None:
    interrupted(tmp_path)
    path = (
        tmp_path
        / {"journal": PROGRESS_NAME, "temporary": "dataset_00001.bin.automodel.tmp", "shard": "dataset.bin"}[damage]
    )
    path.write_bytes(path.read_bytes()[:-1])
    found, lines = ask(tmp_path)
    assert found is None and "starting over" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_nothing_there_or_only_begun(tmp_path: Path) -> None:
    assert ask(tmp_path) == (None, [])
    write_progress(tmp_path, PLAN, Position())
    assert ask(tmp_path) == (None, [])
    (tmp_path / PROGRESS_NAME).unlink()
    (tmp_path / "val_00003.bin").touch()
    with pytest.raises(ConfigError, match=r"val_00003\.bin but no manifest"):
        place(tmp_path).refuse_strangers()


def test_clear_takes_ours_and_leaves_the_rest(tmp_path: Path) -> None:
    interrupted(tmp_path)
    ByteTokenizer().save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/x").touch()
    others = ["mine.bin", "dataset_1.bin", "notes.txt", "dataset.bin.bak", "train.bin", "meta.pkl"]
    for name in others:
        (tmp_path / name).touch()
    place(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "tokenizer"])
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["x"]


def test_difference_in_words() -> None:
    assert difference(PLAN, PLAN) == "in no option"
    other = {"options": {"format": "bin"}, "source": {"name": "b"}, "tokenizer": PLAN["tokenizer"]}
    assert difference(PLAN, other) == "max_tokens 5 -> None, name a -> b"


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rows": "3"},
        {"phase": "other"},
        {"cursor": {"file": -1, "at": 0}},
        {"cursor": {"file": 0}},
        {"cursor": {"key": 3}},  # of a shuffle, which this plan is not
        {"cursor": [1]},
        {"bad": {}},
        {"plan": []},
        {"plan": {"options": 3}},
        {"writer": 3},
        {"writer": {}},
        {"writer": {"splits": {}, "ordinal": 0, "current": 0}},
        {"surprise": 1},
    ],
)
def test_a_journal_that_lies_starts_over(tmp_path: Path, change: dict) -> None:
    interrupted(tmp_path)
    body = json.loads((tmp_path / PROGRESS_NAME).read_text())
    del body["self"]
    write_manifest(tmp_path / PROGRESS_NAME, {**body, **change})
    found, lines = ask(tmp_path)
    assert found is None and "starting over" in lines[0] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "state",
    [
        {"open": [10**15, 1]},
        {"open": [-1, 1]},
        {"open": [1]},
        {"shards": [[4, 1]] * 3},
        {"shards": [["4", 1]]},
    ],
)
def test_a_state_is_believed_only_after_the_files(tmp_path: Path, state: dict) -> None:
    here = interrupted(tmp_path)
    assert here.writer is not None
    here.writer["splits"]["train"] |= state
    assert not state_is_on_disk(layout(tmp_path), here.writer)


def test_temporaries_of_versions_before_are_taken_up(tmp_path: Path) -> None:
    here = interrupted(tmp_path)
    for path in tmp_path.glob("*.automodel.tmp"):
        path.rename(str(path).replace(".automodel.tmp", ".tmp"))
    assert ask(tmp_path)[0] == here
