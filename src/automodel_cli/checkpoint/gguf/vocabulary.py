"""A byte-level tokenizer as a GGUF file has it: tokens, their types, merges, and the name of the split.

llama.cpp knows how text is split before byte-pair encoding only by name (``tokenizer.ggml.pre``). Where none of its
names means the same split, the tokenizer is refused: a model that gets other tokens than it was trained on is worse
than none.

llama.cpp does not normalize, joins by merges alone unless the name says that a piece that is a token stays whole, takes
id 11 for begin and end of text where a file names none, and wants at least one merge.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from gguf import TokenType

from automodel_cli.checkpoint.hf import tokenizer as hf_tokenizer
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import TEMPLATE
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.errors import DataError
from automodel_cli.plain_text import without_controls

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = rf"\p{{N}} then {_GPT2}"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = f"{_WORDS}{{1,3}}{_REST}", f"{_WORDS}{_REST}"
# (split, a piece that is a token stays whole) -> llama.cpp's name of both
_SPLITS = {
    (_GPT2, False): "gpt-2",
    (_DIGITS, False): "smollm",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "dbrx",
    (_QWEN2, False): "qwen2",
}
_NEVER = "ÿ ÿ"
"""A merge that joins nothing: the byte 0xFF is in no UTF-8 text."""
_HINT = "give the model a byte-level BPE (automodel preprocess tokenizer makes one), or use automodel serve"


@dataclass(frozen=True)
class Vocabulary:
    """All that a file says of its tokenizer.

    Attributes:
        tokens: by id, in the spelling of byte-level BPE; special ones as they are.
        types: ``gguf.TokenType`` of each.
        merges: two tokens with a space between.
        split: llama.cpp's name of it.
        special: ``bos``, ``eos``, ``eot`` (end of turn) and ``padding`` -> id, as far as there are.
        added: whether ``bos`` and ``eos`` are put around each text.
        chat_template: for conversations; None: there is none.
        is_chatml: whether that is ChatML as this program writes it.
        stops: what ends an answer in a conversation, spelled.
        notes: what people should know.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    split: str
    special: Mapping[str, int]
    added: tuple[bool, bool]
    chat_template: str | None
    is_chatml: bool
    stops: list[str]
    notes: list[str]


def vocabulary_of(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """``tokenizer`` for a model with ``rows`` ids; those that it does not have are marked as unused.

    Raises:
        DataError: llama.cpp has nothing that makes the same tokens, or the model has fewer rows.
    """
    if tokenizer.vocab_size > rows:
        raise DataError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.vocab_size:,} ids, the model {rows:,}",
            "name the tokenizer that the model was trained with: --tokenizer",
        )
    body = _tokenizer_json(tokenizer)
    notes = []
    if unused := rows - tokenizer.vocab_size:
        notes.append(
            f"{unused:,} of the model's {rows:,} ids have no token in {tokenizer.name}: they are marked as unused"
        )
    if (body.get("normalizer") or {}).get("type") == "NFC":
        notes.append("llama.cpp does not normalize text: what is not in Unicode's NFC becomes other tokens there")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in body["model"]["merges"]]
    tokens, types = _tokens(tokenizer, body, rows)
    special = _special(tokenizer)
    template, stops = _chat(tokenizer, tokens)
    if stops and (ends := [tokens.index(stop) for stop in stops if tokens.index(stop) != special["eos"]]):
        special["eot"] = ends[0]
    return Vocabulary(
        tokens,
        types,
        merges or [_NEVER],
        _split_name(tokenizer, body),
        special,
        _added(tokenizer, special),
        template,
        template is not None and tokenizer.chat_template in (None, TEMPLATE),
        stops,
        notes,
    )


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """``tokenizer.json`` of a byte-level BPE, whatever kind ours is.

    Raises:
        DataError: it is another kind.
    """
    with tempfile.TemporaryDirectory(prefix="automodel-tokenizer-") as place:
        tokenizer.save(place)
        text = dict(hf_tokenizer.files_of(Path(place))).get("tokenizer.json")
    body: dict[str, Any] = json.loads(text) if text else {"model": {}}
    model, normalizer = body["model"], (body.get("normalizer") or {}).get("type")
    kind = model.get("type", "BPE" if "merges" in model else None)  # older files, GPT-2's own too, do not say it
    decoder = body.get("decoder") or {}
    unusual = {
        f"a model of the kind {kind}": kind != "BPE",
        "characters for tokens, not bytes": "ByteLevel" not in json.dumps(decoder),
        f"the normalizer {normalizer}": normalizer not in (None, "NFC"),
        "tokens with a prefix or suffix": bool(
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("byte_fallback")
        ),
        "added tokens that take spaces with them": any(
            token.get("lstrip") or token.get("rstrip") or token.get("single_word")
            for token in body.get("added_tokens") or ()
            if not token.get("special")
        ),
    }
    if found := [what for what, is_so in unusual.items() if is_so]:
        raise DataError(
            f"tokenizer {tokenizer.name!r} cannot go into a GGUF file: it has {without_controls(found[0])}", _HINT
        )
    return body


