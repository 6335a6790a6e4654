"""A library that gives up on a text: an error that names file and document, in this process and in a worker."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.cli import app
from automodel_cli.corpus.build import worker
from automodel_cli.corpus.build.tokenize import EncodeTask, UnitEncoder
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from automodel_cli.corpus.tokenizers.engines import TiktokenEngine
from automodel_cli.errors import AutomodelError, DataError


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


class Encoding:
    """tiktoken's, which gives up on texts with an x."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encode_to_numpy(self, text: str, **_: object) -> np.ndarray:
        if "x" in text:
            raise self._error
        return np.zeros(1, dtype=np.uint32)


def broken(error: BaseException) -> ByteTokenizer:
    tokenizer = ByteTokenizer()
    tokenizer.engine = tokenizer.reference = TiktokenEngine(Encoding(error))  # type: ignore[arg-type]
    return tokenizer


def encoder(tokenizer: Tokenizer, *, lists: bool = False) -> UnitEncoder:
    return EncodeTask(Path("none"), "reference", ReadOptions(lists=lists), "<u2", tokenizer=tokenizer).open()


UNIT = Unit("jsonl", "rows.jsonl", 0, {}, payload=b'{"text": "a"}\n\n{"text": "has x in it"}\n', start=0)
ERRORS = [PanicException("called unwrap"), Exception("bad regex"), ValueError("too deep"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_document_is_named(error: BaseException, tmp_path) -> None:
    what = "out of memory" if isinstance(error, MemoryError) else r"tiktoken [\d.]+ cannot encode '.*x.*': "
    expected = rf"row 3 of rows\.jsonl: {what}"
    with pytest.raises(DataError, match=expected):
        encoder(broken(error))(UNIT)
    with pytest.raises(DataError, match=expected):
        encoder(broken(error), lists=True)(UNIT)
    (tmp_path / "b.txt").write_text("x")
    files = Unit("files", "a.txt", 0, {}, payload=[(str(tmp_path / "b.txt"), "b.txt")])
    with pytest.raises(DataError, match=rf"b\.txt: {what}"):
        encoder(broken(error))(files)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AutomodelError("known")])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)):
        encoder(broken(error))(UNIT)


def test_a_character_outside_a_vocabulary_is_placed() -> None:
    with pytest.raises(DataError, match=r"row 3 of rows\.jsonl: character 'x' is not in") as caught:
        encoder(CharTokenizer("ahs int"))(UNIT)
    assert "leave that document out; use the text" in caught.value.hint


def test_a_worker_answers_a_panic(monkeypatch: pytest.MonkeyPatch) -> None:
    class Out(io.BytesIO):
        def send(self, message: object) -> None:
            self.write(pickle.dumps(message))

    def turn(unit: Unit) -> None:
        raise PanicException("index out of bounds")

    out = Out()
    worker._answer(turn, UNIT, out)  # type: ignore[arg-type]
    kind, error, _ = pickle.loads(out.getvalue())
    assert kind == "error" and "internal error: index out of bounds" in error.message


def test_the_command_line_shows_a_panic_as_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def panics(argv: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(app, "parse_argv", panics)
    assert app.run(["doctor"]) == 1
    shown = capsys.readouterr().err
    assert "internal error: index out of bounds" in shown and "Traceback" not in shown and "bug in" not in shown
