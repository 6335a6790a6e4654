"""Compiled models: the same numbers, and a way back where compilation fails."""

import os

import pytest
import torch
from torch import nn

from automodel_cli.train.compiling import compile_model, share_cache


class Double(nn.Module):
    """A linear layer, twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x) * 2


def refuse(graph, inputs):
    raise RuntimeError("this backend compiles nothing\nand has more to say")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_backend_that_fails_is_reported_once_and_left():
    said = []
    model = Double()
    names = list(model.state_dict())
    compile_model(model, on_failure=said.append, backend=refuse)
    x = torch.ones(1, 3)
    for _ in range(2):
        assert torch.equal(model(x), model.layer(x) * 2)
    assert len(said) == 1
    assert "compiles nothing" in said[0]
    assert "\n" not in said[0]
    assert list(model.state_dict()) == names


def test_errors_of_the_model_itself_are_not_swallowed():
    said = []
    model = Double()
    compile_model(model, on_failure=said.append, backend="eager")
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.ones(1, 4))


def test_a_working_backend_is_used():
    seen = []

    def count(graph, inputs):
        seen.append(graph)
        return graph

    model = Double()
    compile_model(model, on_failure=pytest.fail, backend=count)
    model(torch.ones(1, 3))
    assert len(seen) == 1


def test_the_cache_is_the_users_unless_a_variable_says_where(monkeypatch, tmp_path):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    share_cache()
    own = tmp_path / "automodel" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(own)
    assert os.environ["TRITON_CACHE_DIR"] == str(own / "triton")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "here"))
    share_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "here")
