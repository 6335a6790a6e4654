"""Words for people."""

from __future__ import annotations

import math

import pytest

from automodel_cli import text as words


@pytest.mark.parametrize(("count", "shown"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (12_000, "12,000 files")])
def test_plural(count, shown):
    assert words.plural(count, "file") == shown


def test_plural_of_another_form():
    assert [words.plural(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (86.1 * 2**20, "86.1 MiB"), (230 << 20, "230 MiB"),
        (3 << 29, "1.5 GiB"), (5 << 50, "5,120 TiB"),
    ],
)  # fmt: skip
def test_binary_size(size, shown):
    assert words.binary_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00:00"),
        (59.6, "0:01:00"),
        (5025, "1:23:45"),
        (183_845, "2d 3:04:05"),
        (None, "n/a"),
        (math.inf, "n/a"),
    ],
)
def test_clock(seconds, shown):
    assert words.clock(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0m00s"), (187, "3m07s"), (3900, "1h05m")])
def test_duration(seconds, shown):
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(40, "40 s"), (240, "4 minutes"), (3 * 3600, "3 hours"), (37_000_000, "428 days")]
)
def test_rough_duration(seconds, shown):
    assert words.rough_duration(seconds) == shown


def test_first_line():
    assert words.first_line(ValueError("\n  one\ntwo")) == "one"
    assert words.first_line(ValueError("")) == "ValueError"
    assert words.first_line(ValueError("x" * 300), 160) == "x" * 160


@pytest.mark.parametrize(
    ("number", "shown"),
    [(999, "999"), (1500, "1.5K"), (124_439_808, "124.4M"), (2.5e9, "2.5B"), (3e12, "3.0T")],
)
def test_human(number, shown):
    assert words.human(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59, "59 s"), (3600 * 5 + 120, "5 h 2 min"), (86400 * 3 + 3600 * 4, "3 d 4 h")]
)
def test_age(seconds, shown):
    assert words.age(seconds) == shown


def test_decimal():
    assert (words.decimal(1.23456), words.decimal(2, 1), words.decimal(None)) == ("1.2346", "2.0", "")
    assert words.decimal(None, none="n/a") == "n/a"


def test_named_error():
    assert words.named_error(ValueError("one\ntwo")) == "ValueError: one"
    assert words.named_error(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("number", "written"),
    [(7, "7"), (999.7, "1K"), (169_300_000, "169M"), (999_999, "1M"), (2.2649e9, "2.26B"), (math.nan, "nan")],
)
def test_numbers_in_short(number, written):
    assert words.short(number) == written
