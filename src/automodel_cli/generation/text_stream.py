"""Token ids to text as they come: whole characters only, and nothing of a text that ends the continuation."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns ids into text as they come: a character is given out once all of its bytes are there.

    A token may hold part of a character's UTF-8 bytes; they wait for the rest. Bytes that can never become a
    character are replaced by U+FFFD. Decoding looks at a few earlier ids too, because some tokenizers decode
    the first id of a text differently (a leading space is lost).

    Args:
        decode_bytes: the tokenizer's ids -> bytes.
        context: ids that came before (the prompt), not given out.
    """

    _LOOK_BACK = 4

    def __init__(self, decode_bytes: Callable[[Sequence[int]], bytes], context: Sequence[int] = ()) -> None:
        self._decode_bytes = decode_bytes
        self._recent = list(context)[-self._LOOK_BACK :]
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that ``token`` completes; often empty inside a multi-byte character."""
        before = self._decode_bytes(self._recent) if self._recent else b""
        after = self._decode_bytes([*self._recent, token])
        self._recent = [*self._recent, token][-self._LOOK_BACK :]
        return self._utf8.decode(after[len(before) :])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that stayed incomplete."""
        return self._utf8.decode(b"", final=True)


class StopTexts:
    """Passes text on until one of ``stops`` comes; what may be the beginning of one waits.

    Attributes:
        met: whether one came. It and everything behind it are dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._waiting = ""
        self.met = False

    def feed(self, piece: str) -> str:
        """What of the text so far is certain not to be part of a stop text and was not given out before."""
        if self.met:
            return ""
        text = self._waiting + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.met, self._waiting = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What waited for an end that did not come."""
        rest, self._waiting = self._waiting, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
