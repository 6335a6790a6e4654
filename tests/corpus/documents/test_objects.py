"""Text in object storage is the same documents as the same files on a disk, in the same units' order."""

import bz2
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.object_server import Faults

from automodel_cli.corpus.documents import listing
from automodel_cli.corpus.documents.inputs import announced
from automodel_cli.corpus.documents.listing import list_files, list_several
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.errors import DataError
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectChanged

BUCKET = "documents"


def rows(count, seed=0):
    draw = random.Random(seed)
    return [{"text": f"Document {n}: " + "word " * draw.randrange(1, 60) + "żółw"} for n in range(count)]


def lines(count, seed=0):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(count, seed)).encode()


@pytest.fixture
def tree(tmp_path):
    """Files of every kind, as they are found in the wild."""
    folder = tmp_path / "data"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.jsonl").write_bytes(lines(400))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(50, 1)))
    (folder / "sub" / "c.jsonl.zst").write_bytes(zstandard.compress(lines(70, 2)))
    (folder / "sub" / "d.ndjson").write_bytes(b"\xef\xbb\xbf" + lines(20, 3).rstrip(b"\n"))
    (folder / "sub" / "deep" / "e.jsonl.bz2").write_bytes(bz2.compress(lines(30, 4)))
    table = pa.table({"n": list(range(90)), "text": [row["text"] for row in rows(90, 5)]})
    pq.write_table(table, folder / "sub" / "f.parquet", row_group_size=20)
    (folder / ".hidden" / "g.jsonl").write_bytes(lines(3))
    (folder / ".h.jsonl").write_bytes(lines(3))
    (folder / "readme.txt").write_text("A text.")
    (folder / "x[1].jsonl").write_bytes(lines(4, 6))
    return folder


@pytest.fixture
def bucket(object_server, tree):
    url = object_server.bucket(BUCKET)
    store = open_store(url)
    for path in tree.rglob("*"):
        if path.is_file():
            store.upload(f"{url}/data/{path.relative_to(tree).as_posix()}", path)
    object_server.requests.clear()
    return f"{url}/data"


def documents(dataset, chunk_documents=1, **options):
    source = FileSource(dataset, ReadOptions(**options))
    return [
        text
        for unit in announced(source.units(None, chunk_documents))
        for text in read_unit(unit, source.options).texts
    ]


