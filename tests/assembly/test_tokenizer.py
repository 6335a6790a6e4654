"""The tokenizer of a run: what goes into its checkpoints is a copy of files, never of what a link leads to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from automodel_cli.assembly.tokenizer import run_tokenizer
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.data.interface import DataSource
from automodel_cli.errors import DataError


class Described(DataSource):
    def __init__(self, manifest: SimpleNamespace) -> None:
        self._manifest = manifest

    @property
    def manifest(self) -> SimpleNamespace:
        return self._manifest


def dataset_of(folder: Path, separator_id: int | None = None) -> Described:
    described = ByteTokenizer().describe()
    return Described(SimpleNamespace(tokenizer=described, tokenizer_folder=folder, separator_id=separator_id))


def test_it_knows_what_separates_documents(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    found = run_tokenizer(SimpleNamespace(tokenizer=None), dataset_of(tmp_path, 7))  # type: ignore[arg-type]
    assert found is not None and found.folder == tmp_path
    assert (found.separator_id, found.facts()["separator_id"]) == (7, 7)


@pytest.mark.parametrize("link", ["tokenizer_config.json", "automodel_tokenizer.json", "."])
def test_links_are_refused(tmp_path: Path, link: str) -> None:
    real = tmp_path / "real"
    ByteTokenizer().save(real)
    (real / "tokenizer_config.json").write_text('{"secret": 1}')
    folder = tmp_path / "tokenizer"
    if link == ".":
        folder.symlink_to(real)
    else:
        ByteTokenizer().save(folder)
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(real / link)
    with pytest.raises(DataError, match="is a link"):
        run_tokenizer(SimpleNamespace(tokenizer=None), dataset_of(folder))  # type: ignore[arg-type]
