"""Hundreds of small files: what a power cut would leave is not the question here."""

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made durable."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
