"""preprocess verify: finds what is wrong and names the file; reads NeMo's and nanoGPT's files; shows documents."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import regex
from tests.token_files import write_token_file

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, VerifyConfig
from automodel_cli.corpus.formats.journal import Position, write_progress
from automodel_cli.corpus.formats.manifest import read_corpus_manifest
from automodel_cli.errors import DataError
from automodel_cli.files import write_manifest
from automodel_cli.recipes.preprocess import nanogpt as preprocess
from automodel_cli.recipes.preprocess import verify
from automodel_cli.recipes.preprocess.verify import VerifyReport


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files: what a power cut would leave is not the question here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def check(path: Path, **options: object) -> VerifyReport:
    return verify.run(VerifyConfig(path=str(path), **options), progress=lambda *_: None)  # type: ignore[arg-type]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": f"Document number {k}, é."}) for k in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    cfg = PreprocessNanogptConfig(
        dataset=str(tmp_path / "rows.jsonl"),
        tokenizer="byte",
        output_dir=str(tmp_path / "corpus"),
        val_fraction=0.2,
        shard_tokens=200,
        num_workers=1,
    )
    preprocess.run(cfg, progress=lambda event: None, say=lambda line: None)
    return tmp_path / "corpus"


def test_a_sound_corpus(corpus: Path) -> None:
    report = check(corpus)
    assert report.problems == [] and report.warnings == []
    manifest = read_corpus_manifest(corpus)
    assert report.hashed == len(manifest.files)
    assert [file.name for file in report.files] == [file.name for file in manifest.token_files()]
    text = "<|end|>".join(text for name, text in report.documents if name == "dataset.bin")
    assert regex.fullmatch(r"Document number \d+, é\.<\|end\|>Document number \d+, é\.", text)
    assert check(corpus / "manifest.json").problems == []


def test_one_file_of_a_corpus(corpus: Path) -> None:
    report = check(corpus / "dataset_00001.bin")
    assert report.problems == [] and report.hashed == 2
    path = corpus / "dataset_00001.bin"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert "was changed" in check(path).problems[0]


@pytest.mark.parametrize("name", ["manifest.json", "dataset.bin", "val.bos.idx", "tokenizer/automodel_tokenizer.json"])
def test_a_flipped_byte_is_found_and_named(corpus: Path, name: str) -> None:
    path = corpus / name
    data = bytearray(path.read_bytes())
    for position in (0, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        assert any(str(path) in problem for problem in check(corpus).problems), position


def test_missing_short_and_surplus_files(corpus: Path) -> None:
    (corpus / "val.bin").unlink()
    path = corpus / "dataset.bin"
    path.write_bytes(path.read_bytes()[:-2])
    write_token_file(corpus / "dataset_00099.bin", np.arange(5))
    report = check(corpus)
    assert any("val.bin is missing" in problem for problem in report.problems)
    assert any("dataset.bin is" in problem and "bytes long" in problem for problem in report.problems)
    assert any("dataset_00099.bin is not part of the corpus" in warning for warning in report.warnings)


def test_ids_beyond_the_vocabulary_and_wrong_counts(corpus: Path) -> None:
    """A manifest that was written anew over wrong files still gives itself away."""

    manifest = read_corpus_manifest(corpus)
    tokenizer = {**manifest.tokenizer, "vocab_size": 100}
    replace(manifest, tokenizer=tokenizer, tokens=manifest.tokens + 1).write()
    problems = check(corpus).problems
    assert any("token id 256, but the vocabulary ends at 99" in problem for problem in problems)
    assert any("its files sum to" in problem for problem in problems)


def test_an_index_that_points_beside_documents(corpus: Path) -> None:

    from automodel_cli.corpus.formats.manifest import describe_file

    manifest = read_corpus_manifest(corpus)
    positions = np.fromfile(corpus / "dataset.bos.idx", "<i4")
    (positions + 1).astype("<i4").tofile(corpus / "dataset.bos.idx")
    files = tuple(
        describe_file(corpus, f.name, f.role, f.split, tokens=f.tokens, documents=f.documents) for f in manifest.files
    )
    replace(manifest, files=files).write()
    assert any("does not point at the beginnings" in problem for problem in check(corpus).problems)


def test_files_of_other_tools(tmp_path: Path) -> None:
    """NeMo's (with its index in bytes instead of tokens), llm.c's legacy header, nanoGPT's headerless files."""
    tokens = [50256, 1, 2, 50256, 3, 4, 5]
    header = struct.pack("<4i", 278895051, 1, 7, 2).ljust(1024, b"\0")
    (tmp_path / "nemo.bin").write_bytes(header + struct.pack("<7H", *tokens))
    (tmp_path / "nemo.bos.idx").write_bytes(struct.pack("<2i", 1024, 1027))
    header = struct.pack("<4i", 20240520, 1, 7, 0).ljust(1024, b"\0")
    (tmp_path / "legacy.bin").write_bytes(header + struct.pack("<7H", *tokens))
    (tmp_path / "train.bin").write_bytes(struct.pack("<7H", *tokens))
    report = check(tmp_path)
    assert report.problems == []
    assert {(f.name, f.layout, f.tokens, f.largest_id) for f in report.files} == {
        ("nemo.bin", "nemo", 7, 50256),
        ("legacy.bin", "legacy", 7, 50256),
        ("train.bin", "raw", 7, 50256),
    }
    assert any("nemo.bos.idx" in warning for warning in report.warnings)
    (tmp_path / "nemo.bos.idx").write_bytes(struct.pack("<2i", 1, 3))  # in range, and wrong
    assert any("nemo.bos.idx" in warning for warning in check(tmp_path / "nemo.bin").warnings)
    assert check(tmp_path / "train.bin", raw_dtype="uint32").problems[0].startswith(str(tmp_path / "train.bin"))
    with_tokenizer = check(tmp_path / "train.bin", tokenizer="byte")
    assert "token id 50256, but the vocabulary ends at 256" in with_tokenizer.problems[0]


