"""Facts that only a reading of the text can tell, found before a run begins; a job tells its other processes."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict

from automodel_cli.files import hash_bytes
from automodel_cli.json_files import Count, FileModel, Xxh3


class Settled(FileModel):
    """What is known; None where nobody asked.

    Attributes:
        key: hash of all that these facts follow from.
        characters: of the text, each once.
        character_count: how many characters of the text are wanted.
        tail_from: the character at which a single document is cut into training and validation.
        tokens: of all documents.
        tokenizer: the fingerprint of what made them.
    """

    model_config = ConfigDict(extra="forbid")

    key: Xxh3
    characters: str | None = None
    character_count: Count = 0
    tail_from: Count | None = None
    tokens: Count | None = None
    tokenizer: str | None = None

    def with_characters(self, characters: set[str], count: int) -> Settled:
        """These facts and the characters of the text."""
        return self.model_copy(update={"characters": "".join(sorted(characters)), "character_count": count})


def settled_key(**what: Any) -> str:
    """A hash of what facts follow from."""
    return hash_bytes(json.dumps(what, sort_keys=True).encode())
