"""What turns one text into ids: the reference engine of a tokenizer and, where it can be had, a faster one.

The reference (tiktoken, or Hugging Face ``tokenizers``) defines the right answer and is always there. The
fast engine (gigatoken: MIT, wheels for Linux and macOS, the extra ``fast``) is used only where it gives the
same ids: ``first_difference`` asks both about a fixed list of nasty strings before work starts, and
``CheckedEngine`` compares a thousandth of the text while work goes on. Engines take clean text (no lone
surrogates) and read nothing in it as a special token: ``<|endoftext|>`` inside a web page stays text.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import random
import resource
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tiktoken
import tokenizers

from automodel_cli.errors import AutomodelError, DataError, is_panic
from automodel_cli.text import first_line

CACHE_BYTES = 12 << 20
FORGET_AFTER = 90_000_000  # characters; in English prose the tables double after 12 and about 110 million
SAMPLE_ONE_IN = 1000  # of the text, so the check costs about 1 % where the fast engine is 10x faster
_STATM = Path("/proc/self/statm")
_SAMPLE_FROM_CHARS = 8 << 20  # allowance at the start, so that the first document is compared


# ---------------------------------------------------------------------------------- what libraries throw
# A panic of a Rust library is no ``Exception``. It comes from a vocabulary that contradicts itself, and the library
# has already written its own lines to stderr.

_RESTORE = "restore the tokenizer's files, or make it again"


def is_failure(error: BaseException) -> bool:
    """Whether a library failed; interrupts, exits, lack of memory and our own errors are something else."""
    own = isinstance(error, AutomodelError | MemoryError)
    return is_panic(error) or (isinstance(error, Exception) and not own)


def named(error: BaseException, what: str, hint: str = _RESTORE) -> BaseException:
    """``error`` as one for people if a library failed, else itself: to be raised."""
    return DataError(f"{what}: {first_line(error)}", hint) if is_failure(error) else error


@contextlib.contextmanager
def failures_named(what: str, hint: str = _RESTORE) -> Iterator[None]:
    """A failure inside becomes a ``DataError`` that says ``what``."""
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        raise named(error, what, hint) from error


# ------------------------------------------------------------------------------------------- engines


class Engine(Protocol):
    """Encodes one text to ids; ``name`` is for people."""

    name: str

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text``, any unsigned dtype, one-dimensional."""
        ...


class EngineMismatch(AutomodelError):
    """The fast engine disagreed with the reference; what it wrote so far cannot be trusted."""


class TiktokenEngine:
    """tiktoken's own BPE, without Python lists; with ``parse`` special tokens that a text spells out are recognized."""

    def __init__(self, encoding: tiktoken.Encoding, *, parse: bool = False) -> None:
        self.name = f"tiktoken {version('tiktoken')}"
        self._encode = encoding.encode_to_numpy
        self._special: dict[str, Any] = {"allowed_special": "all"} if parse else {"disallowed_special": ()}

    def encode(self, text: str) -> np.ndarray:
        try:
            return self._encode(text, **self._special)
        except BaseException as error:  # a panic is no Exception
            raise _failed(error, self, text) from error


