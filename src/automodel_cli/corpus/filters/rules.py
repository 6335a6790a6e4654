from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    rule: str
    number: int
    found: str


@dataclass(frozen=True)
class FilterRules:
    def judge(self, text: str) -> Verdict | None:
        return None

    @property
    def names(self) -> tuple[str, ...]:
        return ()
