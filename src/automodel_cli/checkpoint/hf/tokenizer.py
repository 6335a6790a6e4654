"""The tokenizer files of a Hugging Face folder, from the ``tokenizer/`` folder of a corpus or checkpoint.

What is there under a name that belongs to a tokenizer is copied; links are not. A tokenizer that has no
``tokenizer.json`` of its own (tiktoken ranks, bytes, characters) gets one, so that ``AutoTokenizer.from_pretrained``
gives the same ids; it is compared with the original on probe texts before it is written.

tiktoken knows the rank of each token, Hugging Face the list of merges: the merge that makes a token is found
by running byte-pair encoding on the token's own bytes with the ranks below its own, which leaves exactly two
parts.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from automodel_cli.checkpoint.layout import Say
from automodel_cli.checkpoint.storage.step_files import regular_files
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import START, TEMPLATE, ChatML
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizers.base import CARRIED_FILES, TOKENIZER_FILE, Tokenizer
from automodel_cli.corpus.tokenizers.engines import probe_texts
from automodel_cli.errors import DataError

_CONFIG_NAME = "tokenizer_config.json"
_GPT2_NAMES = ("gpt2", "r50k_base")


def files_of(folder: Path, *, say: Say | None = None) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files to put beside the weights; with a chat template where ChatML's marks are."""
    for path in regular_files(folder, CARRIED_FILES):
        yield path.name, _with_template(path)
    if (folder / "tokenizer.json").exists() or not (folder / TOKENIZER_FILE).exists():
        return
    tokenizer = load_tokenizer(folder)
    converted = _converted(tokenizer.fingerprint(), folder)
    if converted is None:
        if say is not None:
            say(f"tokenizer {tokenizer.name!r} has no exact Hugging Face form: hf/ is without tokenizer.json")
        return
    yield "tokenizer.json", converted.encode()
    yield _CONFIG_NAME, _json({**_config(tokenizer), **_chat_template(tokenizer)})


def _with_template(path: Path) -> bytes:
    """The content of a file; of the configuration of a tokenizer with ChatML's marks with the template."""
    content, main = path.read_bytes(), path.with_name("tokenizer.json")
    if path.name != _CONFIG_NAME or not main.is_file() or START.encode() not in main.read_bytes():
        return content
    more = _chat_template(load_tokenizer(path.parent))
    return _json({**json.loads(content), **more}) if more else content


def _json(body: dict[str, object]) -> bytes:
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()


def _chat_template(tokenizer: Tokenizer) -> dict[str, object]:
    """ChatML as transformers is to render it, where that is the format of the tokenizer."""
    return {"chat_template": TEMPLATE} if isinstance(chat_format_of(tokenizer), ChatML) else {}


@lru_cache(maxsize=2)
def _converted(fingerprint: str, folder: Path) -> str | None:
    """``tokenizer.json``, or None where no exact one was found; kept, as a large vocabulary takes seconds."""
    made = convert(folder)
    return None if made is None or not _agree(made, load_tokenizer(folder)) else made.to_str()


def _config(tokenizer: Tokenizer) -> dict[str, object]:
    end = "<|endoftext|>" if tokenizer.eot_id is not None else None
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **({"bos_token": end, "eos_token": end, "unk_token": end} if end else {}),
    }


def _agree(made: tokenizers.Tokenizer, tokenizer: Tokenizer) -> bool:
    """Whether both give the same ids for all probe texts that hold no special token and only known characters."""
    special = [token.content for token in made.get_added_tokens_decoder().values()]
    for text in probe_texts():
        if any(token in text for token in special):
            continue
        try:
            expected = tokenizer.reference.encode(text).tolist()
        except DataError:  # a character that the vocabulary does not have
            continue
        if made.encode(text, add_special_tokens=False).ids != expected:
            return False
    return True


def convert(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer in ``folder`` as one of the ``tokenizers`` package, or None for a kind that has no such form."""
    body = json.loads((folder / TOKENIZER_FILE).read_bytes())
    if body["kind"] == "tiktoken":
        return _from_tiktoken(folder, body)
    if body["kind"] == "byte":
        ranks = {bytes([byte]): byte for byte in range(256)}
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return _byte_level(ranks, [], {"<|endoftext|>": 256, **body.get("special_tokens", {})}, splitter)
    if body["kind"] == "char":
        characters = json.loads((folder / "vocab.json").read_bytes())
        special = body.get("special_tokens", {})
        made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(characters)} | special, []))
        made.decoder = decoders.Fuse()
        _add_special(made, special)
        return made
    return None


def _from_tiktoken(folder: Path, body: dict[str, Any]) -> tokenizers.Tokenizer:
    fields = (folder / "ranks.tiktoken").read_bytes().split()
    ranks = {base64.b64decode(token): int(rank) for token, rank in zip(fields[::2], fields[1::2], strict=True)}
    splitter: Any
    if body["name"] in _GPT2_NAMES:
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(_for_oniguruma(body["pattern"])), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        splitter = pre_tokenizers.Sequence([split, byte_level])
    return _byte_level(ranks, find_merges(ranks), body["special_tokens"], splitter)


def _byte_level(
    ranks: dict[bytes, int], merges: list[tuple[bytes, bytes]], special: dict[str, int], splitter: Any
) -> tokenizers.Tokenizer:
    vocabulary = {_spell(token): rank for token, rank in ranks.items()} | special  # ids may have gaps
    pairs = [(_spell(left), _spell(right)) for left, right in merges]
    # As in tiktoken, a piece that is a token is that token, whatever the merges would make of it.
    made = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=True))
    made.pre_tokenizer = splitter
    made.decoder = decoders.ByteLevel()
    _add_special(made, special)
    return made


def _add_special(made: tokenizers.Tokenizer, special: dict[str, int]) -> None:
    for text, _ in sorted(special.items(), key=lambda item: item[1]):
        made.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])


def find_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs that byte-pair encoding joins, in the order of the tokens they make."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _encode_below(token, ranks, rank)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _encode_below(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """Byte-pair encoding of ``token`` with only the ranks below ``limit``."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        joined = [ranks.get(a + b, limit) for a, b in pairwise(parts)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= limit:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


@lru_cache(maxsize=1)
def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself, or for those that do not print the next from U+0100 on."""
    printable, others = {*range(33, 127), *range(161, 173), *range(174, 256)}, count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _spell(token: bytes) -> str:
    characters = _byte_characters()
    return "".join(characters[byte] for byte in token)


def _for_oniguruma(pattern: str) -> str:
    """A tiktoken pattern for the regex engine of ``tokenizers``: there ``{1,3}+`` and ``$`` mean something else.

    Possessive quantifiers only save time in these patterns; ``$`` is the end of the text.
    """
    return re.sub(r"(?<!\\)(\{\d+(?:,\d*)?\}|[+*?])\+", r"\1", pattern).replace("$", "\\z")
