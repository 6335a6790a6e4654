"""Streaming through `datasets`, from a local dataset folder: rows, positions, bad rows, clear errors, no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.corpus.documents import hub
from automodel_cli.corpus.documents.hub import HubSource
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import open_source
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import megatron as preprocess_megatron
from automodel_cli.recipes.preprocess import nanogpt as preprocess

TEXTS = [f"row {k}" for k in range(90)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for k in range(3):
        table = pa.table({"id": list(range(30)), "text": TEXTS[30 * k : 30 * k + 30]})
        pq.write_table(table, tmp_path / f"train-{k}.parquet", row_group_size=8)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_READ_ROWS", 4)


def rows(source: HubSource, cursor: dict | None, chunk: int) -> list[tuple[dict, list[str]]]:
    return [(unit.cursor, read_unit(unit, source.options).texts) for unit in source.units(cursor, chunk)]


def test_rows_from_any_cursor_with_any_chunk_size(folder: str) -> None:
    source = HubSource(folder, None, "train", ReadOptions())
    for chunk in (1, 1000):
        found = rows(source, None, chunk)
        assert [text for _, texts in found for text in texts] == TEXTS
        for cursor, _ in found[:: max(1, len(found) // 2)]:
            cursor = json.loads(json.dumps(cursor))  # as the journal keeps it
            after = [text for _, texts in rows(source, cursor, 7) for text in texts]
            assert after == TEXTS[cursor["at"] :]


def test_bad_rows_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n{"text": null, "n": 2}\n')
    source = HubSource(str(tmp_path), None, "train", ReadOptions())
    (unit,) = source.units(None, 10)
    found = read_unit(unit, source.options)
    assert found.texts == ["a"] and found.bad[0].reason == "text is null" and found.rows == 2
    with pytest.raises(DataError, match=r"no column 'body'; it has \['text', 'n'\]"):
        list(HubSource(str(tmp_path), None, "train", ReadOptions(text_key="body")).units(None, 10))
    with pytest.raises(DataError, match="holds int64, not text"):
        list(HubSource(str(tmp_path), None, "train", ReadOptions(text_key="n")).units(None, 10))


def test_a_dataset_that_cannot_be_opened_says_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened") as caught:
        list(HubSource(str(tmp_path / "nowhere"), None, "train", ReadOptions()).units(None, 10))
    assert "--dataset PATH" in caught.value.hint


def test_a_failing_stream_is_an_error(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HubSource(folder, None, "train", ReadOptions())

    def breaks():
        yield pa.table({"text": ["x"]})
        raise ConnectionError("reset by peer")

    class Stream:
        state_dict = staticmethod(dict)
        iter = staticmethod(lambda batch_size: breaks())

    monkeypatch.setattr(HubSource, "_open", lambda self: Stream())
    with pytest.raises(DataError, match="failed after 1 rows: ConnectionError: reset by peer"):
        list(source.units(None, 1))


def test_default_source_is_fineweb_on_the_hub() -> None:
    cfg = PreprocessNanogptConfig()
    source = open_source(cfg.dataset, ReadOptions(), "sample-10BT", cfg.split)
    assert isinstance(source, HubSource) and source.name == "fineweb"
    assert source.describe() == {
        "kind": "hub",
        "name": "HuggingFaceFW/fineweb",
        "set_name": "sample-10BT",
        "split": "train",
    }


def test_a_whole_run_from_a_stream_leaves_torch_out(folder: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig as C\n"
        "from automodel_cli.corpus.documents import hub, source as documents\n"
        "from automodel_cli.recipes.preprocess import nanogpt as preprocess\n"
        "preprocess.open_source = lambda *_: hub.HubSource(\n"
        f"    {folder!r}, None, 'train', documents.ReadOptions())\n"
        f"cfg = C(tokenizer='byte', output_dir={str(tmp_path / 'out')!r}, num_workers=2, max_tokens=300)\n"
        "preprocess.run(cfg, progress=lambda event: None, say=print)\n"
        "print('heavy', sorted(set(sys.modules) & {'torch', 'transformers'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heavy []" in done.stdout


def test_a_run_of_the_recipe(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "open_source", lambda *_: HubSource(folder, None, "train", ReadOptions()))
    cfg = PreprocessNanogptConfig(tokenizer="byte", output_dir=str(tmp_path / "out"), num_workers=1)
    result = preprocess.run(cfg, progress=lambda event: None, say=lambda line: None)
    assert result.manifest is not None
    assert (result.manifest.documents, result.manifest.tokens) == (90, sum(len(t) + 1 for t in TEXTS))


def test_several_columns_and_lists(tmp_path: Path) -> None:
    records = [{"n": k, "text": [f"row {k}", ""], "title": f"title {k}"} for k in range(30)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    options = ReadOptions("text", more_keys=("title",), lists=True)
    source = HubSource(str(tmp_path), None, "train", options)
    expected = [(record["text"], record["title"]) for record in records]
    found = [text for _, texts in rows(source, None, 7) for text in texts]
    assert found == expected
    with pytest.raises(DataError, match=r"column 'text' of .* holds list<.*>, not text"):
        list(HubSource(str(tmp_path), None, "train", ReadOptions()).units(None, 10))


def test_megatron_files_from_a_stream(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_it(name: str, options: ReadOptions, set_name: str, split: str) -> HubSource:
        opened.append((name, set_name, split))
        return HubSource(folder, None, "train", options)

    monkeypatch.setattr(preprocess_megatron, "open_source", open_it)
    options = {"dataset": "some/dataset", "set_name": "part", "tokenizer": "byte", "append_eod": True}
    cfg = PreprocessMegatronConfig(**options, output_path=str(tmp_path / "out"), workers=1, max_tokens=400)
    result = preprocess_megatron.run(cfg, progress=lambda event: None, say=lambda line: None)
    assert opened == [("some/dataset", "part", "train")]
    assert result.manifest is not None and result.manifest.tokens == 400
    assert [pair.name for pair in result.manifest.pairs] == ["processed_data_0_text_document"]
    ids = b"".join(text.encode() + b"\0" for text in TEXTS)[:400]
    stored = (tmp_path / "out/processed_data_0_text_document.bin").read_bytes()
    assert bytes(stored[::2]) == ids  # 256 is a zero byte and a one
