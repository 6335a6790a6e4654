"""preprocess nanogpt, whole: exact lengths, equal bytes for any workers and chunks, splits, refusals, bad rows."""

import functools
import itertools
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.recipes.preprocess.small_runs import check_same_bytes, content

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, TokenizerTrainConfig, VerifyConfig
from automodel_cli.corpus.build.corpus_writer import CorpusWriter
from automodel_cli.corpus.formats.bos_index import read_bos_index
from automodel_cli.corpus.formats.manifest import read_corpus_manifest
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import exclusive_lock, write_manifest
from automodel_cli.recipes.preprocess import nanogpt as preprocess
from automodel_cli.recipes.preprocess import train_tokenizer, verify
from automodel_cli.recipes.preprocess.nanogpt import PreprocessResult

TEXTS = [f"document {k}: " + "words é漢 " * (k * 7 % 23) for k in range(60)]
BAD = [b"{broken", b'{"other": 1}', b'{"text": null}', b'{"text": "\xff"}', b'{"text": "\\ud800"}']


def run(tmp_path: Path, name: str = "out", **options: object) -> PreprocessResult:
    settings = {"tokenizer": "byte", "num_workers": 1, "output_dir": str(tmp_path / name), **options}
    cfg = PreprocessNanogptConfig(**settings)  # type: ignore[arg-type]
    lines: list[str] = []
    return preprocess.run(cfg, progress=lambda event: None, say=lines.append)


def tokens_of(path: Path) -> np.ndarray:
    file = inspect_token_file(path)
    return TokenReader(file).read(0, file.num_tokens)


