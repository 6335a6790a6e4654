"""Tokenizers that come without a ``tokenizer.json``: ``vocab.json`` with ``merges.txt``, or a ``tokenizer.model``.

GPT-2's kind of the first is built with the package ``tokenizers``. Everything else is a matter of its class, which
transformers knows: its conversion runs in a process of its own, without network and without code from the folder, and
needs sentencepiece and protobuf for ``tokenizer.model``; what comes out has to cut texts as sentencepiece does. Then
it is a ``tokenizer.json`` like any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from pydantic import Field
from tokenizers import decoders, models, pre_tokenizers, processors

from automodel_cli.corpus.tokenizers.base import MAX_VOCAB, read_text
from automodel_cli.corpus.tokenizers.engines import failures_named
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.corpus.tokenizers.token_bytes import PROBES
from automodel_cli.errors import DataError
from automodel_cli.json_files import FileModel, read_json, read_model, validated, without_controls

VOCAB, MERGES, MODEL, CONFIG = "vocab.json", "merges.txt", "tokenizer.model", "tokenizer_config.json"
_GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
_TIMEOUT_S = 300
_CONVERT = """
import json, pathlib, sys
folder, output = sys.argv[1:]
model = pathlib.Path(folder, "tokenizer.model")
original = None
if model.is_file() and model.read_bytes()[:1] == b"\\n":  # sentencepiece's first field, and not a list of ranks
    import sentencepiece
    original = sentencepiece.SentencePieceProcessor(model_file=str(model))
import transformers
found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
found.backend_tokenizer.save(output)
for text in json.load(sys.stdin) if original is not None else ():
    wanted = original.encode(text, out_type=str)
    known = original.unk_id() not in original.encode(text)
    if known and found.backend_tokenizer.encode(text, add_special_tokens=False).tokens != wanted:
        sys.exit(f"Error: {type(found).__name__} does not cut {text!r} as sentencepiece does")
"""


class _Config(FileModel):
    tokenizer_class: str | None = None
    add_prefix_space: bool = False


class _Vocab(FileModel):
    tokens: dict[str, Annotated[int, Field(ge=0, lt=MAX_VOCAB)]]


def can_convert(folder: Path) -> bool:
    """Whether a folder holds one of these."""
    return (folder / MODEL).is_file() or ((folder / VOCAB).is_file() and (folder / MERGES).is_file())


def convert(folder: Path) -> HFTokenizer:
    """The tokenizer of a folder without ``tokenizer.json``.

    Raises:
        DataError: its files are damaged, or no library that is installed can convert them.
    """
    config_text = read_text(folder / CONFIG) if (folder / CONFIG).is_file() else "{}"
    config = read_model(folder / CONFIG, _Config) if (folder / CONFIG).is_file() else _Config()
    if not (folder / MODEL).is_file() and config.tokenizer_class in _GPT2_CLASSES:
        made = _gpt2_kind(folder, config, config_text)
    else:
        made = _by_transformers(folder)
    tokenizer = HFTokenizer(folder.resolve().name, tokenizer_json=made, config_json=config_text)
    tokenizer.note = f"{without_controls(str(folder))}: converted, as it has no tokenizer.json"
    return tokenizer


def _gpt2_kind(folder: Path, config: _Config, config_text: str) -> str:
    """Byte-level BPE split by GPT-2's pattern; what the configuration names is a special token."""
    where = f"the tokenizer in {without_controls(str(folder))}"
    words = validated({"tokens": read_json(folder / VOCAB)}, _Vocab, folder / VOCAB).tokens
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= words.keys():
        raise DataError(
            f"{where} has no {CONFIG} with a tokenizer_class, and its vocabulary is not GPT-2's kind",
            "save it with transformers, which writes tokenizer.json: tokenizer.save_pretrained(FOLDER)",
        )
    lines = read_text(folder / MERGES).splitlines()
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    with failures_named(f"{where} is damaged"):
        made = tokenizers.Tokenizer(models.BPE(words, [(first, second) for first, second in pairs]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.add_prefix_space)
        made.decoder = decoders.ByteLevel()
        made.post_processor = processors.ByteLevel(trim_offsets=False)
        made.add_special_tokens([name for name in _special_names(config_text) if name in words])
        return made.to_str()


def _special_names(config_text: str) -> list[str]:
    config: dict[str, Any] = json.loads(config_text)
    named = [config.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token")]
    texts = [one.get("content") if isinstance(one, dict) else one for one in named]
    return list(dict.fromkeys([text for text in texts if isinstance(text, str)] or ["<|endoftext|>"]))


def _by_transformers(folder: Path) -> str:
    """``tokenizer.json`` as transformers converts a folder.

    Raises:
        DataError: it cannot, with what it says last.
    """
    with tempfile.TemporaryDirectory(prefix="automodel-tokenizer-") as scratch:
        made = Path(scratch, "tokenizer.json")
        command = [sys.executable, "-P", "-c", _CONVERT, str(folder.resolve()), str(made)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        try:
            done = subprocess.run(
                command,
                input=json.dumps(PROBES).encode(),
                env=environment,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _cannot(folder, f"not done after {_TIMEOUT_S} s") from None
        if done.returncode != 0 or not made.is_file():
            lines = done.stderr.decode("utf-8", errors="replace").strip().splitlines() or ["no reason given"]
            told = [line for line in lines if "Error" in line] or lines
            raise _cannot(folder, without_controls(told[-1])[:200])
        return read_text(made)


def _cannot(folder: Path, why: str) -> DataError:
    return DataError(
        f"the tokenizer in {without_controls(str(folder))} has no tokenizer.json and cannot be converted: {why}",
        "pip install sentencepiece protobuf, and let tokenizer_config.json name its tokenizer_class; or save it with "
        "transformers elsewhere: tokenizer.save_pretrained(FOLDER)",
    )
