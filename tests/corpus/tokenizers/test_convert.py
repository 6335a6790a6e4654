"""Tokenizers without ``tokenizer.json``: converted by the libraries that know them, or told how."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.corpus.tokenizers.kinds_of_tokenizers import END, TEXTS, byte_level, end_of_word

from automodel_cli.corpus.tokenizer import open_tokenizer
from automodel_cli.corpus.tokenizers import convert as tokenizer_convert
from automodel_cli.corpus.tokenizers.engines import probe_texts
from automodel_cli.errors import DataError

GPT2 = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/gpt2"


def parts_of(made, folder: Path) -> Path:
    """``vocab.json`` and ``merges.txt``, as the package ``tokenizers`` writes them."""
    folder.mkdir(exist_ok=True)
    made.model.save(str(folder))
    return folder


def test_gpt2s_kind(tmp_path: Path) -> None:
    made = byte_level()
    found = open_tokenizer(parts_of(made, tmp_path / "parts"))
    assert found.note.endswith("converted, as it has no tokenizer.json")
    assert (found.eot_id, found.vocab_size) == (made.token_to_id(END), made.get_vocab_size())
    assert found.special_texts() == (END,)
    for text in TEXTS:
        assert found.encode(text) == made.encode(text).ids and found.decode(found.encode(text)) == text
    found.save(tmp_path / "saved")
    assert open_tokenizer(tmp_path / "saved").fingerprint() == found.fingerprint()


@pytest.mark.skipif(not GPT2.exists(), reason="needs ../shared (GPT-2's vocabulary)")
def test_gpt2_itself(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((GPT2 / name).read_bytes())
    ours, whole = open_tokenizer(tmp_path), open_tokenizer(GPT2)
    assert (ours.eot_id, ours.bos_id, ours.vocab_size) == (whole.eot_id, whole.bos_id, whole.vocab_size)
    assert ours.special_texts() == whole.special_texts() and ours.cuts_at_spaces
    assert all(ours.encode(text) == whole.encode(text) for text in probe_texts())


def test_another_kind_without_its_class_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not GPT-2's kind") as error:
        open_tokenizer(parts_of(end_of_word(), tmp_path))
    assert "save_pretrained" in error.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", b"[1]"),
        ("vocab.json", b'{"a": -1}'),
        ("vocab.json", b'{"a": 99999999999}'),
        ("vocab.json", b"\xff"),
        ("merges.txt", b"\xff"),
        ("merges.txt", b"a b c\n"),
        ("merges.txt", "漢 字\n".encode()),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"tokenizer_class": 3}'),
    ],
)
def test_damaged_parts(tmp_path: Path, name: str, content: bytes) -> None:
    parts_of(byte_level(), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        open_tokenizer(tmp_path)
    assert error.value.hint and "\n" not in error.value.message


def test_what_transformers_cannot_convert_is_told_how(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")

    def fails(command, **options):
        assert options["env"]["HF_HUB_OFFLINE"] == "1" and "trust_remote_code=False" in command[3]
        return subprocess.CompletedProcess(command, 1, b"", b"Traceback\nImportError: no \x1bsentencepiece\n")

    monkeypatch.setattr(tokenizer_convert.subprocess, "run", fails)
    for named in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(DataError, match="cannot be converted: ImportError") as error:
            open_tokenizer(named)
        assert "pip install sentencepiece" in error.value.hint and "\x1b" not in error.value.message


@pytest.mark.parametrize("collapses", [False, True])
def test_sentencepiece(tmp_path: Path, collapses: bool) -> None:
    """transformers' Llama does not know that a model joins white space: such a one is refused, not misread."""
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text("\n".join(TEXTS * 50))
    package.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=collapses,
        minloglevel=2,
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>"})
    )
    if collapses:
        with pytest.raises(DataError, match="as sentencepiece does"):
            open_tokenizer(tmp_path)
        return
    found = open_tokenizer(tmp_path)
    model = package.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    known = found.text_bytes()
    assert (found.eot_id, found.vocab_size) == (model.eos_id(), 340) and known is not None
    for text in (*TEXTS, "held  out\n 漢"):
        assert found.encode(text) == model.encode(text)
        assert known.of(found.encode(text)) == len(text.encode())