def byte_stream(texts: list[str]) -> list[int]:
    return [i for text in texts for i in (256, *text.encode())]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A .jsonl of TEXTS with a bad row after every tenth."""
    lines = []
    for k, text in enumerate(TEXTS):
        lines.append(json.dumps({"id": k, "text": text}).encode())
        if k % 10 == 9:
            lines.append(BAD[k // 10 % len(BAD)])
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return str(tmp_path / "rows.jsonl")


def test_tokens_index_manifest_and_bad_rows(tmp_path: Path, rows: str) -> None:
    result = run(tmp_path, dataset=rows)
    folder = tmp_path / "out"
    assert tokens_of(folder / "dataset.bin").tolist() == byte_stream(TEXTS)
    positions = read_bos_index(folder / "dataset.bin", len(byte_stream(TEXTS)))
    assert positions is not None
    assert positions.tolist() == [k for k, i in enumerate(byte_stream(TEXTS)) if i == 256]
    manifest = read_corpus_manifest(folder)
    assert manifest == result.manifest
    assert (manifest.documents, manifest.tokens, manifest.bad_rows) == (60, len(byte_stream(TEXTS)), 6)
    assert manifest.tokenizer == load_tokenizer(folder / "tokenizer").describe()
    assert (manifest.eot, manifest.dtype, manifest.layout) == ("prepend", "uint16", "bin")
    assert result.bad_rows[0] == "rows.jsonl:11: malformed JSON"
    assert result.bad_rows[1] == "rows.jsonl:22: no text key"
    assert result.bad_rows[4] == "rows.jsonl:55: lone surrogate"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "dataset.bin",
        "dataset.bos.idx",
        "manifest.json",
        "tokenizer",
    ]
    text = (folder / "manifest.json").read_text()
    assert str(tmp_path) not in text and "rows.jsonl" in text


def test_strict_stops_at_the_first_bad_row(tmp_path: Path, rows: str) -> None:
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"bad row rows\.jsonl:11: malformed JSON"):
            run(tmp_path, dataset=rows, strict=True, num_workers=workers, chunk_size=1)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "in_workers"),
    [
        ({}, False),
        ({"max_tokens": 1234, "shard_tokens": 100, "val_fraction": 0.3}, True),
        ({"max_tokens": 1500, "val_tokens": 300, "eot": "append", "format": "raw"}, False),
        ({"shuffle": True, "val_fraction": 0.2, "max_tokens": 2000, "shard_tokens": 300}, True),
        ({"tokenizer": "char", "val_fraction": 0.1}, False),
    ],
    ids=["plain", "sharded-val", "raw-val-tokens", "shuffled", "char"],
)
def test_bytes_are_the_same_for_any_workers_and_chunk_size(
    tmp_path: Path, rows: str, options: dict, in_workers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = functools.partial(run, tmp_path, dataset=rows, **options)
    again("out")
    check_same_bytes(tmp_path / "out", monkeypatch, again, in_workers=in_workers, workers="num_workers")


@pytest.mark.parametrize("wanted", [1, 2, 100, 101, 999, 1000])
def test_max_tokens_is_exact(tmp_path: Path, rows: str, wanted: int) -> None:
    manifest = run(tmp_path, dataset=rows, max_tokens=wanted, shard_tokens=100).manifest
    assert manifest is not None and manifest.tokens == wanted
    stream = np.concatenate([tokens_of(tmp_path / "out" / f.name) for f in manifest.token_files("train")])
    assert stream.tolist() == byte_stream(TEXTS)[:wanted]
    names = [file.name for file in manifest.token_files("train")]
    assert names == ["dataset.bin", *(f"dataset_{k:05d}.bin" for k in range(1, -(-wanted // 100)))]


def test_shards_and_their_indexes(tmp_path: Path, rows: str) -> None:
    manifest = run(tmp_path, dataset=rows, shard_tokens=97).manifest
    assert manifest is not None
    positions, base = [], 0
    for file in manifest.token_files("train"):
        found = read_bos_index(tmp_path / "out" / file.name, file.tokens)
        assert found is not None and len(found) == file.documents
        positions += [base + int(p) for p in found]
        base += file.tokens
    assert positions == [k for k, i in enumerate(byte_stream(TEXTS)) if i == 256]
    assert sum(file.documents for file in manifest.token_files()) == manifest.documents == 60


def split_texts(folder: Path, split: str, eot: str = "prepend") -> list[str]:
    manifest = read_corpus_manifest(folder)
    ids = np.concatenate([tokens_of(folder / f.name) for f in manifest.token_files(split)])  # type: ignore[arg-type]
    parts: list[list[int]] = [[]]
    for token in ids.tolist():
        if token == 256:
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [bytes(part).decode(errors="ignore") for part in parts]
    return texts[1:] if eot == "prepend" else texts[:-1]


def test_validation_fraction_divides_documents(tmp_path: Path, rows: str) -> None:
    run(tmp_path, dataset=rows, val_fraction=0.3)
    train, val = split_texts(tmp_path / "out", "train"), split_texts(tmp_path / "out", "val")
    assert sorted(train + val) == sorted(TEXTS) and 6 <= len(val) <= 30
    assert train == [text for text in TEXTS if text in train]  # order kept
    run(tmp_path, "other", dataset=rows, val_fraction=0.3, seed=7)
    assert split_texts(tmp_path / "other", "val") != val


def test_val_tokens_are_exact_and_no_text_is_in_both(tmp_path: Path, rows: str) -> None:
    for total, wanted in ((3000, 500), (2000, 1999), (600, 100)):
        name = f"out{total}"
        manifest = run(tmp_path, name, dataset=rows, max_tokens=total, val_tokens=wanted).manifest
        assert manifest is not None
        assert sum(f.tokens for f in manifest.token_files("val")) == wanted
        assert sum(f.tokens for f in manifest.token_files("train")) == total - wanted
        train, val = split_texts(tmp_path / name, "train"), split_texts(tmp_path / name, "val")
        assert not set(train) & set(val)
        assert all(any(text.startswith(part) for text in TEXTS) for part in train + val)
    manifest = run(tmp_path, "all", dataset=rows, val_tokens=700).manifest
    assert manifest is not None and sum(f.tokens for f in manifest.token_files("val")) == 700


def test_raw_format_is_headerless_with_eot_after(tmp_path: Path, rows: str) -> None:
    manifest = run(tmp_path, dataset=rows, format="raw", val_fraction=0.3).manifest
    assert manifest is not None and (manifest.layout, manifest.eot) == ("raw", "append")
    train = np.fromfile(tmp_path / "out/train.bin", dtype=np.uint16)
    val = np.fromfile(tmp_path / "out/val.bin", dtype=np.uint16)
    assert len(train) + len(val) == len(byte_stream(TEXTS)) and train[-1] == val[-1] == 256
    assert split_texts(tmp_path / "out", "val", "append")[0] in TEXTS
    positions = read_bos_index(tmp_path / "out/train.bin", len(train))
    assert positions is not None and positions[0] == 0
    assert (train[positions[1:] - 1] == 256).all()


def test_shuffle_is_a_permutation_that_only_the_seed_decides(tmp_path: Path, rows: str) -> None:
    run(tmp_path, "a", dataset=rows, shuffle=True)
    run(tmp_path, "b", dataset=rows, shuffle=True, seed=1)
    a, b = split_texts(tmp_path / "a", "train"), split_texts(tmp_path / "b", "train")
    assert sorted(a) == sorted(b) == sorted(TEXTS) and a != b and a != TEXTS
    run(tmp_path, "c", dataset=rows, shuffle=True, max_tokens=1000)  # a sample of all documents
    some, everything = (tokens_of(tmp_path / name / "dataset.bin").tolist() for name in "ca")
    assert some == everything[:1000]


def test_the_same_documents_validate_with_and_without_a_shuffle(tmp_path: Path, rows: str) -> None:
    for name, shuffle in (("plain", False), ("mixed", True)):
        run(tmp_path, name, dataset=rows, val_fraction=0.3, shuffle=shuffle)
    plain, mixed = (split_texts(tmp_path / name, "val") for name in ("plain", "mixed"))
    assert sorted(plain) == sorted(mixed) and plain != mixed


def test_buckets_of_tokens_are_not_continued(tmp_path: Path, rows: str) -> None:
    """What a version left that shuffled tokens instead of text: it begins anew, and ends with the same bytes."""
    run(tmp_path, "whole", dataset=rows, shuffle=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorpusWriter, "feed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, dataset=rows, shuffle=True)
    for path in (tmp_path / "out/.shuffle/gathered").iterdir():
        path.rename(tmp_path / "out/.shuffle" / path.name)
    (tmp_path / "out/.shuffle/gathered").rmdir()
    assert not run(tmp_path, dataset=rows, shuffle=True).continued
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_single_text_gives_its_tail_as_nanogpt_does(tmp_path: Path) -> None:
    """nanoGPT's shakespeare and shakespeare_char: 90 % of the characters, then the rest."""
    text = "".join(TEXTS)
    (tmp_path / "input.txt").write_text(text)
    border = int(len(text) * 0.9)
    dataset = str(tmp_path / "input.txt")
    run(tmp_path, "bytes", dataset=dataset, val_fraction=0.1, eot="none", format="raw")
    assert (tmp_path / "bytes/train.bin").read_bytes() == np.frombuffer(text[:border].encode(), np.uint8).astype(
        "<u2"
    ).tobytes()
    assert np.fromfile(tmp_path / "bytes/val.bin", "<u2").tolist() == list(text[border:].encode())
    run(tmp_path, "chars", dataset=dataset, val_fraction=0.1, format="raw", tokenizer="char")
    stoi = {c: k for k, c in enumerate(sorted(set(text)))}
    for name, part in (("train", text[:border]), ("val", text[border:])):
        expected = np.array([stoi[c] for c in part], dtype="<u2").tobytes()
        assert (tmp_path / f"chars/{name}.bin").read_bytes() == expected
    meta = pickle.loads((tmp_path / "chars/meta.pkl").read_bytes())
    assert meta["stoi"] == stoi and meta["vocab_size"] == len(stoi) and meta["itos"][0] == min(stoi)
    assert any(f.name == "meta.pkl" for f in read_corpus_manifest(tmp_path / "chars").files)