def test_a_killed_writer_of_nemo(tmp_path: Path) -> None:
    header = struct.pack("<4i", 278895051, 1, 0, 2).ljust(1024, b"\0")
    (tmp_path / "dataset.bin").write_bytes(header + b"\0" * 100)
    assert "says it holds 0 tokens" in check(tmp_path / "dataset.bin").problems[0]


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest"):
        check(tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        check(tmp_path / "x.bin")


def test_an_interrupted_corpus_is_not_called_sound(corpus: Path) -> None:
    """Its finished shards are whole, and still there is no corpus."""
    manifest = read_corpus_manifest(corpus)
    plan = {"options": manifest.options, "source": manifest.source, "tokenizer": manifest.tokenizer}
    write_progress(corpus, plan, Position())
    assert check(corpus).problems == []  # killed between the manifest and the end: all is here
    (corpus / "manifest.json").unlink()
    for path in (corpus, corpus / "dataset.bin"):
        assert any("of an interrupted run" in problem for problem in check(path).problems)
    for path in corpus.glob("*.bin"):
        path.unlink()
    assert any("of an interrupted run" in problem for problem in check(corpus).problems)


def test_a_manifest_that_lists_nothing_checks_nothing(corpus: Path) -> None:
    replace(read_corpus_manifest(corpus), files=(), tokens=0, documents=0).write()
    assert any("nothing was checked" in problem for problem in check(corpus).problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": -1}, "tokens: input should be greater than or equal to 0"),
        ({"documents": 10**30}, "documents: "),
        ({"bad_rows": "3"}, "bad_rows: input should be a valid integer"),
        ({"tokens": True}, "tokens: input should be a valid integer"),
        ({"dtype": "float64"}, "dtype: "),
        ({"files": [{"name": "x"}]}, "files"),
        ({"files": {}}, "files: "),
        ({"tokenizer": {}}, "tokenizer: name: Field required"),
        ({"tokenizer": {"name": "x", "fingerprint": "y", "vocab_size": -5}}, "tokenizer: vocab_size"),
        (
            {"tokenizer": {"name": "x", "fingerprint": "y", "vocab_size": 5, "eot_id": None, "bos_id": None}},
            "has no token for",
        ),
        ({"surprise": 1}, "'surprise' is not a key of this format"),
    ],
)
def test_a_manifest_that_lies_is_answered_in_two_lines(corpus: Path, change: dict, said: str) -> None:
    body = json.loads((corpus / "manifest.json").read_text())
    del body["self"]
    write_manifest(corpus / "manifest.json", {**body, **change})
    (problem,) = check(corpus).problems
    assert said in problem and str(corpus / "manifest.json") in problem and "\n" not in problem


