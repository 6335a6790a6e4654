"""Sentences by nltk: its model from a folder, white space kept or not, pieces, and clear errors without it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from automodel_cli.corpus.documents import sentences
from automodel_cli.corpus.documents.sentences import SentenceRule
from automodel_cli.errors import ConfigError, DataError

TEXT = "Dr. Who came.  He saw!\n\nWas it late? Yes."


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Punkt model of two abbreviations, in the form that nltk downloads."""
    data = pytest.importorskip("nltk.data", reason="nltk is not installed")
    folder = tmp_path / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("dr\nmr")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setattr(data, "path", [str(tmp_path)])
    return folder


def test_sentences(model: Path) -> None:
    split = SentenceRule().splitter()
    assert split(TEXT) == ["Dr. Who came.", "He saw!", "Was it late?", "Yes."]
    assert split("") == []


def test_white_space_stays_where_asked(model: Path) -> None:
    found = SentenceRule(keep_newlines=True).splitter()(TEXT)
    assert "".join(found) == TEXT and len(found) == 4 and found[1] == "He saw!\n\n"


def test_a_text_is_taken_in_pieces(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "_PIECE_CHARACTERS", 10)
    assert SentenceRule().splitter()("One two. Three.") == ["One two.", "T", "hree."]


def test_without_the_model(model: Path) -> None:
    with pytest.raises(DataError, match="sentence model for german is not on this machine") as error:
        SentenceRule("german").splitter()
    assert "punkt_tab" in error.value.hint
    with pytest.raises(ConfigError, match="--lang"):
        SentenceRule("../x").splitter()


def test_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize.punkt", None)
    with pytest.raises(ConfigError, match="needs nltk, which is not installed"):
        SentenceRule().splitter()
