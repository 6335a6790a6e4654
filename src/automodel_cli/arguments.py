"""The arguments of a callable as a class of their own: in a module without torch, a configuration is checked with it.

@takes(GPT2Config)
def build_gpt2_model(config: GPT2Config) -> GPT2: ...

build_gpt2_model(n_layer=2)  # the arguments of GPT2Config, for type checkers and editors too
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Arguments = TypeVar("Arguments")
Self = TypeVar("Self")
Result = TypeVar("Result")


def takes(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[Arguments], Result]], Callable[P, Result]]:
    """A decorator: the function gets one object, its callers give what ``arguments`` is made from."""

    def decorate(function: Callable[[Arguments], Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            return function(arguments(*args, **kwargs))

        return _described_by(arguments, call)

    return decorate


def constructor_takes(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[Self, Arguments], None]], Callable[Concatenate[Self, P], None]]:
    """The same for ``__init__``."""

    def decorate(function: Callable[[Self, Arguments], None]) -> Callable[Concatenate[Self, P], None]:
        @functools.wraps(function)
        def call(self: Self, *args: P.args, **kwargs: P.kwargs) -> None:
            function(self, arguments(*args, **kwargs))

        return _described_by(arguments, call)

    return decorate


def _described_by(arguments: Any, call: Any) -> Any:
    """``call`` with the signature and the hints of ``arguments`` (``help()``, ``inspect``)."""
    call.__wrapped__ = arguments.__init__ if "self" in call.__code__.co_varnames else arguments
    return call