PATTERNS = [
    "",
    "/*.jsonl",
    "/**/*.jsonl*",
    "/sub/**",
    "/**/c.*",
    "/sub/?.*",
    "/a.jsonl",
    "/sub",
    "/x[1].jsonl",
    "/.*.jsonl",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_files_and_documents(bucket, tree, pattern):
    here, there = list_files(f"{tree}{pattern}"), list_files(f"{bucket}{pattern}")
    facts = [[(f.name, f.kind, f.compression, f.bytes) for f in found.files] for found in (here, there)]
    assert facts[0] == facts[1] and facts[0]
    assert documents(f"{tree}{pattern}") == documents(f"{bucket}{pattern}")


def test_the_same_description_and_another_identity(bucket, tree, object_server):
    here, there = (FileSource(f"{base}/**/*.jsonl", ReadOptions()) for base in (tree, bucket))
    assert here.describe() == there.describe() and here.total_bytes == there.total_bytes
    before = FileSource(f"{bucket}/a.jsonl", ReadOptions()).identity()
    assert before == FileSource(f"{bucket}/a.jsonl", ReadOptions()).identity()
    open_store(bucket).put(f"{bucket}/a.jsonl", lines(400, 9))
    assert before != FileSource(f"{bucket}/a.jsonl", ReadOptions()).identity()


def test_units_go_on_from_any_cursor(bucket):
    source = FileSource(bucket, ReadOptions())
    units = list(source.units(None, 1))
    texts = [read_unit(unit, source.options).texts for unit in units]
    for number in range(0, len(units), 5):
        rest = [read_unit(unit, source.options).texts for unit in source.units(units[number].cursor, 1)]
        assert [text for some in rest for text in some] == [text for some in texts[number:] for text in some]


@pytest.mark.parametrize("document", ["file", "line", "\n\n"])
def test_texts(object_server, tmp_path, document):
    url, folder = object_server.bucket(BUCKET), tmp_path / "texts"
    folder.mkdir()
    draw = random.Random(1)
    for number in range(12):
        words = [draw.choice(["alpha", "beta", "żółw", "\n", "\n\n", " "]) for _ in range(4000 if number == 3 else 40)]
        (folder / f"{number}.txt").write_text(" ".join(words))
        open_store(url).upload(f"{url}/texts/{number}.txt", folder / f"{number}.txt")
    assert documents(f"{url}/texts", document=document) == documents(str(folder), document=document) != []


def test_small_files_are_read_by_whoever_works_on_them(object_server):
    """Listing looks at names alone where there are many, and cutting small files reads nothing."""
    url = object_server.bucket(BUCKET)
    for number in range(80):
        open_store(url).put(f"{url}/many/{number:03}.jsonl", lines(2, number))
    object_server.requests.clear()
    source = FileSource(f"{url}/many/*.jsonl", ReadOptions())
    units = list(source.units(None, 8))
    assert len(units) == 80 and len(object_server.requests) <= 4
    texts = [text for unit in units for text in read_unit(unit, source.options).texts]
    assert texts == [row["text"] for number in range(80) for row in rows(2, number)]


def test_a_wrong_name_among_many_is_found_when_it_is_read(object_server, monkeypatch):
    url = object_server.bucket(BUCKET)
    monkeypatch.setattr(listing, "_MOST_LOOKED_AT", 1)
    for name, data in [("a.jsonl", lines(2)), ("b.jsonl", gzip.compress(lines(2)))]:
        open_store(url).put(f"{url}/{name}", data)
    with pytest.raises(DataError, match=r"b.jsonl is compressed \(gz\), and its name does not say so"):
        documents(url)


def test_an_object_that_changes_after_it_was_listed_is_an_error(bucket, tmp_path):
    source = FileSource(f"{bucket}/*.jsonl", ReadOptions())
    unit = next(source.units(None, 1))
    open_store(bucket).put(f"{bucket}/a.jsonl", lines(400, 7))
    with pytest.raises(ObjectChanged, match=r"a.jsonl is not what it was"):
        read_unit(unit, source.options)
    pq.write_table(pa.table({"text": [random.Random(n).randbytes(500).hex() for n in range(200)]}), tmp_path / "f")
    open_store(bucket).upload(f"{bucket}/sub/f.parquet", tmp_path / "f")
    parquet = FileSource(f"{bucket}/sub/f.parquet", ReadOptions())
    unit = next(parquet.units(None, 100))
    open_store(bucket).put(f"{bucket}/sub/f.parquet", b"PAR1")
    with pytest.raises(DataError, match="is not what it was"):
        read_unit(unit, parquet.options)


def test_parquet_is_read_by_ranges(object_server, tmp_path):
    url, path = object_server.bucket(BUCKET), tmp_path / "x.parquet"
    words = [random.Random(n).randbytes(3000).hex() for n in range(400)]
    table = pa.table({"text": [f"text {n}" for n in range(400)], "other": words})
    pq.write_table(table, path, row_group_size=100, compression="none")
    open_store(url).upload(f"{url}/x.parquet", path)
    sent = []
    read = open_store(url).read

    def counted(*args, **named):
        sent.append(len(data := read(*args, **named)))
        return data

    open_store(url).read = counted
    assert documents(f"{url}/x.parquet") == [f"text {n}" for n in range(400)]
    assert sum(sent) < path.stat().st_size / 10


def test_faults_of_the_network_change_nothing(bucket, tree, object_server):
    expected = documents(str(tree))
    object_server.faults = faults = Faults(errors=0.1, cuts=0.1, most=40, seed=5)
    assert documents(bucket) == expected
    assert faults.count >= 5


def test_several_urls_and_what_does_not_go_together(bucket, tree):
    names = ["sub/c.jsonl.zst", "a.jsonl", "a.jsonl"]
    here = list_several([f"{tree}/{name}" for name in names])
    there = list_several([f"{bucket}/{name}" for name in names])
    assert [file.name for file in here.files] == [file.name for file in there.files] == ["a.jsonl", "sub/c.jsonl.zst"]
    with pytest.raises(DataError, match="not one input"):
        list_several([f"{tree}/a.jsonl", f"{bucket}/b.jsonl.gz"])


def test_nothing_there(bucket):
    for name in ("none.jsonl", "none/*.jsonl", "none"):
        with pytest.raises(DataError, match=r"no object matches|no text of a known format"):
            list_files(f"{bucket}/{name}")


def test_a_file_url_is_its_path(tree):
    assert list_files(f"file://{tree}") == list_files(str(tree))
