"""Which files a dataset argument means, in which order."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.corpus.documents.listing import dataset_name, is_local, list_files, list_several
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names_of(dataset: Path | str) -> list[str]:
    return [file.name for file in list_files(str(dataset)).files]


def test_folder_is_sorted_recursive_and_of_one_family(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.txt",
        "a/z.md",
        "a/b.py",
        "a.rst",
        ".hidden.txt",
        ".git/x.txt",
        "image.png",
        "__pycache__/x.py",
    )
    assert names_of(tmp_path) == ["a.rst", "a/b.py", "a/z.md", "b.txt"]
    assert "left out" in list_files(str(tmp_path)).note
    touch(tmp_path, "data/1.jsonl.gz", "data/0.parquet")
    assert names_of(tmp_path) == ["data/0.parquet", "data/1.jsonl.gz"]  # rows win over their README
    kinds = [(file.kind, file.compression) for file in list_files(str(tmp_path)).files]
    assert kinds == [("parquet", ""), ("jsonl", "gz")]


def test_json_counts_only_by_itself(tmp_path: Path) -> None:
    touch(tmp_path, "package.json", "main.py")
    assert names_of(tmp_path) == ["main.py"]
    (tmp_path / "main.py").unlink()
    assert names_of(tmp_path) == ["package.json"]


def test_glob_and_single_file(tmp_path: Path) -> None:
    touch(tmp_path, "x/2.txt", "x/10.txt", "y/1.txt", "y/1.weird")
    assert names_of(f"{tmp_path}/*/*.txt") == ["x/10.txt", "x/2.txt", "y/1.txt"]
    assert names_of(f"{tmp_path}/**/*") == ["x/10.txt", "x/2.txt", "y/1.txt", "y/1.weird"]
    assert names_of(tmp_path / "y/1.weird") == ["1.weird"]
    with pytest.raises(DataError, match="no file matches"):
        list_files(f"{tmp_path}/*.nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text file"):
        list_files(str(tmp_path / "empty"))


def test_hub_names_and_missing_paths(tmp_path: Path) -> None:
    assert not is_local("HuggingFaceFW/fineweb") and not is_local("wikitext")
    assert is_local(str(tmp_path)) and is_local("data/*.jsonl")
    for missing in ("data/corpus.jsonl", "./corpus", "/nowhere/at/all", "a/b/c", "x.txt.gz"):
        with pytest.raises(DataError, match="no file or folder"):
            is_local(missing)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("HuggingFaceFW/fineweb", "fineweb"),
        ("/data/tiny.jsonl.gz", "tiny"),
        ("books.parquet", "books"),
        ("/data/web/*.jsonl", "web"),
        ("./corpus/", "corpus"),
        ("v1.5", "v1.5"),
    ],
)
def test_names_for_folders(dataset: str, name: str) -> None:
    assert dataset_name(dataset) == name


def test_several_arguments_are_one_sorted_list(tmp_path: Path) -> None:
    touch(tmp_path, "x/2.txt", "x/1.txt", "y/1.txt")
    several = [f"{tmp_path}/y/*.txt", f"{tmp_path}/x", f"{tmp_path}/x/2.txt"]
    assert [file.name for file in list_several(several).files] == ["x/1.txt", "x/2.txt", "y/1.txt"]
    assert [file.name for file in list_several([f"{tmp_path}/x"]).files] == ["1.txt", "2.txt"]
    with pytest.raises(DataError, match="no file matches"):
        list_several([f"{tmp_path}/x", f"{tmp_path}/*.nothing"])


def test_several_links_keep_their_names_and_order(tmp_path: Path) -> None:
    """As the Hub's cache has it: names are links to files that are called by their hashes."""
    touch(tmp_path, "blobs/ff", "blobs/00")
    (tmp_path / "snapshot").mkdir()
    for name, blob in (("a.jsonl", "ff"), ("b.jsonl", "00"), ("c.jsonl", "00")):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{blob}")
    found = list_several([f"{tmp_path}/snapshot/{name}.jsonl" for name in "bac"])
    assert [(file.name, Path(file.path).resolve().name) for file in found.files] == [
        ("a.jsonl", "ff"), ("b.jsonl", "00"),
    ]  # fmt: skip


