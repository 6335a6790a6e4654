"""torch.compile on a model, with a way back.

A model that cannot be compiled still trains: the first failing call says why, once, and runs without.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

_CACHE_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def share_cache() -> None:
    """Keep compiled code in the user's folder for later runs, unless a variable of the compiler's own says where.

    Code is loaded from there. So it is not the temporary folder that torch takes by itself, to which others can write,
    and nothing that a configuration or a run folder from elsewhere could name or bring along.
    """
    if not any(os.environ.get(name) for name in _CACHE_VARIABLES):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "automodel" / "compiled"
        os.environ.update(TORCHINDUCTOR_CACHE_DIR=str(folder), TRITON_CACHE_DIR=str(folder / "triton"))


def compile_model(model: nn.Module, *, on_failure: Callable[[str], None], **arguments: Any) -> None:
    """Compile ``model`` in place (names of its parameters stay); ``arguments`` are those of ``torch.compile``.

    ``on_failure`` gets one line when compilation fails, and from then on the model runs without it; the caller
    should remember that choice with the run.
    """
    # The compiler takes seconds to import, and most short runs do without it.
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    model.compile(**arguments)
    compiled = model._compiled_call_impl
    assert compiled is not None

    def call(*inputs: Any, **keywords: Any) -> Any:
        try:
            return compiled(*inputs, **keywords)
        except (TorchDynamoException, InductorError) as error:
            model._compiled_call_impl = None
            on_failure(f"torch.compile failed, going on without it: {in_one_line(error)}")
            return model(*inputs, **keywords)

    model._compiled_call_impl = call


def eagerly() -> AbstractContextManager[object]:
    """Inside, nothing is compiled and nothing compiled is run; compiled code is there again afterwards."""
    return torch.compiler.set_stance("force_eager")


def in_one_line(error: BaseException) -> str:
    """The first two lines of an exception's text (dynamo's first only names the backend), cut to a terminal line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) or type(error).__name__)[:160]
