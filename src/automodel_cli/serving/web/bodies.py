"""What a request may say: OpenAI's fields, as far as a model of ours has them, and ``top_k`` and ``truncation``.

A field that would change the answer and is not supported is refused; one that would not is read over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from automodel_cli.serving.web.errors import ApiError

_READ_OVER = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "reasoning_effort", "verbosity",
})  # fmt: skip
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "prediction": (),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
"""Fields that are known and not supported, and the values that mean nothing."""

Id = Annotated[int, Field(ge=0)]


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


def _several(stop: Any) -> Any:
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


class Body(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Of the likeliest tokens; 0: all. Not one of OpenAI's."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str | Annotated[list[str], Field(max_length=16)] | None, AfterValidator(_several)] = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_means_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, neutral in _ONLY.items():
            if data.get(name) is not None and data[name] not in neutral:
                raise ApiError(400, f"{name} is not supported here", code="unsupported_parameter", param=name)
        return {name: value for name, value in data.items() if name not in _READ_OVER and name not in _ONLY}

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """As many as there are."""
        return tuple(text for text in self.stop or () if text)


class ChatBody(Body):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[Any], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    """auto: oldest turns are left out where the context has no room. (OpenAI's Responses have it, chat has not.)"""


class TextBody(Body):
    """``POST /v1/completions``"""

    prompt: str | list[str] | list[Id] | list[list[Id]] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """One or several, each text or ids."""
        given: Any = self.prompt
        if given is None or isinstance(given, str):
            return [given or ""]
        return [given] if given and isinstance(given[0], int) else list(given)