def test_content_counts_beside_the_name(tmp_path: Path) -> None:
    rows = b'{"text": "a"}\n{"text": "b"}\n'
    (tmp_path / "inside.jsonl").write_bytes(gzip.compress(rows))
    (found,) = list_files(str(tmp_path / "inside.jsonl")).files
    assert (found.kind, found.compression) == ("jsonl", "gz")
    for name, data in (("rows", rows), ("rows.jsonl.1", rows), ("part-0.gz", gzip.compress(rows))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name} looks like JSON lines(.|\n)*--input-format jsonl"):
            list_files(str(tmp_path / name))
        for input_format in ("jsonl", "text"):
            (found,) = list_files(str(tmp_path / name), input_format=input_format).files
            assert found.kind == input_format
    (tmp_path / "rows.txt").write_bytes(rows)
    listing = list_files(str(tmp_path / "rows.txt"))
    assert listing.files[0].kind == "text" and "looks like JSON lines" in listing.note
    assert list_files(str(tmp_path / "rows.txt"), input_format="text").note == ""
    (tmp_path / "plain").write_text("some text")
    assert list_files(str(tmp_path / "plain")).files[0].kind == "text"
    (tmp_path / "train.bin").write_bytes(bytes(range(100)))
    with pytest.raises(DataError, match="looks like token ids"):
        list_files(str(tmp_path / "train.bin"))


def test_what_is_no_text_is_refused_by_name_and_a_bad_row_in_a_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(__file__, "x.py")
    (tmp_path / "b.txt").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "c.txt")
    (tmp_path / "d.txt").write_text("text")
    for name in ("a.tar.gz", "b.txt"):
        with pytest.raises(DataError, match=f"{name} is a tar archive"):
            list_files(str(tmp_path / name))
    with pytest.raises(DataError, match=r"c\.txt is a parquet file, taken for text(.|\n)*--input-format parquet"):
        list_files(f"{tmp_path}/c*")
    files = list_files(str(tmp_path)).files
    assert [(file.name, file.not_text) for file in files] == [
        ("b.txt", "it is a tar archive"),
        ("c.txt", "it is a parquet file"),
        ("d.txt", ""),
    ]
    assert list_files(str(tmp_path / "c.txt"), input_format="parquet").files[0].kind == "parquet"
    (tmp_path / "e.jsonl").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    with pytest.raises(DataError, match=r"e\.jsonl is a tar archive"):
        list_files(str(tmp_path))


def test_a_folder_whose_files_have_no_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "part-00000", "part-00001", ".crc", "x.py")
    touch(tmp_path / "sub", "part-0")
    with pytest.raises(DataError, match=r"no text file of a known format(.|\n)*--input-format"):
        list_files(str(tmp_path / "sub"))
    (tmp_path / "sub/part-0").unlink()
    assert names_of(tmp_path) == ["x.py"]
    listing = list_files(str(tmp_path), input_format="jsonl")
    assert [file.name for file in listing.files] == ["part-00000", "part-00001", "x.py"]


def test_links_pipes_and_odd_names_are_read_or_said(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.txt", "real/b.txt", "one.txt")
    (tmp_path / "in/sub").symlink_to("../real")
    (tmp_path / "in/l.txt").symlink_to("../one.txt")
    (tmp_path / "in/loop").symlink_to(".")
    (tmp_path / "in/gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in/pipe.txt")
    (tmp_path / "in" / os.fsdecode(b"\xe9t\xe9\n.txt")).write_text("x")
    expected = ["\\xe9t\\xe9\\x0a.txt", "a.txt", "l.txt", "sub/b.txt"]
    for dataset in (tmp_path / "in", f"{tmp_path}/in/**/*.txt"):
        assert names_of(dataset) == expected
        note = list_files(str(dataset)).note
        assert "1 broken links" in note and "1 pipes, sockets or devices" in note
    assert "links to folders that are read anyway" in list_files(str(tmp_path / "in")).note
    with pytest.raises(DataError, match="is a pipe, socket or device"):
        list_files(str(tmp_path / "in/pipe.txt"))
    with pytest.raises(DataError, match="is a link to nowhere, which is not there"):
        is_local(str(tmp_path / "in/gone.txt"))
    source = FileSource(str(tmp_path / "in"), ReadOptions())
    json.dumps(source.describe()).encode()
    assert source.identity() and [text for u in source.units(None, 9) for text in read_unit(u, ReadOptions()).texts]
