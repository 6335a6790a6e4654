"""Checks of Megatron's files: every flipped byte of ours is found; of others' what the two files can tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_megatron_file

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.corpus.formats import megatron_check
from automodel_cli.corpus.formats.journal import Position, write_progress
from automodel_cli.corpus.formats.megatron_bin import bin_path, idx_path
from automodel_cli.corpus.formats.megatron_check import check_megatron, holds_megatron_files
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
from automodel_cli.corpus.formats.verify_report import VerifyReport
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.files import write_manifest
from automodel_cli.recipes.preprocess import megatron as preprocess_megatron

SHARED = Path(__file__).resolve().parents[3] / "../shared/data/megatron_golden"
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "megatron"


def check(path: Path, tokenizer: str | None = None, documents: int = 2) -> VerifyReport:
    return check_megatron(path, tokenizer=tokenizer, documents=documents, progress=lambda *_: None)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for k in range(2):
        rows = [f'{{"text": "Document {k}.{n}, é", "title": ["T", "{n}"]}}' for n in range(5)]
        (tmp_path / f"in/{k}.jsonl").write_text("\n".join(['{"text": "", "title": []}', *rows]))
    cfg = PreprocessMegatronConfig(
        input=str(tmp_path / "in"),
        json_keys=["text", "title"],
        tokenizer="byte",
        append_eod=True,
        output_path=str(tmp_path / "out"),
        output_prefix="x",
        workers=1,
    )
    preprocess_megatron.run(cfg, progress=lambda event: None, say=lambda line: None)
    return tmp_path / "out"


def test_sound_files(made: Path) -> None:
    for path in (made, made / "x.manifest.json"):
        report = check(path)
        assert report.problems == [] and report.warnings == []
        assert [file.name for file in report.files] == [
            f"x_{k}_{key}_document" for k in (0, 1) for key in ("text", "title")
        ]
        assert report.hashed == 9  # four pairs of two files, and the tokenizer
        assert [text for _, text in report.documents[:2]] == ["Document 0.0, é", "Document 0.1, é"]
        assert [name for name, _ in report.documents] == ["x_0_text_document"] * 2 + ["x_0_title_document"] * 2
    for suffix in ("", ".bin", ".idx"):
        report = check(made / f"x_1_title_document{suffix}")
        assert report.problems == [] and [file.documents for file in report.files] == [6]


def test_missing_short_and_surplus_files(made: Path) -> None:
    idx_path(made / "x_0_text_document").unlink()
    data = bin_path(made / "x_0_title_document")
    data.write_bytes(data.read_bytes()[:-2])
    write_megatron_file(made / "y_document", [[[1]]], dtype="<u2")
    report = check(made)
    assert any("x_0_text_document.idx is missing" in line for line in report.problems)
    assert any("x_0_title_document.bin is" in line and "bytes long" in line for line in report.problems)
    assert any("y_document is listed in no manifest" in line for line in report.warnings)
    assert holds_megatron_files(made / "x_0_text_document.bin")  # listed, though its index is gone
    one = check(made / "x_0_text_document.bin")
    assert any("x_0_text_document.idx is missing" in line for line in one.problems)


def test_files_without_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron_check, "_BLOCK_TOKENS", 3)
    documents = [[[1, 2, 256]], [], [[3], [4, 256]], [[5]], [[256]]]
    write_megatron_file(tmp_path / "theirs", documents, dtype="<i4")
    assert holds_megatron_files(tmp_path) and holds_megatron_files(tmp_path / "theirs.idx")
    report = check(tmp_path)
    assert report.problems == [] and "no manifest" in report.warnings[0]
    (file,) = report.files
    assert (file.dtype, file.tokens, file.documents, file.largest_id) == ("int32", 8, 5, 256)
    known = check(tmp_path / "theirs", tokenizer="byte")
    assert known.warnings == [f"{tmp_path / 'theirs'}: 1 of 4 documents do not end in id 256"]
    assert len(known.documents) == 2
    write_megatron_file(tmp_path / "large", [[[1, 999]], [[-1]]], dtype="<i4")
    problems = check(tmp_path / "large", tokenizer="byte").problems
    assert problems == [f"{bin_path(tmp_path / 'large')} holds token id -1, but the vocabulary ends at 256"]
    (tmp_path / "half.bin").write_bytes(b"12")
    assert any("half.idx" in line for line in check(tmp_path).problems)


def test_an_index_that_lies(tmp_path: Path) -> None:
    write_megatron_file(tmp_path / "x", [[[1, 2]], [[3]], [[4]]], dtype="<u2")
    raw = bytearray(idx_path(tmp_path / "x").read_bytes())
    raw[34 + 12 + 8] ^= 2  # the second pointer
    idx_path(tmp_path / "x").write_bytes(raw)
    assert any("sequence 1 has length 1 and begins at byte" in line for line in check(tmp_path / "x").problems)


def test_cut_documents_are_allowed_only_at_the_end_of_a_limited_run(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 5)
    cfg = {"input": str(tmp_path / "a.jsonl"), "tokenizer": "byte", "append_eod": True, "workers": 1}
    cfg |= {"max_tokens": 10, "output_path": str(tmp_path / "out")}
    preprocess_megatron.run(PreprocessMegatronConfig(**cfg), progress=lambda event: None, say=lambda line: None)
    assert check(tmp_path / "out").problems == []


@pytest.mark.parametrize("folder", [GOLDEN, SHARED], ids=["golden", "shared"])
def test_megatron_cores_own_files(folder: Path) -> None:
    if not folder.exists():
        pytest.skip("no files of megatron-core here")
    report = check(folder)
    assert report.problems == [] and len(report.files) == 3
    for file in report.files:
        tokens = np.fromfile(folder / f"{file.name}.bin", dtype=file.dtype)
        assert (file.tokens, file.largest_id) == (len(tokens), int(tokens.max()))


def test_what_is_not_megatrons(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"1234")
    (tmp_path / "x.idx").write_bytes(b"no index of theirs")
    assert not holds_megatron_files(tmp_path) and not holds_megatron_files(tmp_path / "x.bin")
    assert not holds_megatron_files(tmp_path / "gone")
    assert ByteTokenizer().eot_id == 256


def test_flipped_bytes_200_of_200(made: Path) -> None:
    """Spread evenly over all bytes of the folder, whichever file they fall into; and each of the format's name."""
    paths = sorted(path for path in made.rglob("*") if path.is_file() and path.stat().st_size)
    ends = np.cumsum([path.stat().st_size for path in paths])
    places = [int(ends[-1]) * k // 200 for k in range(200)]
    manifest = paths.index(made / "x.manifest.json")
    name_at = paths[manifest].read_bytes().index(b"automodel-megatron/1")
    places += [int(ends[manifest]) - paths[manifest].stat().st_size + name_at + k for k in range(20)]
    for k, at in enumerate(places):
        number = int(np.searchsorted(ends, at, side="right"))
        path, offset = paths[number], at - (int(ends[number - 1]) if number else 0)
        whole = path.read_bytes()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << k % 8]) + whole[offset + 1 :])
        assert any(str(path) in problem for problem in check(made).problems), (path, offset)
        path.write_bytes(whole)
    assert check(made).problems == []