@pytest.mark.parametrize("size", [10**15, 0])
def test_sizes_are_compared_with_the_bytes(corpus: Path, size: int) -> None:
    manifest = read_corpus_manifest(corpus)
    files = tuple(replace(file, bytes=size, tokens=size) for file in manifest.files)
    replace(manifest, files=files).write()
    assert any("bytes long, the manifest says" in problem for problem in check(corpus).problems)


def test_flipped_bytes_200_of_200(corpus: Path) -> None:
    """Spread evenly over all bytes of a corpus, whichever file they fall into."""
    paths = sorted(path for path in corpus.rglob("*") if path.is_file() and path.stat().st_size)
    ends = np.cumsum([path.stat().st_size for path in paths])
    for k in range(200):
        at = int(ends[-1]) * k // 200
        number = int(np.searchsorted(ends, at, side="right"))
        path, offset = paths[number], at - (int(ends[number - 1]) if number else 0)
        whole = path.read_bytes()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << k % 8]) + whole[offset + 1 :])
        assert any(str(path) in problem for problem in check(corpus).problems), (path, offset)
        path.write_bytes(whole)
    assert check(corpus).problems == []


def test_flipped_bits_in_sample_indices_and_megatron_pairs(tmp_path: Path) -> None:
    """One at a time all over the pair that a manifest lists and the indices of a run over it: each is found."""
    from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
    from automodel_cli.data.megatron_dataset import MegatronPretraining
    from automodel_cli.recipes.preprocess import megatron as preprocess_megatron

    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"Row {k}."}) for k in range(60)))
    cfg = PreprocessMegatronConfig(
        input=(str(tmp_path / "rows.jsonl"),),
        tokenizer="byte",
        output_prefix=str(tmp_path / "out" / "a"),
        workers=1,
    )
    preprocess_megatron.run(cfg, progress=lambda event: None, say=lambda line: None)
    MegatronPretraining(str(tmp_path / "out" / "a_0_text_document"), 16, index_names="megatron")
    assert check(tmp_path / "out").problems == []
    cache = tmp_path / "out" / "index_mapping"
    assert check(cache).problems == [] and check(cache).hashed == 4
    files = [*(tmp_path / "out").glob("a_0*"), *(p for p in cache.iterdir() if p.name != "index.lock")]
    assert len(files) == 7
    random = np.random.default_rng(0)
    for number in range(42):
        path = sorted(files)[number % len(files)]
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[random.integers(len(sound))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        assert check(tmp_path / "out").problems, path.name
        path.write_bytes(sound)
    assert check(tmp_path / "out").problems == []


@pytest.mark.parametrize("kind", ["text", "npy", "uint32", "safetensors"])
def test_files_that_hold_no_ids_are_not_sound(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train.bin"
    ids = np.random.default_rng(0).integers(0, 100_000, 3000)
    if kind == "text":
        path.write_text("Some words. " * 400)
    elif kind == "npy":
        with path.open("wb") as handle:
            np.save(handle, ids)
    elif kind == "uint32":
        ids.astype("<u4").tofile(path)
    else:
        path.write_bytes(struct.pack("<Q", 64) + b'{"a": 1}'.ljust(64) + bytes(1000))
    assert len(check(path).problems) == 1
    assert len(check(tmp_path).problems) == 1
    if kind in ("npy", "uint32"):
        assert check(path, raw_dtype=kind).problems == []


def test_a_file_without_tokens_is_not_called_sound(tmp_path: Path) -> None:
    (tmp_path / "e.bin").touch()
    assert check(tmp_path / "e.bin").problems == [f"{tmp_path / 'e.bin'} holds no tokens"]