def _split_name(tokenizer: Tokenizer, body: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which text is split.

    Raises:
        DataError: there is none.
    """
    split, whole = _split(body.get("pre_tokenizer")), bool(body["model"].get("ignore_merges"))
    if split == "" and not body["model"]["merges"]:
        split = _GPT2  # nothing is joined: however it is split
    names = {stays: name for (pattern, stays), name in _SPLITS.items() if pattern == split}
    if whole in names:
        return names[whole]
    if names and _merges_make_all(body):
        return next(iter(names.values()))
    raise DataError(
        f"llama.cpp has no name for the way tokenizer {tokenizer.name!r} splits text"
        + (": tokens that no merges make" if names else f": {without_controls(split[:200])}" if split else ""),
        _HINT,
    )


def _split(section: Mapping[str, Any] | None) -> str | None:
    """The pattern that a ``pre_tokenizer`` splits by; "" for none, None where it is more than a pattern."""
    steps = [] if section is None else section.get("pretokenizers") or [section]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *before, last = steps
    by_gpt2 = bool(last.get("use_regex", True))
    if not before:
        return _GPT2 if by_gpt2 else ""
    first = before[0]
    if len(before) == 1 and by_gpt2 and first.get("type") == "Digits" and first.get("individual_digits"):
        return _DIGITS
    isolated = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    pattern = first.get("pattern", {}).get("Regex") if isolated else None
    return pattern if len(before) == 1 and not by_gpt2 else None


def _merges_make_all(body: Mapping[str, Any]) -> bool:
    """Whether merges alone make each token of its own text, so that "a piece that is a token" changes nothing."""
    model = body["model"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    by_merges = tokenizers.models.BPE(model["vocab"], [(first, second) for first, second in pairs])
    added = {token["content"] for token in body.get("added_tokens") or ()}
    return all(len(by_merges.tokenize(token)) == 1 for token in model["vocab"].keys() - added)


def _tokens(tokenizer: Tokenizer, body: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Spelling and type of each id."""
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [int(TokenType.UNUSED)] * rows
    for token, index in body["model"]["vocab"].items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
    for token in body.get("added_tokens") or ():
        kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], int(kind)
    if len(set(tokens)) != rows:
        twice, _ = Counter(tokens).most_common(1)[0]
        raise DataError(f"tokenizer {tokenizer.name!r} has the token {twice!r} twice", "GGUF files have each once")
    return tokens, types


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    ends = [index for index in (tokenizer.eot_id, tokenizer.bos_id) if index is not None]
    if not ends:
        raise DataError(
            f"tokenizer {tokenizer.name!r} has no end-of-text, for which llama.cpp would take id 11",
            "name it as eos_token in the tokenizer's tokenizer_config.json",
        )
    special = {"eos": ends[0], "bos": ends[-1]}
    return special if tokenizer.pad_id is None else {**special, "padding": tokenizer.pad_id}


def _added(tokenizer: Tokenizer, special: Mapping[str, int]) -> tuple[bool, bool]:
    before, after = tokenizer.added_ids()
    if before not in ([], [special["bos"]]) or after not in ([], [special["eos"]]):
        raise DataError(
            f"tokenizer {tokenizer.name!r} puts {before} before and {after} after each text: "
            "llama.cpp adds begin and end of text alone",
            _HINT,
        )
    return bool(before), bool(after)


def _chat(tokenizer: Tokenizer, tokens: Sequence[str]) -> tuple[str | None, list[str]]:
    """The chat template, without what only training reads, and what ends an answer."""
    format_ = chat_format_of(tokenizer)
    if format_ is None:
        return None, []
    template = tokenizer.chat_template or TEMPLATE
    for word, plain in (("generation", "if true"), ("endgeneration", "endif")):
        template = re.sub(rf"\{{%([-+]?)\s*{word}\s*([-+]?)%\}}", rf"{{%\1 {plain} \2%}}", template)
    return template, [tokens[index] for index in sorted(format_.stop_ids)]
