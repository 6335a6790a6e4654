"""From chunks to shards: any chunking gives the same files, and a writer continues from its saved state."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.build.corpus_writer import CorpusLayout, CorpusWriter, state_is_on_disk
from automodel_cli.corpus.documents.units import TokenChunk
from automodel_cli.corpus.shuffle.splitting import SplitRule

LENGTHS = np.random.default_rng(3).integers(1, 40, 80)
TOKENS = np.arange(LENGTHS.sum(), dtype=np.uint16)
RULES = {
    "none": SplitRule("none", max_tokens=1000),
    "fraction": SplitRule("fraction", fraction=0.3),
    "tokens": SplitRule("tokens", fraction=0.3, val_tokens=200, total_tokens=900, max_tokens=900),
    "tail": SplitRule("tail", tail_start=777),
}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files: what a power cut would leave is not the question here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def layout(folder: Path, kind: str = "nemo") -> CorpusLayout:
    folder.mkdir(exist_ok=True)
    return CorpusLayout(folder, kind, np.dtype("<u2"), 128)  # type: ignore[arg-type]


def chunks(borders: list[int]) -> list[TokenChunk]:
    """The stream cut at token positions ``borders``, through documents where they lie inside one."""
    stops = np.cumsum(LENGTHS)
    found = []
    for start, stop in zip([0, *borders], [*borders, len(TOKENS)], strict=True):
        inner = stops[(stops > start) & (stops < stop)]
        edges = np.array([start, *inner, stop])
        found.append(
            TokenChunk.of_documents(
                TOKENS[start:stop],
                np.diff(edges),
                continues=start > 0 and start not in stops,
                unfinished=stop not in stops,
            )
        )
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def feed(writer: CorpusWriter, pieces: list[TokenChunk]) -> None:
    for chunk in pieces:
        if not writer.full:
            writer.feed(chunk)


@pytest.mark.parametrize("rule", RULES)
def test_chunking_does_not_matter_and_states_continue(tmp_path: Path, rule: str) -> None:
    whole = CorpusWriter(layout(tmp_path / "whole"), RULES[rule])
    feed(whole, chunks([]))
    shards = whole.close()
    assert sum(s.num_tokens for group in shards.values() for s in group) == whole.tokens
    rng = np.random.default_rng(1)
    for trial in range(6):
        borders = sorted(rng.choice(np.arange(1, len(TOKENS)), 9, replace=False).tolist())
        out = layout(tmp_path / str(trial))
        writer = CorpusWriter(out, RULES[rule])
        pieces = chunks(borders)
        feed(writer, pieces[:4])
        state = writer.sync()
        feed(writer, pieces[4:6])  # work that a killed process loses
        writer.sync()
        assert state_is_on_disk(out, state)
        writer = CorpusWriter(out, RULES[rule], state)
        feed(writer, pieces[4:])
        writer.close()
        assert content(tmp_path / str(trial)) == content(tmp_path / "whole"), (rule, borders)


def test_lost_files_are_noticed(tmp_path: Path) -> None:
    out = layout(tmp_path)
    writer = CorpusWriter(out, RULES["fraction"])
    feed(writer, chunks([400])[:1])
    state = writer.sync()
    assert state_is_on_disk(out, state)
    writer.abandon()
    assert state_is_on_disk(out, state)  # an error leaves what the state speaks of
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        still = state_is_on_disk(out, state)
        path.write_bytes(data)
        assert not still or path.suffix == ".idx", path  # a finished index is checked by verify


def test_reached_counts_documents_up_to_the_last_one_wanted(tmp_path: Path) -> None:
    lengths = np.array([10, 10, 10])
    tokens = np.zeros(30, dtype=np.uint16)
    for wanted, reached in ((1, 1), (10, 1), (11, 2), (20, 2), (30, 3), (99, 3)):
        for rule in (SplitRule(max_tokens=wanted), SplitRule("tail", tail_start=5, max_tokens=wanted)):
            writer = CorpusWriter(layout(tmp_path), rule)
            writer.feed(TokenChunk.of_documents(tokens, lengths))
            assert writer.reached == reached, (wanted, rule.rule)
            writer.abandon()


def test_empty_documents_without_end_of_text_leave_no_trace(tmp_path: Path) -> None:
    writer = CorpusWriter(layout(tmp_path), SplitRule())
    writer.feed(TokenChunk.of_documents(np.array([1, 2, 3], dtype=np.uint16), np.array([0, 2, 0, 0, 1, 0])))
    (facts,) = writer.close()["train"]
    assert (facts.num_tokens, facts.num_documents) == (3, 2)
    assert np.fromfile(tmp_path / "dataset.bos.idx", "<i4").tolist() == [0, 2]