class HuggingFaceEngine:
    """A ``tokenizers`` pipeline with special tokens not added and, unless ``parse``, not looked for."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, parse: bool = False) -> None:
        self.name = f"tokenizers {version('tokenizers')}"
        tokenizer.encode_special_tokens = not parse  # spells "encode special tokens as ordinary text"
        self._tokenizer = tokenizer

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        except BaseException as error:
            raise _failed(error, self, text) from error


def _failed(error: BaseException, engine: Engine, text: str) -> BaseException:
    """What to raise where an engine failed on a text; an interrupt stays one."""
    return named(
        error,
        f"{engine.name} cannot encode {text[:40]!r}",
        "is the tokenizer damaged, or does its vocabulary lack an unknown token? Try another --tokenizer",
    )


class GigatokenEngine:
    """gigatoken, called one document at a time on the calling thread (workers are processes already).

    It remembers every word it has seen, without end (release 0.10), so ``bound_memory`` builds it anew after
    ``FORGET_AFTER`` characters, or sooner where the process has grown by ``CACHE_BYTES``: a tenth of a second
    each time.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self.name = f"gigatoken {version('gigatoken')}"
        self._build = build
        self.encode = build().encode
        self._resident_bytes: int | None = None  # soon after it was built

    def bound_memory(self, characters: int) -> bool:
        """Forget what was remembered if it is much; ``characters`` were encoded since the last time.

        Call it where nothing else is in memory that comes and goes, such as between two units of work.
        """
        now = _resident_bytes()
        if self._resident_bytes is None:
            self._resident_bytes = now if characters else None
        grown = self._resident_bytes is not None and now > self._resident_bytes + CACHE_BYTES
        if not grown and characters < FORGET_AFTER:
            return False
        del self.encode  # before the new one is there, so that they never stand side by side
        _return_freed_memory()
        self.encode = self._build().encode
        self._resident_bytes = None
        return True


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system has no /proc."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _return_freed_memory() -> None:
    """Let the allocator give free pages back now; glibc alone has the call, elsewhere they stay."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def gigatoken_from_ranks(ranks_text: bytes, pretokenizer: str) -> GigatokenEngine | None:
    """The fast engine for a tiktoken vocabulary, or None where gigatoken is absent or cannot serve it."""

    def build() -> Any:
        import gigatoken  # an extra: may be absent

        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(ranks_text)
            file.flush()  # no special tokens: it would parse them inside documents
            return gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer, {}).backend

    return _engine_or_none(build)


def gigatoken_from_hf(tokenizer_json: str) -> GigatokenEngine | None:
    """The fast engine for a ``tokenizer.json``, or None where gigatoken is absent or cannot serve it."""
    body = json.loads(tokenizer_json)
    body["added_tokens"] = [token for token in body.get("added_tokens") or [] if not token.get("special")]
    without_special = json.dumps(body)

    def build() -> Any:
        import gigatoken  # as above

        return gigatoken.Tokenizer.from_json(without_special).backend

    return _engine_or_none(build)


def _engine_or_none(build: Callable[[], Any]) -> GigatokenEngine | None:
    try:
        return GigatokenEngine(build)
    except BaseException as error:  # not installed, or whatever it throws: the reference engine serves
        if not is_failure(error):
            raise
        return None


def first_difference(fast: Engine, reference: Engine, texts: tuple[str, ...]) -> str | None:
    """The first of ``texts`` on which ``fast`` fails or differs from ``reference``, else None."""
    for text in texts:
        expected = reference.encode(text)
        try:
            same = np.array_equal(fast.encode(text), expected)
        except BaseException as error:
            if not is_failure(error):
                raise
            same = False
        if not same:
            return text
    return None


class CheckedEngine:
    """A fast engine that lets the reference repeat one part in a thousand of the text.

    Raises:
        EngineMismatch: from ``encode``, naming the text.
    """

    def __init__(self, fast: Engine, reference: Engine) -> None:
        self.name = f"{fast.name}, checked against {reference.name}"
        self._fast, self._reference = fast, reference
        self._allowance = _SAMPLE_FROM_CHARS
        self._characters = 0  # since the fast engine last forgot

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text`` from the fast engine; now and then those of the reference are compared with them."""
        try:
            ids = self._fast.encode(text)
        except BaseException as error:
            if not is_failure(error):
                raise
            raise EngineMismatch(f"{self.name}: {first_line(error)} on {text[:60]!r}") from error
        self._characters += len(text)
        self._allowance += len(text)
        if len(text) * SAMPLE_ONE_IN <= self._allowance:
            self._allowance = 0
            if not np.array_equal(ids, self._reference.encode(text)):
                raise EngineMismatch(f"{self.name}: different ids for {text[:60]!r}")
        return ids

    def bound_memory(self) -> None:
        """See ``GigatokenEngine.bound_memory``."""
        if isinstance(self._fast, GigatokenEngine) and self._fast.bound_memory(self._characters):
            self._characters = 0


@functools.cache
def probe_texts(count: int = 1000) -> tuple[str, ...]:
    """Fixed strings that tell tokenizers apart: contractions, runs, scripts, spaces, controls, planes."""
    rng = random.Random(0)
    spaces = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
    digits = "0123456789٠١٢३४৫৬ⅧⅫ½²③𝟘𝟙"
    letters = "abzABZßéİıſΩςжЖאبअกあア漢한ǅʼˀªº\u0301\u0345"
    marks = ".,;:!?'\"’`´()[]{}<>|/\\@#$%^&*_+-=~…—–«»€£¤§¶\u200d\ufe0f👍🏽🇩🇪"
    pieces = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "<|endoftext|>", "<|fim_prefix|>"]
    pieces += ["http://a.b/c?d=e&f", "1234567"]
    pieces += ["aaaaaaaa", "======", "\n\n", "  ", " \n ", "\r\n", "\x00\x7f"]
    pools = [spaces, digits, letters, marks, spaces + letters, digits + letters + marks]
    texts = ["", " ", "\n", "Hello, world! It's 1999's best; we'll see.", "def f(x):\n    return x\n" * 3]
    texts += ["é" * 99, "x" * 500, " " * 200, "漢字" * 50, "\U0010ffff\ue000\ufffd", *pieces]
    while len(texts) < count:
        pool = rng.choice(pools)
        parts = [rng.choice(pool if rng.random() < 0.8 else pieces) for _ in range(rng.randint(1, 30))]
        code = rng.randrange(0x110000)  # one in eight at random from all planes
        if code % 8 == 0 and not 0xD800 <= code < 0xE000:
            parts.append(chr(code))
        texts.append("".join(parts))
    return tuple(texts)
