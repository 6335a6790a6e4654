"""The page of a report: nothing of a document is markup or a script, and marks are where two texts differ."""

import re

import pytest

from automodel_cli.corpus.dedup.report import DedupReport, ShownCluster
from automodel_cli.corpus.dedup.report_page import marked, page, size_ranges

NASTY = "</div><script>alert(1)</script> <img src=x onerror='a()'> \x1b[31m \u202e & \""


def report(**changes: object) -> DedupReport:
    found = {"text": NASTY, "source": NASTY, "similarity": 0.9}
    values = {
        "documents": 5,
        "kept": 2,
        "copies": 1,
        "near": 1,
        "left_out": {"min_words": 1, "max_words": 0},
        "bad_rows": 1,
        "bytes": 10,
        "near_options": {"threshold": 0.8, "shingles": "5 words", "bands": 18, "rows": 7, "verification": "exact"},
        "sources": {NASTY: {"documents": 5, "kept": 2, "copies": 1, "near": 1, "left_out": 1}},
        "cluster_sizes": [(2, 1)],
        "similarities": [0] * 19 + [1],
        "largest": [ShownCluster(2, [found, {**found, "text": f"more {NASTY}"}])],
        "samples": {"min_words": [{"source": NASTY, "text": NASTY, "found": "1"}]},
    }
    return DedupReport(**{**values, **changes})  # type: ignore[arg-type]


def test_texts_and_names_are_no_markup():
    html = page(report())
    tags = set(re.findall(r"</?([a-z0-9!]+)", html))
    assert not tags & {"script", "img"} and "onerror='" not in html
    assert "\x1b" not in html and "\u202e" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_filters_that_left_out_nothing_take_one_line():
    html = page(report())
    assert "<td>left out by min_words</td><td>1</td>" in html
    assert "Filters that left out nothing: max_words." in html and "left out by max_words" not in html


def test_words_that_the_other_text_lacks_are_marked():
    assert marked("one two three", "one 2 three") == ("one<mark> two</mark> three", "one<mark> 2</mark> three")
    assert marked("one two", "one two three") == ("one two", "one two<mark> three</mark>")


@pytest.mark.parametrize("inserted", [1, 5])
def test_where_a_text_is_cut_its_rest_is_no_difference(inserted):
    words = [f"w{k}" for k in range(300)]
    longer = words[:10] + ["new"] * inserted + words[10:]
    left, right = marked(" ".join(words), " ".join(longer))
    assert "<mark>" not in left
    assert re.findall(r"<mark>(.*?)</mark>", right) == [" new" * inserted]


def test_sizes_in_ranges_that_double():
    assert size_ranges([(2, 5), (3, 1), (4, 1), (5, 1), (1000, 2)]) == [
        ("2", 5, 10),
        ("3 to 4", 2, 7),
        ("5 to 8", 1, 5),
        ("513 to 1,024", 2, 2000),
    ]
