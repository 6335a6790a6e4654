"""Hugging Face fast tokenizers, through the ``tokenizers`` package alone: no torch, no transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from automodel_cli.corpus.engines import Engine, HuggingFaceEngine, gigatoken_from_hf
from automodel_cli.corpus.tokenizer_base import Tokenizer, unreachable, write_bytes
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes

_EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]")


class HFTokenizer(Tokenizer):
    """Any Hugging Face fast tokenizer, through the ``tokenizers`` package alone."""

    kind = "hf"

    def __init__(self, name: str, *, tokenizer_json: str, config_json: str = "{}") -> None:
        self.name = name
        self._json = tokenizer_json
        self._config_json = config_json
        try:
            self._tokenizer = self._build()
            config = json.loads(config_json)
        except Exception as error:  # the Rust side raises a bare Exception
            message = f"tokenizer {name!r} has a damaged tokenizer.json or tokenizer_config.json: {error}"
            raise DataError(message, "restore the file or train the tokenizer again") from error
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.eot_id = _special_id(config.get("eos_token"), _EOT_NAMES, vocab)
        self.bos_id = _special_id(config.get("bos_token"), _BOS_NAMES, vocab)
        self.pad_id = _special_id(config.get("pad_token"), (), vocab)
        self.cuts_at_spaces = _is_gpt2_style(json.loads(tokenizer_json))
        self.reference = self.engine = HuggingFaceEngine(self._tokenizer)

    def _build(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(self._json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _fast_engine(self) -> Engine | None:
        return gigatoken_from_hf(self._json)

    def parsing_engine(self) -> Engine:
        return HuggingFaceEngine(self._build(), parse=True)

    def special_texts(self) -> tuple[str, ...] | None:
        special = [token for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        if self._tokenizer.normalizer is not None and any(token.normalized for token in special):
            return None  # they are looked for in text that is changed first
        return tuple(sorted(token.content for token in special))

    def added_ids(self) -> tuple[list[int], list[int]]:
        """By the post-processor of ``tokenizer.json``; like transformers, which passes ``add_bos_token`` and
        ``add_eos_token`` of ``tokenizer_config.json`` over where there is a ``tokenizer.json``."""
        whole = self._tokenizer.encode("a", add_special_tokens=True)
        text = [k for k, added in enumerate(whole.special_tokens_mask) if not added]
        first, last = (text[0], text[-1]) if text else (len(whole.ids), len(whole.ids))
        return whole.ids[:first], whole.ids[last + 1 :]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        if not _is_byte_level(json.loads(self._json)):
            return self.decode(ids).encode()
        tokens = (self._tokenizer.id_to_token(int(i)) or "" for i in ids)
        return b"".join(_byte_level_bytes(token) for token in tokens)

    def token_bytes(self) -> np.ndarray:
        sizes = np.zeros(self.vocab_size, dtype=np.int32)
        to_bytes = _byte_level_bytes if _is_byte_level(json.loads(self._json)) else _sentencepiece_bytes
        special = {i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            sizes[index] = 0 if index in special else len(to_bytes(token))
        return sizes

    def fingerprint(self) -> str:
        ends = json.dumps([self.eot_id, self.bos_id])
        return hash_bytes((self._json + ends).encode())

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        write_bytes(folder / "tokenizer.json", self._json.encode())
        write_bytes(folder / "tokenizer_config.json", self._config_json.encode())
        return {}

    @classmethod
    def load(cls, folder: Path, body: dict[str, Any] | None = None) -> HFTokenizer:
        """From a ``tokenizer/`` folder of ours, or any folder with a ``tokenizer.json``."""
        config = folder / "tokenizer_config.json"
        return cls(
            body["name"] if body else folder.resolve().name,
            tokenizer_json=(folder / "tokenizer.json").read_text("utf-8"),
            config_json=config.read_text("utf-8") if config.exists() else "{}",
        )

    @classmethod
    def from_hub(cls, repo_id: str, *, cached_only: bool = False) -> HFTokenizer:
        """``tokenizer.json`` and ``tokenizer_config.json`` of a Hub repository, cached by huggingface_hub.

        Raises:
            DataError: no such repository or file, or no network (or ``cached_only``) and nothing cached.
        """
        from huggingface_hub import hf_hub_download  # only those who name the Hub wait for it

        try:
            main = Path(hf_hub_download(repo_id, "tokenizer.json", local_files_only=cached_only))
        except (OSError, ValueError) as error:
            raise unreachable(f"tokenizer {repo_id!r}", error) from error
        try:
            config = hf_hub_download(repo_id, "tokenizer_config.json", local_files_only=cached_only)
            config_json = Path(config).read_text("utf-8")
        except (OSError, ValueError):
            config_json = "{}"  # some repositories have none
        return cls(repo_id, tokenizer_json=main.read_text("utf-8"), config_json=config_json)


def _special_id(named: Any, usual: tuple[str, ...], vocab: dict[str, int]) -> int | None:
    content = named.get("content") if isinstance(named, dict) else named
    if isinstance(content, str) and content in vocab:
        return vocab[content]
    return next((vocab[name] for name in usual if name in vocab), None)


def _steps(section: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json section, flattened out of its Sequence."""
    if section is None:
        return []
    return section.get(inner) or [section]


def _is_byte_level(body: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(body.get("decoder"), "decoders"))


def _is_gpt2_style(body: dict[str, Any]) -> bool:
    """Byte-level BPE split by GPT-2's own pattern and nothing else before or inside it."""
    steps = _steps(body.get("pre_tokenizer"), "pretokenizers")
    plain = not body.get("normalizer") and all(t.get("special") for t in body.get("added_tokens") or [])
    return (
        plain
        and len(steps) == 1
        and steps[0]["type"] == "ByteLevel"
        and bool(steps[0].get("use_regex", True))
        and not steps[0].get("add_prefix_space")
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character -> byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(b): b for b in kept} | {chr(256 + k): b for k, b in enumerate(moved)}


_BYTE_OF = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()  # an added token is spelled as it is


def _sentencepiece_bytes(token: str) -> bytes:
    return b"?" if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else token.replace("▁", " ").encode()