def test_single_text_with_exact_amounts(tmp_path: Path) -> None:
    text = "".join(TEXTS)
    (tmp_path / "input.txt").write_text(text)
    stream = byte_stream([text])
    dataset = str(tmp_path / "input.txt")
    for options, total, in_val in (
        ({"val_tokens": 200}, len(stream), 200),
        ({"val_tokens": 200, "max_tokens": 1000}, 1000, 200),
        ({"val_fraction": 0.25, "max_tokens": 1000}, 1000, 250),
    ):
        run(tmp_path, "out", dataset=dataset, overwrite=True, **options)
        assert tokens_of(tmp_path / "out/dataset.bin").tolist() == stream[: total - in_val]
        assert tokens_of(tmp_path / "out/val.bin").tolist() == stream[total - in_val : total]
        assert read_bos_index(tmp_path / "out/val.bin", in_val).tolist() == [0]  # type: ignore[union-attr]


def test_one_huge_text_uses_all_workers_and_keeps_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The quick brown fox jumps over the lazy dog, isn't it? " * 400
    (tmp_path / "input.txt").write_text(text)
    run(tmp_path, "whole", dataset=str(tmp_path / "input.txt"))
    monkeypatch.setattr("automodel_cli.corpus.documents.source.BYTES_PER_DOCUMENT", 512)
    run(tmp_path, "pieces", dataset=str(tmp_path / "input.txt"), chunk_size=1, num_workers=2)
    assert content(tmp_path / "pieces") == content(tmp_path / "whole")
    run(tmp_path, "raw", dataset=str(tmp_path / "input.txt"), chunk_size=1, eot="append", format="raw")
    ids = np.fromfile(tmp_path / "raw/train.bin", "<u2").tolist()
    assert ids == [*text.encode(), 256]
    run(tmp_path, "shuffled", dataset=str(tmp_path / "input.txt"), chunk_size=1, shuffle=True)
    assert tokens_of(tmp_path / "shuffled/dataset.bin").tolist() == byte_stream([text])


