"""A module's parameters shown to its forward pass as something else: in another dtype, or as this rank's piece.

The parameters stay registered, named, sharded and saved as they are. Layers need not know that they work on parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

View = Callable[[Tensor], Tensor]


def view_parameters(module: nn.Module, views: Mapping[str, View]) -> None:
    """Inside ``module.forward`` each named parameter is ``view(parameter)``; gradients flow through the view."""
    if not views:
        return
    forward = module.forward
    viewed = []
    for name, view in views.items():
        owner, _, leaf = name.rpartition(".")
        viewed.append((module.get_submodule(owner), leaf, view))

    def forward_on_views(*inputs: Any, **keywords: Any) -> Any:
        with _viewed(viewed):
            return forward(*inputs, **keywords)

    module.forward = forward_on_views  # type: ignore[method-assign]


@contextlib.contextmanager
def _viewed(viewed: list[tuple[nn.Module, str, View]]) -> Iterator[None]:
    kept = [(owner, leaf, owner._parameters[leaf]) for owner, leaf, _ in viewed]
    views: dict[int, Tensor] = {}  # a tied parameter has one view
    try:
        for owner, leaf, view in viewed:
            parameter = owner._parameters[leaf]
            assert parameter is not None
            if id(parameter) not in views:
                views[id(parameter)] = view(parameter)
            owner._parameters[leaf] = views[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for owner, leaf, parameter in kept:
            owner._parameters[leaf] = parameter
