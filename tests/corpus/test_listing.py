"""Which files a dataset argument means, in which order."""

from pathlib import Path

import pytest

from automodel_cli.corpus.listing import dataset_name, is_local, list_files, list_several
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