def test_a_finished_corpus_is_left_alone_and_another_plan_refused(tmp_path: Path, rows: str) -> None:
    run(tmp_path, dataset=rows, max_tokens=500)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = run(tmp_path, dataset=rows, max_tokens=500, num_workers=2)
    assert again.already_complete and again.manifest is not None and again.manifest.tokens == 500
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ConfigError, match="max_tokens 500 -> 600"):
        run(tmp_path, dataset=rows, max_tokens=600)
    run(tmp_path, dataset=rows, max_tokens=600, overwrite=True)
    assert len(tokens_of(tmp_path / "out/dataset.bin")) == 600
    (tmp_path / "out/dataset.bin").unlink()
    with pytest.raises(DataError, match=r"dataset\.bin is missing"):
        run(tmp_path, dataset=rows, max_tokens=600)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "dataset.bin",
        "val.bos.idx",
        "dataset_00007.bin.tmp",
        "manifest.json",
        "progress.json",
        "tokenizer/tokenizer.json",
        ".shuffle/notes",
        "meta.pkl",
    ],
)
def test_what_others_made_is_neither_replaced_nor_removed(
    tmp_path: Path, rows: str, name: str, overwrite: bool
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    tokenizer = "char" if name == "meta.pkl" else "byte"
    with pytest.raises(ConfigError, match=r"but no manifest of ours"):
        run(tmp_path, dataset=rows, overwrite=overwrite, tokenizer=tokenizer, eot="none")
    assert content(tmp_path / "out").items() <= {name: b"precious", ".lock": b""}.items()


def test_overwrite_replaces_what_was_made_here_and_nothing_else(tmp_path: Path, rows: str) -> None:
    """Whatever is added to a corpus of ours, under names that this run does not write, stays."""
    run(tmp_path, dataset=rows, max_tokens=500)
    others = ["notes.txt", "train.bin", "meta.pkl", "dataset.bin.bak", "tokenizer/notes"]
    for name in others:
        (tmp_path / "out" / name).write_bytes(b"precious")
    run(tmp_path, dataset=rows, max_tokens=600, overwrite=True)
    assert all((tmp_path / "out" / name).read_bytes() == b"precious" for name in others)
    assert not {"train.bin", "tokenizer/notes"} & {f.name for f in read_corpus_manifest(tmp_path / "out").files}
    with pytest.raises(ConfigError, match=r"train\.bin but no manifest"):
        run(tmp_path, dataset=rows, format="raw", overwrite=True)
    assert read_corpus_manifest(tmp_path / "out").tokens == 600


@pytest.mark.parametrize("name", ["dataset.bin", "dataset.bin.automodel.tmp", "tokenizer", ".shuffle"])
def test_links_are_not_written_through(tmp_path: Path, rows: str, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0000.0.docs").write_bytes(b"precious")
    target = elsewhere if name in ("tokenizer", ".shuffle") else elsewhere / "0000.0.docs"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(target)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="but no manifest of ours"):
            run(tmp_path, dataset=rows, overwrite=overwrite, shuffle=True)
    assert content(elsewhere) == {"0000.0.docs": b"precious"}


def test_a_manifest_that_names_files_elsewhere_removes_none(tmp_path: Path, rows: str) -> None:
    run(tmp_path, dataset=rows)
    out = tmp_path / "out"
    (tmp_path / "canary").write_bytes(b"precious")
    (out / "canary").write_bytes(b"precious")
    body = json.loads((out / "manifest.json").read_text())
    del body["self"]
    for name in ("../canary", str(tmp_path / "canary"), "canary"):
        entry = {**body["files"][0], "name": name}
        write_manifest(out / "manifest.json", {**body, "files": [*body["files"], entry]})
        run(tmp_path, dataset=rows, overwrite=True)
        assert (tmp_path / "canary").read_bytes() == (out / "canary").read_bytes() == b"precious"


def test_a_source_without_text_leaves_a_tokenizer_that_was_there(tmp_path: Path, rows: str) -> None:
    cfg = TokenizerTrainConfig(dataset=rows, output_dir=str(tmp_path / "out/tokenizer"), vocab_size=290)
    train_tokenizer.run(cfg, progress=lambda event: None, say=lambda line: None)
    before = content(tmp_path / "out/tokenizer")
    (tmp_path / "nothing.jsonl").write_text("")
    options = {"dataset": str(tmp_path / "nothing.jsonl"), "tokenizer": str(tmp_path / "out/tokenizer")}
    with pytest.raises(DataError, match="holds no text"):
        run(tmp_path, **options)
    assert content(tmp_path / "out/tokenizer") == before


def test_second_writer_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "out").mkdir()
    with (
        exclusive_lock(tmp_path / "out/.lock", busy="busy"),
        pytest.raises(AutomodelError, match="another process is writing"),
    ):
        run(tmp_path, dataset=rows)
    run(tmp_path, dataset=rows)


