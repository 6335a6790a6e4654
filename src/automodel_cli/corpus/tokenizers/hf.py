"""Hugging Face fast tokenizers, through the ``tokenizers`` package alone: no torch, no transformers."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from pydantic import ConfigDict

from automodel_cli.corpus.tokenizers.base import Tokenizer, checked_size, read_text, unreachable, write_bytes
from automodel_cli.corpus.tokenizers.engines import (
    Engine,
    HuggingFaceEngine,
    failures_named,
    gigatoken_from_hf,
)
from automodel_cli.corpus.tokenizers.token_bytes import UNKNOWN, TokenBytes, measured
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes
from automodel_cli.json_files import FileModel, Items, parse_json, validated

_EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]")
_RESTORE = "restore the file or train the tokenizer again"
_MOST_ADDED_PROBES = 50


class _TokenizerJson(FileModel):
    """What we look at in a ``tokenizer.json``; all of it is checked by the package ``tokenizers``."""

    model_config = ConfigDict(extra="allow")

    model: dict[str, Any]
    added_tokens: Items[dict[str, Any]] | None = ()
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class _TokenizerConfig(FileModel):
    """What we look at in a ``tokenizer_config.json``: a text, or an object with ``content``."""

    eos_token: str | dict[str, Any] | None = None
    bos_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None
    unk_token: Any = None
    chat_template: Any = None

    @property
    def default_template(self) -> str | None:
        """How conversations are rendered; of several templates the one named ``default``."""
        several = self.chat_template if isinstance(self.chat_template, list) else []
        named = {one.get("name"): one.get("template") for one in several if isinstance(one, dict)}
        found = named.get("default") if several else self.chat_template
        return found if isinstance(found, str) else None

    @property
    def named_tokens(self) -> dict[str, str]:
        """``bos_token`` and the like, spelled."""
        named = {name: getattr(self, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        spelled = {name: _content(token) for name, token in named.items()}
        return {name: token for name, token in spelled.items() if isinstance(token, str)}


class HFTokenizer(Tokenizer):
    """Any Hugging Face fast tokenizer, through the ``tokenizers`` package alone."""

    kind = "hf"

    def __init__(self, name: str, *, tokenizer_json: str, config_json: str = "{}") -> None:
        self.name = name
        self._json = tokenizer_json
        self._config_json = config_json
        where = f"tokenizer {name!r}: tokenizer.json"
        self._body = validated(parse_json(tokenizer_json, where, hint=_RESTORE), _TokenizerJson, where)
        config = f"tokenizer {name!r}: tokenizer_config.json"
        ends = validated(parse_json(config_json, config, hint=_RESTORE), _TokenizerConfig, config)
        with failures_named(f"{where} is damaged", _RESTORE):
            self._tokenizer = self._build()
            vocab = self._tokenizer.get_vocab(with_added_tokens=True)
            self._added = self._tokenizer.get_added_tokens_decoder()
        self.vocab_size = checked_size(max(vocab.values(), default=-1) + 1, where)
        self.eot_id = _special_id(ends.eos_token, _EOT_NAMES, vocab)
        self.bos_id = _special_id(ends.bos_token, _BOS_NAMES, vocab)
        self.pad_id = _special_id(ends.pad_token, (), vocab)
        self.chat_template, self.named_tokens = ends.default_template, ends.named_tokens
        self.cuts_at_spaces = _is_gpt2_style(self._body)
        self._byte_level = _is_byte_level(self._body)
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

    def special_ids(self) -> Mapping[str, int]:
        return self._special_ids

    @functools.cached_property
    def _special_ids(self) -> dict[str, int]:
        return {token.content: index for index, token in self._added.items() if token.special}

    def _with_more(self, spellings: Sequence[str]) -> Tokenizer:
        body = json.loads(self._json)
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        had = [token for token in body.get("added_tokens") or [] if token["content"] not in spellings]
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        ids = {text: vocab[text] for text in spellings if text in vocab}
        new = [text for text in spellings if text not in ids]
        ids |= {text: self.vocab_size + number for number, text in enumerate(new)}
        added = [{"id": index, "content": text, **plain, "special": True} for text, index in ids.items()]
        body["added_tokens"] = sorted([*had, *added], key=lambda token: token["id"])
        made = HFTokenizer(
            self.name, tokenizer_json=json.dumps(body, ensure_ascii=False), config_json=self._config_json
        )
        for text, index in ids.items():
            if made.special_ids().get(text) != index or index in made.encode(text):
                raise DataError(
                    f"tokenizer {self.name!r} cannot have {text} as a special token: its vocabulary uses it otherwise",
                    "use another tokenizer",
                )
        return made

    def encode_placed(self, text: str, *, parse: bool = False) -> tuple[list[int], list[int]]:
        """Ids of ``text`` and the character at which each begins.

        Args:
            parse: special tokens that the text spells out are read as such.
        """
        with failures_named(f"tokenizer {self.name!r} cannot encode {text[:40]!r}", _RESTORE):
            found = (self._parsing if parse else self._tokenizer).encode(text, add_special_tokens=False)
        return found.ids, [begin for begin, _ in found.offsets]

    @functools.cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        made = self._build()
        made.encode_special_tokens = False
        return made

    def added_ids(self) -> tuple[list[int], list[int]]:
        """By the post-processor of ``tokenizer.json``; like transformers, which passes ``add_bos_token`` and
        ``add_eos_token`` of ``tokenizer_config.json`` over where there is a ``tokenizer.json``."""
        with failures_named(f"tokenizer {self.name!r} cannot encode", _RESTORE):
            whole = self._tokenizer.encode("a", add_special_tokens=True)
        text = [k for k, added in enumerate(whole.special_tokens_mask) if not added]
        first, last = (text[0], text[-1]) if text else (len(whole.ids), len(whole.ids))
        return whole.ids[:first], whole.ids[last + 1 :]

    def decode(self, ids: Iterable[int]) -> str:
        if self._byte_level:
            return super().decode(ids)
        with failures_named(f"tokenizer {self.name!r} cannot decode", _RESTORE):
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        if not self._byte_level:
            return self.decode(ids).encode()
        return b"".join(self._bytes_of(int(i)) for i in ids)

    def _bytes_of(self, index: int) -> bytes:
        """Of a byte-level token. An added one is spelled as it is, whatever its letters mean in the alphabet."""
        added = self._added.get(index)
        if added is not None:
            return added.content.encode()
        return _byte_level_bytes(self._tokenizer.id_to_token(index) or "")

    def text_bytes(self) -> TokenBytes | None:
        return self._text_bytes

    @functools.cached_property
    def _text_bytes(self) -> TokenBytes | None:
        try:
            pieces = self._pieces()
        except DataError:  # it has no token for a letter, or cannot decode
            return None
        special = [index for index, token in self._added.items() if token.special]
        inside = np.array([len(piece) for piece in pieces], dtype=np.int32)
        inside[special] = 0
        # An unknown token stands for any text, and these take white space of the text with them.
        greedy = [index for index, token in self._added.items() if token.lstrip or token.rstrip]
        inside[[*greedy, *self._unknown_ids()]] = UNKNOWN
        plain = {index: token.content for index, token in self._added.items() if not token.special}
        return measured(
            inside,
            np.array([piece.startswith(b" ") for piece in pieces], dtype=bool),
            special=special,
            added={index: plain[index] for index in sorted(plain.keys() - {*greedy})[:_MOST_ADDED_PROBES]},
            encode=lambda text: self.reference.encode(text).tolist(),
        )

    def _pieces(self) -> list[bytes]:
        """What each id stands for behind a letter."""
        if self._byte_level:
            return [self._bytes_of(index) for index in range(self.vocab_size)]
        letter = self.reference.encode("a").tolist()
        shown = len(self.decode(letter))
        pairs = [[*letter, index] for index in range(self.vocab_size)]
        with failures_named(f"tokenizer {self.name!r} cannot decode", _RESTORE):
            texts = self._tokenizer.decode_batch(pairs, skip_special_tokens=False)
        pieces = [text[shown:].encode() for text in texts]
        for index, token in self._added.items():
            pieces[index] = token.content.encode()
        if self._falls_back_to_bytes:
            spelled = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
            vocab = self._tokenizer.get_vocab(with_added_tokens=False)
            for spelling in spelled.keys() & vocab.keys():
                pieces[vocab[spelling]] = spelled[spelling]
        return pieces

    @property
    def _falls_back_to_bytes(self) -> bool:
        return bool(self._body.model.get("byte_fallback"))

    def _unknown_ids(self) -> list[int]:
        """The id that stands for any unknown text; none where every byte has a token."""
        model, vocab = self._body.model, self._tokenizer.get_vocab(with_added_tokens=True)
        spellings = [f"<0x{byte:02X}>" for byte in range(256)] if self._falls_back_to_bytes else list(_BYTE_OF)
        if (self._byte_level or self._falls_back_to_bytes) and all(text in vocab for text in spellings):
            return []
        unknown = vocab.get(model.get("unk_token") or "", model.get("unk_id"))
        return [] if unknown is None else [int(unknown)]

    def fingerprint(self) -> str:
        ends = json.dumps([self.eot_id, self.bos_id])
        return hash_bytes((self._json + ends).encode())

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        write_bytes(folder / "tokenizer.json", self._json.encode())
        write_bytes(folder / "tokenizer_config.json", self._config_json.encode())
        return {}

    @classmethod
    def load(cls, folder: Path, *, name: str | None = None) -> HFTokenizer:
        """From a ``tokenizer/`` folder of ours, or any folder with a ``tokenizer.json``."""
        config, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        config_json = read_text(config) if config.exists() else "{}"
        return cls(
            folder.resolve().name if name is None else name,
            tokenizer_json=read_text(folder / "tokenizer.json"),
            config_json=_with_template(config_json, read_text(template)) if template.exists() else config_json,
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
            config_json = read_text(Path(config))
        except (OSError, ValueError):
            config_json = "{}"  # some repositories have none
        with contextlib.suppress(OSError, ValueError):
            template = hf_hub_download(repo_id, "chat_template.jinja", local_files_only=cached_only)
            config_json = _with_template(config_json, read_text(Path(template)))
        return cls(repo_id, tokenizer_json=read_text(main), config_json=config_json)


def _content(named: Any) -> Any:
    return named.get("content") if isinstance(named, dict) else named


def _with_template(config_json: str, template: str) -> str:
    """A ``tokenizer_config.json`` with the template that lies beside it, which is the newer place for one."""
    config = parse_json(config_json, "tokenizer_config.json", hint=_RESTORE)
    return json.dumps({**config, "chat_template": template}, indent=2, ensure_ascii=False) + "\n"


def _special_id(named: Any, usual: tuple[str, ...], vocab: dict[str, int]) -> int | None:
    content = _content(named)
    if isinstance(content, str) and content in vocab:
        return vocab[content]
    return next((vocab[name] for name in usual if name in vocab), None)


def _steps(section: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json section, flattened out of its Sequence."""
    if section is None:
        return []
    return section.get(inner) or [section]


def _is_byte_level(body: _TokenizerJson) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(body.decoder, "decoders"))


def _is_gpt2_style(body: _TokenizerJson) -> bool:
    """Byte-level BPE split by GPT-2's own pattern and nothing else before or inside it."""
    steps = _steps(body.pre_tokenizer, "pretokenizers")
    plain = not body.normalizer and all(token.get("special") for token in body.added_tokens or ())
    return (
        plain
        and len(steps) == 1
        and steps[0].get("type") == "ByteLevel"
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
    return token.encode()  # no token of the alphabet: spelled as it is