def test_an_interrupted_run_is_not_called_sound(made: Path) -> None:
    manifest = MegatronManifest.read(made / "x.manifest.json")
    plan = {"options": manifest.options, "source": manifest.source, "tokenizer": manifest.tokenizer}
    write_progress(made, plan, Position(), "x.progress.json")
    assert check(made).problems == []
    (made / "x.manifest.json").unlink()
    for path in (made, made / "x_0_text_document"):
        assert any("of an interrupted run" in problem for problem in check(path).problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": -1}, "tokens: "),
        ({"sequences": 10**40}, "sequences: "),
        ({"pairs": [{"name": "../x"}]}, "pairs[0].name: expected a plain name"),
        (
            {"tokenizer_files": [{"name": "/etc/passwd", "bytes": 1, "xxh3": "xxh3:0123456789abcdef"}]},
            "plain name",
        ),
        ({"eod_id": "256"}, "eod_id: "),
        ({"keys": "text"}, "keys: "),
        ({"pairs": []}, "nothing was checked"),
    ],
)
def test_a_manifest_that_lies_is_answered_in_two_lines(made: Path, change: dict, said: str) -> None:
    body = json.loads((made / "x.manifest.json").read_text())
    del body["self"]
    write_manifest(made / "x.manifest.json", {**body, **change})
    problems = check(made).problems
    assert any(said in problem for problem in problems) and not any("\n" in problem for problem in problems)
