"""The rows of a .json file: every value of every array and between them, or an error with the place."""

import io
import json
import random
from typing import Any

import pytest

from automodel_cli.corpus.documents import json_values
from automodel_cli.corpus.documents.json_values import iter_json
from automodel_cli.corpus.documents.units import BadRow
from automodel_cli.errors import DataError


def rows(data: bytes, most: int = 1 << 30) -> list[Any]:
    return [value for value, _ in iter_json(io.BytesIO(data), "a.json", most)]


@pytest.mark.parametrize("long", [1 << 20, 40])
def test_several_values(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_READ_BYTES", 16)
    monkeypatch.setattr(json_values, "_LONG_CHARACTERS", long)
    rng = random.Random(3)
    text = 'tricky "quotes" \\ and [brackets] {} é漢'
    values = [{"id": k, "text": text * rng.randint(0, 5), "deep": [[{"a": [k]}]]} for k in range(30)]
    for ascii_only in (True, False):
        one = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
        forms = {
            "two arrays": "[" + ", ".join(one[:9]) + "]\n[" + ",".join(one[9:]) + "]",
            "array and rows": "[" + ", ".join(one[:9]) + "]\n" + "\n".join(one[9:]),
            "rows and array": "\n".join(one[:9]) + " [" + ",".join(one[9:]) + "]\n",
            "empty arrays": "[] [" + ",".join(one) + "] []",
            "marked": "\ufeff" + " ".join(one),
        }
        for name, form in forms.items():
            assert rows(form.encode()) == values, name
        assert rows(b"[[1], 2, null]") == [[1], 2, None]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b'[{"a": 1}] rest', 1),
        (b'[{"a": 1}] [{"b"', 1),
        (b'[{"a": 1}]]', 1),
        (b'{"a": 1} {"b": "', 1),
        (b"[1, 2", 2),
    ],
)
def test_what_is_left_after_a_value_is_never_dropped(data: bytes, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for long in (1 << 20, 3):
        monkeypatch.setattr(json_values, "_LONG_CHARACTERS", long)
        with pytest.raises(DataError, match=f"malformed or cut off after value {count}"):
            rows(data)


def test_long_values_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_LONG_CHARACTERS", 16)
    monkeypatch.setattr(json_values, "_READ_BYTES", 16)
    data = b'[{"t": "a"}, {"t": "' + b'\\"]}' * 500 + b'"}, {"t": "b"}] "' + b"\\\\" * 300 + b'" 7'
    found = rows(data, most=100)
    assert [value for value in found if not isinstance(value, BadRow)] == [{"t": "a"}, {"t": "b"}, 7]
    assert [isinstance(value, BadRow) for value in found] == [False, True, False, True, False]
