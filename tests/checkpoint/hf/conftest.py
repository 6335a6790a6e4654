"""The stand-in for the Hub, with huggingface_hub pointed at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from tests.checkpoint.hf import hub_server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A Hub that knows one token, which is in the environment; files go over LFS, and nobody waits before a retry."""
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with hub_server.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        yield server
