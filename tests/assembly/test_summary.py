"""Numbers as the start-up table shows them."""

import pytest

from automodel_cli.assembly.summary import binary, human


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (1500, "1.5K"), (124_439_808, "124.4M"), (2.5e9, "2.5B"), (3e12, "3.0T")],
)
def test_human(number, text):
    assert human(number) == text


@pytest.mark.parametrize(("size", "text"), [(3 << 20, "3 MiB"), (3 << 29, "1.5 GiB"), (0, "0 MiB")])
def test_binary(size, text):
    assert binary(size) == text