def test_dry_run_writes_nothing(tmp_path: Path, rows: str) -> None:
    lines: list[str] = []
    cfg = PreprocessNanogptConfig(
        dataset=rows,
        tokenizer="byte",
        output_dir=str(tmp_path / "out"),
        dry_run=True,
        max_tokens=1000,
        val_tokens=10,
    )
    result = preprocess.run(cfg, progress=lambda event: None, say=lines.append)
    assert result.manifest is None and not (tmp_path / "out").exists()
    assert any("exactly 1,000 tokens" in line for line in lines) and any("val.bin" in line for line in lines)
    assert any(line.startswith("would read 1 file, ") and line.endswith("rows.jsonl") for line in lines)


def test_default_folder_is_named_as_the_guide_names_it(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path, dataset=rows, output_dir=None, max_tokens="1K")
    assert (tmp_path / "rows_max_tokens_1K/dataset.bin").exists()
    run(tmp_path, dataset=rows, output_dir=None)
    assert (tmp_path / "rows_all_tokens/dataset.bin").exists()


def test_nothing_to_read_is_an_error(tmp_path: Path, rows: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(BAD) + b"\n")
    with pytest.raises(DataError, match=r"holds no text \(5 bad rows; first: bad\.jsonl:1: malformed JSON\)"):
        run(tmp_path, dataset=str(tmp_path / "bad.jsonl"))
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(DataError, match="fell into the validation split"):
        run(tmp_path, "other", dataset=rows, val_fraction=1e-9)


