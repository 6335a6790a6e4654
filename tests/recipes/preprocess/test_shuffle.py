"""preprocess shuffle, whole: order against a plain reference, equal bytes however it is run, splits, duplicates."""

import errno
import gzip
import itertools
import json
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, VerifyConfig
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.documents.listing import list_files
from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.verify_report import VerifyReport
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest, read_documents_manifest
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import exclusive_lock, hash_file, write_manifest
from automodel_cli.recipes.preprocess import nanogpt as preprocess
from automodel_cli.recipes.preprocess import shuffle, verify
from automodel_cli.recipes.preprocess.shuffle import ShuffleResult

BAD = "not a row"


def make_rows(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    rows = []
    for k in range(count):
        text = "some words é漢 " * rng.randrange(12) + f"\n{rng.randrange(count)}"
        rows.append(json.dumps({"id": k, "text": text}, ensure_ascii=k % 3 == 0))
    return rows


FILES = {f"{name}.jsonl": make_rows(count, count) for name, count in (("b", 70), ("a", 120), ("c", 1))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files with blank and bad lines."""
    return write_files(tmp_path / "in")


def write_files(folder: Path, kind: str = "") -> Path:
    folder.mkdir()
    for name, rows in FILES.items():
        lines = [*rows[:10], "", BAD, *rows[10:]]
        data = "\n".join(lines).encode()
        if kind == ".gz":
            data = gzip.compress(data)
        elif kind == ".zst":
            data = zstandard.compress(data)
        (folder / (name + kind)).write_bytes(data)
    return folder


def key(seed: int, file: int, row: int) -> int:
    """The order as the documentation has it, in plain integers."""
    mask = 2**64 - 1
    mixed = (file << 40 | row) * 0x9E3779B97F4A7C15 + xxhash.xxh3_64_intdigest(f"shuffle:{seed}".encode()) & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return mixed ^ mixed >> 31


def in_order(seed: int = 42) -> list[tuple[int, str]]:
    """Key and row of everything that ``folder`` holds, sorted."""
    keyed = []
    for file, name in enumerate(sorted(FILES)):
        for k, row in enumerate(FILES[name]):
            keyed.append((key(seed, file, k + 2 * (k >= 10)), row))
    return sorted(keyed)


def run(dataset: Path | str, out: Path, **options: object) -> ShuffleResult:
    settings = {"num_workers": 1, "dataset": str(dataset), "output_dir": str(out), **options}
    said: list[str] = []
    result = shuffle.run(ShuffleConfig(**settings), progress=lambda event: None, say=said.append)  # type: ignore[arg-type]
    run.said = said  # type: ignore[attr-defined]
    return result


def lines(out: Path, split: str = "train") -> list[str]:
    manifest = read_documents_manifest(out)
    assert manifest is not None
    files = manifest.of_split(split)  # type: ignore[arg-type]
    found: list[str] = []
    for file in files:
        assert (out / file.name).stat().st_size == file.bytes and hash_file(out / file.name) == file.xxh3
        some = (out / file.name).read_text().splitlines(keepends=True) if file.bytes else []
        assert len(some) == file.documents and all(line.endswith("\n") for line in some)
        found += [line[:-1] for line in some]
    return found


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_order_bad_rows_and_manifest(tmp_path: Path, folder: Path) -> None:
    result = run(folder, tmp_path / "out")
    assert lines(tmp_path / "out") == [row for _, row in in_order()]
    assert result.bad_rows == [f"{name}.jsonl:12: not a JSON object" for name in "ab"] + [
        "c.jsonl:3: not a JSON object"
    ]
    manifest = read_documents_manifest(tmp_path / "out")
    assert manifest == result.manifest and manifest is not None
    assert (manifest.documents, manifest.bad_rows, manifest.duplicates) == (191, 3, None)
    assert sorted(content(tmp_path / "out")) == [".lock", "in.chunk.00000.jsonl", "manifest.json"]
    text = (tmp_path / "out/manifest.json").read_text()
    assert str(tmp_path) not in text and "memory" not in text and "workers" not in text
    assert lines(tmp_path / "out") != (run(folder, tmp_path / "other", seed=1), lines(tmp_path / "other"))[1]


WAYS = {
    "little memory": {"memory": 20_000},
    "very little memory": {"memory": 2000},
    "two workers": {"num_workers": 2, "memory": 100_000},
    "elsewhere": {"temp_dir": "temp"},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
def test_same_bytes_however_it_is_run(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    asked = {"val_fraction": 0.1, "chunks": 3, "dedup": True}
    run(folder, tmp_path / "whole", memory="1G", **asked)
    monkeypatch.setattr("automodel_cli.corpus.shuffle.scatter._LEAST_BLOCK_BYTES", 1)
    monkeypatch.setattr("automodel_cli.corpus.shuffle.scatter.BYTES_PER_DOCUMENT", 1)
    monkeypatch.setattr("automodel_cli.corpus.documents.source.BYTES_PER_DOCUMENT", 1)
    if "temp_dir" in options:
        options = {"temp_dir": str(tmp_path / "temp")}
    run(folder, tmp_path / "out", **asked, **options)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not list(tmp_path.glob("temp/*"))


def test_order_of_listing_does_not_matter(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, tmp_path / "whole")
    walk = os.walk

    def backwards(top: object) -> object:
        for parent, folders, names in walk(top):  # type: ignore[call-overload]
            yield parent, folders[::-1], sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    run(folder, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    run(f"{folder}/*.jsonl", tmp_path / "glob", name="in")
    assert lines(tmp_path / "glob") == lines(tmp_path / "whole")


@pytest.mark.parametrize(("kind", "workers"), [(".gz", 1), (".zst", 2)])
def test_compressed_files_give_the_same(tmp_path: Path, kind: str, workers: int) -> None:
    run(write_files(tmp_path / "packed", kind), tmp_path / "out", num_workers=workers)
    assert lines(tmp_path / "out") == [row for _, row in in_order()]


@pytest.mark.parametrize("workers", [1, 2])
def test_parquet_and_text_give_the_same_documents(tmp_path: Path, workers: int) -> None:
    for place in ("parquet", "lines"):
        (tmp_path / place).mkdir()
    for name, rows in FILES.items():
        values = [json.loads(row) for row in rows]
        texts = [None, None, *(value["text"] for value in values)]  # two bad rows
        ids = [0, 0, *(value["id"] for value in values)]
        table = pa.table({"id": ids, "text": texts, "more": [[1]] * len(ids)})
        pq.write_table(table, tmp_path / "parquet" / name.replace("jsonl", "parquet"), row_group_size=17)
    run(tmp_path / "parquet", tmp_path / "out", num_workers=workers, keep_columns="id,more", memory=50_000)
    keyed = []
    for file, name in enumerate(sorted(FILES)):
        for k, row in enumerate(FILES[name]):
            value = json.loads(row)
            keyed.append((key(42, file, k + 2), {"text": value["text"], "id": value["id"], "more": [1]}))
    found = [json.loads(line) for line in lines(tmp_path / "out")]
    assert found == [row for _, row in sorted(keyed, key=lambda pair: pair[0])]
    run(tmp_path / "parquet", tmp_path / "all", keep_columns="all")
    assert set(json.loads(lines(tmp_path / "all")[0])) == {"id", "text", "more"}
    run(tmp_path / "parquet", tmp_path / "plain", num_workers=workers)
    assert [json.loads(line) for line in lines(tmp_path / "plain")] == [{"text": row["text"]} for row in found]


def test_validation_is_a_prefix_and_never_in_both(tmp_path: Path, folder: Path) -> None:
    everything = [row for _, row in in_order()]
    run(folder, tmp_path / "n", val_documents=7, chunks=4)
    val, train = lines(tmp_path / "n", "val"), lines(tmp_path / "n")
    assert val == everything[:7] and train == everything[7:]
    assert len(val) + len(train) == 191
    run(folder, tmp_path / "f", val_fraction=0.25)
    below = [row for k, row in in_order() if k < 2**62]
    assert lines(tmp_path / "f", "val") == below and lines(tmp_path / "f") == everything[len(below) :]
    assert abs(len(below) - 48) < 25


def texts_of(rows: list[str]) -> list[str]:
    return [json.loads(row)["text"] for row in rows]


@pytest.mark.parametrize("options", [{}, {"memory": 5000}, {"num_workers": 2}])
def test_duplicates_against_a_plain_set(tmp_path: Path, options: dict[str, object]) -> None:
    rows = (
        make_rows(600, 5) + make_rows(600, 5)[::-1] + ['{"text": "\\u00e9"}', '{"text": "é", "other": 1}', '{"x": 1}']
    )
    seen: set[str] = set()
    first = []
    for k, row in enumerate(rows[:-1]):
        text = json.loads(row)["text"]
        if text not in seen:
            seen.add(text)
            first.append((key(3, 0, k), row))
    (tmp_path / "d.jsonl").write_text("\n".join(rows) + "\n")
    result = run(tmp_path / "d.jsonl", tmp_path / "out", dedup=True, seed=3, val_fraction=0.2, chunks=2, **options)
    val, train = lines(tmp_path / "out", "val"), lines(tmp_path / "out")
    assert val + train == [row for _, row in sorted(first)]
    assert not set(texts_of(val)) & set(texts_of(train))
    assert result.manifest is not None
    assert result.manifest.duplicates == len(rows) - 1 - len(first) and result.manifest.bad_rows == 1


def test_chunks(tmp_path: Path, folder: Path) -> None:
    run(folder, tmp_path / "n", chunks=10)
    manifest = read_documents_manifest(tmp_path / "n")
    assert manifest is not None
    assert [file.name for file in manifest.files] == [f"in.chunk.{k:05d}.jsonl" for k in range(10)]
    assert {file.documents for file in manifest.files} == {19, 20}
    run(folder, tmp_path / "s", chunk_size=900, val_documents=5)
    manifest = read_documents_manifest(tmp_path / "s")
    assert manifest is not None
    sizes = [(file.bytes, file.documents) for file in manifest.of_split("train")]
    assert all(size <= 900 or documents == 1 for size, documents in sizes) and len(sizes) > 15
    rest = lines(tmp_path / "s")
    assert rest == [row for _, row in in_order()][5:]
    assert all(size + after > 900 for (size, _), (after, _) in itertools.pairwise(sizes))


def test_complete_changed_overwritten(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, chunks=3)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(folder, out, chunks=3, memory="1G").already_complete
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ConfigError, match=r"made in another way: seed 42 -> 1"):
        run(folder, out, chunks=3, seed=1)
    (folder / "a.jsonl").write_text('{"text": "x"}\n' * 3)
    with pytest.raises(ConfigError, match="names_and_sizes"):
        run(folder, out, chunks=3)
    run(folder, out, chunks=2, seed=1, overwrite=True)
    assert sorted(content(out)) == [".lock", "in.chunk.00000.jsonl", "in.chunk.00001.jsonl", "manifest.json"]
    run(folder, out, name="other", overwrite=True)
    assert sorted(content(out)) == [".lock", "manifest.json", "other.chunk.00000.jsonl"]
    (out / "other.chunk.00000.jsonl").unlink()
    with pytest.raises(DataError, match="missing or has another size"):
        run(folder, out, name="other")


def test_what_others_left_is_not_touched(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "in.chunk.00007.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match="no manifest of ours"):
        run(folder, out)
    with pytest.raises(ConfigError, match="no manifest of ours"):
        run(folder, out, overwrite=True)
    assert (out / "in.chunk.00007.jsonl").read_text() == "mine\n"
    corpus = tmp_path / "corpus"
    preprocess.run(
        PreprocessNanogptConfig(dataset=str(folder), output_dir=str(corpus), tokenizer="byte", num_workers=1),
        progress=lambda event: None,
        say=lambda line: None,
    )
    before = content_of_files(corpus)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no manifest of ours"):
            run(folder, corpus, overwrite=overwrite)
    assert content_of_files(corpus) == before


@pytest.mark.parametrize("name", ["../canary.chunk.00000.jsonl", "/canary", "canary"])
def test_a_manifest_that_names_files_elsewhere_neither_reads_nor_removes_them(
    tmp_path: Path, folder: Path, name: str
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    name = str(tmp_path / "canary") if name == "/canary" else name
    canary = out / name
    canary.write_text('{"text": "precious"}\n')
    body = json.loads((out / "manifest.json").read_text())
    del body["self"]
    body["files"].append({**body["files"][0], "name": name})
    write_manifest(out / "manifest.json", body)
    with pytest.raises(DataError, match=r"manifest\.json"):
        list_files(str(out))
    run(folder, out, overwrite=True)
    assert canary.read_text() == '{"text": "precious"}\n'


def test_links_of_a_shuffled_folder_lead_nowhere(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    chunk = out / "in.chunk.00000.jsonl"
    secret = chunk.rename(tmp_path / "secret")
    chunk.symlink_to(secret)
    with pytest.raises(DataError, match="not a file of documents in this folder"):
        list_files(str(out))
    with pytest.raises(ConfigError, match="no manifest of ours"):
        run(folder, out, overwrite=True)
    assert secret.exists()


def test_verify_finds_what_was_changed(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, chunks=2, val_documents=5)

    def check() -> VerifyReport:
        return verify.run(VerifyConfig(path=str(out)), progress=lambda *_: None)

    assert check().problems == [] and check().hashed == 3
    for path in sorted(path for path in out.iterdir() if path.stat().st_size):
        whole = path.read_bytes()
        for at in (0, 25, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert any(str(path) in problem for problem in check().problems), (path, at)
        path.write_bytes(whole)
    (out / "in.val.jsonl").unlink()
    assert any("in.val.jsonl is missing" in problem for problem in check().problems)


def test_a_folder_that_is_called_as_ours_is_not_touched(tmp_path: Path, folder: Path) -> None:
    work = tmp_path / "out/.shuffle"
    work.mkdir(parents=True)
    (work / "notes").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no manifest of ours"):
            run(folder, tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in work.iterdir()] == ["notes"]


def content_of_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_killed_run_left_goes(tmp_path: Path, folder: Path) -> None:
    run(folder, tmp_path / "whole", chunks=2)
    out = tmp_path / "out"
    (out / ".shuffle/buckets").mkdir(parents=True)
    (out / ".shuffle/buckets/0000.1.rows").write_text("old")
    for name in ("in.chunk.00000.jsonl", "in.chunk.00005.jsonl.tmp", "manifest.json.tmp"):
        (out / name).write_text("old")
    run(folder, out, chunks=2)
    assert content(out) == content(tmp_path / "whole")
    (out / ".shuffle").mkdir()  # killed after the manifest
    assert run(folder, out, chunks=2).already_complete and not (out / ".shuffle").exists()


def test_input_and_output_must_not_overlap(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="the next run would read it"):
        run(folder, folder / "out")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        run(folder / "a.jsonl", folder)
    run(f"{folder}/*.jsonl", folder / "out")


def test_second_writer(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        exclusive_lock(tmp_path / "out/.lock", busy="busy"),
        pytest.raises(AutomodelError, match="another process is writing"),
    ):
        run(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 200}, "191 documents are too few for 200 chunks"),
        ({"val_documents": 191}, "too few"),
        ({"val_fraction": 0.000001}, "too few"),
        ({"strict": True}, r"bad row a\.jsonl:12: not a JSON object"),
        ({"dedup": True, "text_key": "no"}, "holds no documents"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(folder, tmp_path / "out", temp_dir=str(tmp_path / "temp"), **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert not list((tmp_path / "temp").iterdir())


def test_a_full_disk_while_writing_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = GrowingFile.sync

    def full(file: GrowingFile) -> None:
        if "chunk.00002" in file.target.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(GrowingFile, "sync", full)
    with pytest.raises(AutomodelError, match=r"no room left while writing .*in\.chunk\.00002\.jsonl"):
        run(folder, tmp_path / "out", chunks=3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_an_error_between_names_and_manifest_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DocumentsManifest, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", chunks=3, val_documents=4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_space_is_asked_for_before(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: object) -> object:
        return shutil._ntuple_diskusage(10**6, 10**6 - 10_000, 10_000)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(AutomodelError, match=r"shuffling needs .* [KMG]iB at .* are free"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dry_run_and_a_name_of_the_hub(tmp_path: Path, folder: Path) -> None:
    result = run(folder, tmp_path / "out", dry_run=True, val_fraction=0.1, chunks=4)
    assert result.manifest is None and not (tmp_path / "out").exists()
    said = "\n".join(run.said)  # type: ignore[attr-defined]
    assert "3 files" in said and "in.chunk.00003.jsonl" in said and "10.00% of the documents" in said
    with pytest.raises(DataError) as caught:
        run("HuggingFaceFW/fineweb-edu", tmp_path / "out")
    assert "hf download HuggingFaceFW/fineweb-edu" in caught.value.hint


def test_a_shuffled_folder_is_read_by_split(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, val_documents=5, chunks=3)
    assert [file.name for file in list_files(str(out)).files] == [f"in.chunk.{k:05d}.jsonl" for k in range(3)]
    assert [file.name for file in list_files(str(out), "val").files] == ["in.val.jsonl"]
    with pytest.raises(DataError, match="no documents of split 'test'"):
        list_files(str(out), "test")
    with pytest.raises(DataError, match="mixes training and validation"):
        list_files(f"{out}/*.jsonl")
    assert len(list_files(f"{out}/*.chunk.*.jsonl").files) == 3
    (out / "manifest.json").unlink()
    (out / ".shuffle").mkdir()
    with pytest.raises(DataError, match="interrupted shuffle"):
        list_files(str(out))


def nanogpt(dataset: Path, out: Path, **options: object) -> bytes:
    cfg = PreprocessNanogptConfig(
        dataset=str(dataset),
        output_dir=str(out),
        tokenizer="byte",
        num_workers=1,
        **options,  # type: ignore[arg-type]
    )
    preprocess.run(cfg, progress=lambda event: None, say=lambda line: None)
    return (out / "dataset.bin").read_bytes()


def test_tokens_shuffled_are_shuffled_documents_tokenised(tmp_path: Path, folder: Path) -> None:
    """Two roads to the same file, in two commands or one; also with little memory for the latter."""
    run(folder, tmp_path / "documents", seed=9, chunks=4)
    expected = nanogpt(tmp_path / "documents", tmp_path / "one")
    assert nanogpt(folder, tmp_path / "two", shuffle=True, seed=9) == expected
    assert nanogpt(folder, tmp_path / "three", shuffle=True, seed=9, shuffle_memory=3000, chunk_size=1) == expected
    assert nanogpt(folder, tmp_path / "four") != expected
