"""A library that gives up on a text: an error that names file and document, in this process and in a worker."""

import io
import pickle

import numpy as np
import pytest

from automodel_cli.cli import app
from automodel_cli.corpus import worker
from automodel_cli.corpus.tokenise import Tokeniser
from automodel_cli.corpus.tokenise_sequences import SequenceTokeniser, SequenceWork
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.corpus.units import ReadOptions, Unit
from automodel_cli.errors import AutomodelError, DataError


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


class Engine:
    """Gives up on texts with an x."""

    name = "engine 1.0"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encode(self, text: str) -> np.ndarray:
        if "x" in text:
            raise self._error
        return np.zeros(1, dtype=np.uint32)


def broken(error: BaseException) -> ByteTokenizer:
    tokenizer = ByteTokenizer()
    tokenizer.engine = tokenizer.reference = Engine(error)
    return tokenizer


UNIT = Unit("jsonl", "rows.jsonl", 0, {}, payload=b'{"text": "a"}\n\n{"text": "has x in it"}\n', start=0)
ERRORS = [PanicException("called unwrap"), Exception("bad regex"), ValueError("too deep"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_document_is_named(error: BaseException, tmp_path) -> None:
    expected = r"engine 1.0 cannot encode row 3 of rows\.jsonl \('has x in it'\): "
    with pytest.raises(DataError, match=expected):
        Tokeniser(broken(error), ReadOptions(), "prepend")(UNIT)
    read = ReadOptions(lists=True)
    work = SequenceWork(tmp_path, "reference", read, "<u2", append_eod=True)
    with pytest.raises(DataError, match=expected):
        SequenceTokeniser(broken(error), work)(UNIT)
    (tmp_path / "b.txt").write_text("x")
    files = Unit("files", "a.txt", 0, {}, payload=[(str(tmp_path / "b.txt"), "b.txt")])
    with pytest.raises(DataError, match=r"cannot encode b\.txt \('x'\)"):
        Tokeniser(broken(error), ReadOptions(), "prepend")(files)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AssertionError("ours"), AutomodelError("known")])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)):
        Tokeniser(broken(error), ReadOptions(), "prepend")(UNIT)


def test_a_worker_answers_a_panic(monkeypatch: pytest.MonkeyPatch) -> None:
    class Out(io.BytesIO):
        def send(self, message: object) -> None:
            self.write(pickle.dumps(message))

    def tokeniser(unit: Unit) -> None:
        raise PanicException("index out of bounds")

    out = Out()
    worker._answer(tokeniser, UNIT, out)  # type: ignore[arg-type]
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
    assert (
        "internal error: index out of bounds" in shown and "Traceback" not in shown and "bug in" not in shown
    )