def test_a_reader_error_is_an_error_not_a_short_file(tmp_path: Path, rows: str) -> None:
    import gzip

    whole = gzip.compress(Path(rows).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    for workers in (1, 2):
        with pytest.raises(DataError, match="damaged or cut off"):
            run(tmp_path, dataset=str(tmp_path / "cut.jsonl.gz"), num_workers=workers)
    assert not list((tmp_path / "out").glob("*.bin")) and not (tmp_path / "out/manifest.json").exists()


def test_tokenizers_without_end_of_text(tmp_path: Path, rows: str) -> None:
    with pytest.raises(ConfigError, match="no end-of-text token to prepend"):
        run(tmp_path, dataset=rows, tokenizer="char", eot="prepend")


def test_hugging_face_and_trained_tokenizers(tmp_path: Path, rows: str) -> None:
    from automodel_cli.corpus.tokenizers.train_bpe import train_bpe

    tokenizer = train_bpe(TEXTS, 300, name="tiny")
    tokenizer.save(tmp_path / "tiny")
    for name, engine, workers in (("a", "auto", 2), ("b", "reference", 1)):
        settings = {"tokenizer": str(tmp_path / "tiny"), "num_workers": workers, "engine": engine}
        run(tmp_path, name, dataset=rows, **settings)
    expected = [i for text in TEXTS for i in (0, *tokenizer.encode(text))]
    assert tokens_of(tmp_path / "a/dataset.bin").tolist() == expected
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert read_corpus_manifest(tmp_path / "a").tokenizer["name"] == "tiny"


def test_a_tokenizer_that_lies_in_the_output_folder_already(tmp_path: Path, rows: str) -> None:
    folder = tmp_path / "out/tokenizer"
    cfg = TokenizerTrainConfig(dataset=rows, output_dir=str(folder), vocab_size=290)
    train_tokenizer.run(cfg, progress=lambda event: None, say=lambda line: None)
    before = content(folder)
    manifest = run(tmp_path, dataset=rows, tokenizer=str(folder)).manifest
    assert manifest is not None and content(folder) == before
    names = [file.name for file in manifest.files if file.role == "tokenizer"]
    assert names == [f"tokenizer/{name}" for name in sorted(before) if name != ".lock"]


def test_special_text_stays_text(tmp_path: Path) -> None:
    from automodel_cli.corpus.tokenizers.train_bpe import train_bpe

    train_bpe(TEXTS, 300).save(tmp_path / "tiny")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a<|endoftext|>b"}))
    run(tmp_path, dataset=str(tmp_path / "a.jsonl"), tokenizer=str(tmp_path / "tiny"))
    ids = tokens_of(tmp_path / "out/dataset.bin").tolist()
    assert ids.count(0) == 1 and load_tokenizer(tmp_path / "tiny").decode(ids[1:]) == "a<|endoftext|>b"


def test_a_wrong_fast_engine_is_found_and_the_run_starts_over(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from automodel_cli.corpus.tokenizer import ByteTokenizer

    class Wrong:
        name = "wrong"

        def encode(self, text: str) -> np.ndarray:
            found = np.frombuffer(text.encode(), np.uint8)
            return found[:-1] if "document 41" in text else found

    run(tmp_path, "right", dataset=rows, shard_tokens=100)
    monkeypatch.setattr(ByteTokenizer, "_fast_engine", lambda self: Wrong())
    monkeypatch.setattr("automodel_cli.corpus.tokenizers.engines.SAMPLE_ONE_IN", 1)
    lines: list[str] = []
    cfg = PreprocessNanogptConfig(
        dataset=rows, tokenizer="byte", output_dir=str(tmp_path / "out"), num_workers=1, shard_tokens=100
    )
    preprocess.run(cfg, progress=lambda event: None, say=lines.append)
    assert any("starting over with the reference engine" in line for line in lines)
    assert content(tmp_path / "out") == content(tmp_path / "right")


def test_the_whole_run_leaves_torch_and_transformers_out(tmp_path: Path, rows: str) -> None:
    code = (
        "import sys\n"
        "from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig as C\n"
        "from automodel_cli.recipes.preprocess import nanogpt as preprocess\n"
        f"cfg = C(dataset={rows!r}, tokenizer='byte', output_dir={str(tmp_path / 'out')!r}, num_workers=2)\n"
        "preprocess.run(cfg, progress=lambda event: None, say=print)\n"
        "print('heavy', sorted(set(sys.modules) & {'torch', 'transformers', 'datasets', 'pyarrow'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy []" in done.stdout


def test_a_source_without_text_leaves_nothing_to_continue(tmp_path: Path, rows: str) -> None:
    (tmp_path / "nothing.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no text"):
        run(tmp_path, dataset=str(tmp_path / "nothing.jsonl"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    run(tmp_path, dataset=rows)
    assert tokens_of(tmp_path / "out/dataset.bin").tolist() == byte_stream(TEXTS)


class Killed(BaseException):
    """Stands for a signal that nobody can catch."""


@pytest.mark.parametrize("options", [{"shuffle": True}, {"overwrite": True, "shuffle": True}])
def test_killed_while_it_cleans_up(
    tmp_path: Path, rows: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever file it stops, the same command ends with the same folder, and nothing of ours stays behind."""
    run(tmp_path, "whole", dataset=rows, **options)
    whole, out = content(tmp_path / "whole"), tmp_path / "out"
    unlink, stops = Path.unlink, 0
    for number in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        if options.get("overwrite"):
            run(tmp_path, dataset=rows, val_fraction=0.5)
        calls = itertools.count(1)

        def counted(path: Path, missing_ok: bool = False, calls=calls, number=number) -> None:
            if next(calls) == number:
                raise Killed
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", counted)
        try:
            run(tmp_path, dataset=rows, **options)
            break
        except Killed:
            stops += 1
        finally:
            monkeypatch.setattr(Path, "unlink", unlink)
        run(tmp_path, dataset=rows, **options)
        assert content(out) == whole and not (out / ".shuffle").exists(), number
    assert stops > 5


# ------------------------------------------------------------------------------------------ the separator


@pytest.fixture
def two_ends(tmp_path: Path) -> str:
    """A tokenizer whose beginning-of-text is not its end-of-text, as Llama's."""
    from automodel_cli.corpus.tokenizers.train_bpe import train_bpe

    folder = tmp_path / "two"
    train_bpe(TEXTS, 300, name="two").save(folder)
    body = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": 300, "content": "<s>", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    body["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(body))
    config = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "automodel_tokenizer.json").unlink()
    return str(folder)


def test_beginning_of_text_where_the_tokenizer_has_its_own(tmp_path: Path, rows: str, two_ends: str) -> None:
    """As NeMo's tool: the tokenizer's own ``bos_token`` before each document, here told by transformers."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(two_ends)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (300, 0)
    first = {
        (None, "bin"): theirs.bos_token_id,
        ("bos", "bin"): theirs.bos_token_id,
        ("eos", "bin"): theirs.eos_token_id,
    }
    for (separator, form), expected in first.items():
        made = run(tmp_path, f"{separator}", dataset=rows, tokenizer=two_ends, separator=separator, format=form)
        assert made.manifest is not None and made.manifest.separator_id == expected
        assert made.manifest.separator == ("eos" if expected == 0 else "bos")
        tokens = tokens_of(tmp_path / f"{separator}/dataset.bin")
        stream = [i for text in TEXTS for i in (expected, *theirs(text, add_special_tokens=False)["input_ids"])]
        assert tokens.tolist() == stream
        report = verify.run(VerifyConfig(path=str(tmp_path / f"{separator}")), progress=lambda *_: None)
        assert report.problems == []
    run(tmp_path, "raw", dataset=rows, tokenizer=two_ends, format="raw")  # nanoGPT's: end-of-text after
    assert np.fromfile(tmp_path / "raw/train.bin", "<u2")[-1] == 0
    with pytest.raises(ConfigError, match="separator bos -> None"):
        run(tmp_path, "bos", dataset=rows, tokenizer=two_ends, separator="eos")


def test_corpora_from_before_there_was_a_choice(tmp_path: Path, rows: str, two_ends: str) -> None:
    """Theirs is end-of-text; the same command still knows them, finished or not."""
    made = run(tmp_path, dataset=rows, tokenizer=two_ends, separator="eos")
    body = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "separator" not in body and "separator" not in body["options"]
    again = run(tmp_path, dataset=rows, tokenizer=two_ends)
    assert again.already_complete and again.manifest == made.manifest
    replaced = run(tmp_path, dataset=rows, tokenizer=two_ends, overwrite=True)
    assert replaced.manifest is not None and replaced.manifest.separator == "bos"


def test_one_token_for_both_ends_is_end_of_text(tmp_path: Path, rows: str) -> None:
    for separator in ("bos", "eos", None):
        run(tmp_path, str(separator), dataset=rows, separator=separator)
    assert content(tmp_path / "bos") == content(tmp_path / "eos") == content(tmp_path / "None")
