"""Settings of the commands that a model answers through: chat and serve."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from automodel_cli.config.schema.base import Count, NotNegative, Positive, TypeName, Whole
from automodel_cli.config.schema.results import ModelInput

Port = Annotated[int, Field(ge=0, le=65535), TypeName("a port: 0 to 65535")]


class AnsweringConfig(ModelInput):
    """How a checkpoint answers."""

    panels: ClassVar = {
        "Answers": "chat plain max_new_tokens temperature top_k top_p stop seed",
        "Server": "host port api_key allowed_hosts name max_rows max_waiting request_tokens timeout_s max_body_bytes "
        "max_connections",
    }

    chat: bool = False
    """Speak in the tokenizer's chat format, whatever the checkpoint was trained for."""
    plain: bool = False
    """Continue plain text, whatever the checkpoint was trained for. Without either: chat after mid-training on
    conversations, else plain."""
    max_new_tokens: Count = 512
    """Maximum number of tokens of an answer."""
    temperature: NotNegative = 0.9
    """0 always takes the most likely token; higher values give more variety."""
    top_k: Count | None = 200
    """Sample from this many of the most likely tokens; null: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the most likely tokens that hold this share of the probability; null: all."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are not shown. The end of a turn and of a text always end one; empty: only those."""
    seed: Whole | None = None
    """Seed for sampling; null: another one for each answer."""

    @model_validator(mode="after")
    def _one_way(self) -> AnsweringConfig:
        if self.chat and self.plain:
            raise ValueError("`chat` and `plain` are opposites: give one of them")
        return self


class ChatConfig(AnsweringConfig):
    """Settings of `automodel chat`."""

    system: str | None = None
    """What the model is told before the conversation; null: nothing."""
    load: str | None = None
    """Conversation to go on with, a file that `/save` wrote; null: a new one."""
    web: bool = False
    """Open the chat page in the browser, served on this machine, instead of the terminal."""
    port: Port = 8003
    """Port of the page; 0: any that is free."""


class ServeConfig(AnsweringConfig):
    """Settings of `automodel serve`. A request that gives a setting of its own gets that."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything beyond this machine needs an `api_key`."""
    port: Port = 8003
    """Port to listen on; 0: any that is free."""
    api_key: str | None = None
    """What clients must send as `Authorization: Bearer KEY`; null: `AUTOMODEL_API_KEY` from the environment, else
    none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that clients may call this server; empty: those of this machine, and any where it listens beyond that."""
    name: str | None = None
    """Name of the model for clients; null: that of the run or folder."""
    max_rows: Count = 64
    """Answers that are generated at once, in one batch; more wait."""
    max_waiting: Count = 512
    """Answers that may wait; more are refused (status 429)."""
    request_tokens: Count = 4096
    """The most tokens that a request may ask for."""
    timeout_s: Positive = 300.0
    """Seconds until a request ends, waiting included."""
    max_body_bytes: Count = 1 << 20
    """Size of the largest request."""
    max_connections: Count = 1000
    """Connections that may be open at once; more are refused (status 503)."""
