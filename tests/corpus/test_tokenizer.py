"""Tokenizers: round trips, special text, folders, fingerprints, byte counts, clear errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from automodel_cli.corpus.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    load_tokenizer,
    open_tokenizer,
)
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.errors import ConfigError, DataError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak. <|endoftext|> naïve café 漢字 👍🏽 \x00"
SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def trained() -> HFTokenizer:
    return train_bpe([TEXT * 3, "hear me speak " * 50], 300, name="tiny")


@pytest.mark.parametrize("make", [ByteTokenizer, trained, lambda: CharTokenizer(TEXT)])
def test_round_trip_save_load(make, tmp_path: Path) -> None:
    tokenizer: Tokenizer = make()
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT and tokenizer.decode_bytes(ids) == TEXT.encode()
    assert max(ids) < tokenizer.vocab_size and tokenizer.eot_id not in ids
    tokenizer.save(tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    assert again.encode(TEXT) == ids and again.describe() == tokenizer.describe()
    again.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert open_tokenizer(tmp_path / "a").fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("make", [ByteTokenizer, trained, lambda: CharTokenizer(TEXT)])
def test_token_bytes_sum_to_the_text(make) -> None:
    tokenizer: Tokenizer = make()
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32 and len(sizes) == tokenizer.vocab_size
    assert sizes[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())
    if tokenizer.eot_id is not None:
        assert sizes[tokenizer.eot_id] == 0


def test_byte_ids() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé") == [97, 195, 169]
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.dtype.name) == (257, 256, "uint16")
    assert tokenizer.decode([72, 105, 256]) == "Hi"


def test_char_ids_are_nanogpts() -> None:
    tokenizer = CharTokenizer("hello world")
    chars = sorted(set("hello world"))
    assert tokenizer.encode("world") == [chars.index(c) for c in "world"]
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (None, len(chars))
    for text in ("Hello", "wörld", "\U0001f44d"):
        with pytest.raises(DataError, match="not in this vocabulary"):
            tokenizer.encode(text)


def test_changed_folders_are_refused(tmp_path: Path) -> None:
    trained().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"Ġme"', '"Ġmf"'))
    with pytest.raises(DataError, match=r"fingerprint|damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "automodel_tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_names_that_mean_nothing() -> None:
    with pytest.raises(ConfigError, match="made from the data"):
        open_tokenizer("char")
    with pytest.raises(ConfigError, match="no tokenizer"):
        open_tokenizer("./not/there")


def test_no_network_and_no_cache_is_a_clear_error(tmp_path: Path) -> None:
    """In a process of its own: caches are read from the environment at import."""
    code = (
        "from automodel_cli.corpus.tokenizer import open_tokenizer\n"
        "from automodel_cli.errors import DataError\n"
        "for name in ('gpt2', 'someone/some-tokenizer'):\n"
        "    try:\n        open_tokenizer(name)\n"
        "    except DataError as error:\n        print(error)\n"
    )
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": ""}
    env = {**os.environ, **nowhere, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env |= {"TIKTOKEN_CACHE_DIR": str(tmp_path), "no_proxy": "", "NO_PROXY": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.count("cannot be loaded") == 2
    for way in ("TIKTOKEN_CACHE_DIR", "tokenizer.json", "--tokenizer byte", "preprocess tokenizer"):
        assert way in done.stdout


def test_special_tokens_of_a_hugging_face_folder(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer.save(tmp_path)
    (tmp_path / "automodel_tokenizer.json").unlink()  # now it is any Hugging Face folder
    plain = open_tokenizer(tmp_path)
    assert plain.eot_id == 0 and plain.encode(TEXT) == tokenizer.encode(TEXT)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "!", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert open_tokenizer(tmp_path).eot_id == tokenizer.encode("!")[0]
    assert open_tokenizer(tmp_path / "tokenizer.json").encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared (GPT-2's vocabulary)")
def test_gpt2_from_hugging_face_and_from_tiktoken_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tokenizers/tiktoken_cache"))
    ours, theirs = open_tokenizer("gpt2"), open_tokenizer(SHARED / "tokenizers/gpt2")
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert (ours.eot_id, ours.vocab_size) == (theirs.eot_id, theirs.vocab_size) == (50256, 50257)
    np.testing.assert_array_equal(ours.token_bytes(), theirs.token_bytes())
    assert ours.cuts_at_spaces and theirs.cuts_at_spaces


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared (GPT-2's vocabulary)")
def test_gpt2s_two_implementations_split_every_kind_of_character_alike() -> None:
    """Why tiktoken's vocabulary may serve for openai-community/gpt2: the packages have Unicode tables of their own.

    Here all code points below U+3000 and a sample of the others, in places where their class decides; all 1.1M agree
    (tiktoken 0.14, tokenizers 0.23), which takes 80 s.
    """
    ours = open_tokenizer(SHARED / "tokenizers/gpt2").reference
    theirs = TiktokenTokenizer.named("gpt2").reference
    points = [*range(0x3000), *range(0x3000, 0x110000, 211)]
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    for first in range(0, len(characters), 256):
        text = "".join(f"a{c}b {c}{c} 1{c}2.{c} {c}'s\n" for c in characters[first : first + 256])
        assert np.array_equal(ours.encode(text), theirs.encode(text)), hex(ord(characters[first]))


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared (GPT-2's vocabulary)")
def test_gpt2_by_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tokenizers/tiktoken_cache"))
    for name in ("openai-community/gpt2", "gpt2-xl"):
        tokenizer = open_tokenizer(name)
        assert tokenizer.name == "gpt2" and tokenizer.note.startswith(f"{name}: ")
    folder = tmp_path / "openai-community/gpt2"
    trained().save(folder)
    monkeypatch.chdir(tmp_path)
    assert open_tokenizer("openai-community/gpt2").kind == "hf"  # a folder of that name comes first


def marker(folder: Path, **changes) -> None:
    path = folder / "automodel_tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def small_tiktoken() -> TiktokenTokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)}
    return TiktokenTokenizer(
        tiktoken.Encoding("t", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<e>": 256})
    )


@pytest.mark.parametrize("text", ["[1]", "[" * 1000, '{"a": NaN}', '{"model": 3}', "\udcff", "{}", ""])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "automodel_tokenizer.json"])
def test_crafted_files_are_clear_errors(tmp_path: Path, name: str, text: str) -> None:
    if (name, text) in (("tokenizer_config.json", "{}"), ("tokenizer_config.json", '{"model": 3}')):
        return
    trained().save(tmp_path)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as error:
        open_tokenizer(tmp_path)
    assert error.value.hint and "\n" not in error.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"special_tokens": {"x": 4_000_000_000}},
        {"special_tokens": {"x": -1}},
        {"special_tokens": [1]},
        {"pattern": "("},
        {"pattern": None},
        {"kind": "other"},
        {"kind": ["tiktoken"]},
        {"name": 7},
    ],
)
def test_crafted_parts_of_tiktokens(tmp_path: Path, change: dict) -> None:
    small_tiktoken().save(tmp_path)
    assert load_tokenizer(tmp_path).encode("ab") == [97, 98]
    marker(tmp_path, **change)
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("ranks", [b"YQ== 0\nYg== 0\n", b"YQ==", b"\xff\xff 1", b"YQ== 99999999999999", b""])
def test_ranks_that_contradict_themselves(tmp_path: Path, ranks: bytes) -> None:
    """Some of these are panics of the Rust side."""
    small_tiktoken().save(tmp_path)
    (tmp_path / "ranks.tiktoken").write_bytes(ranks)
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)


def test_a_panic_while_encoding_or_decoding_is_a_clear_error() -> None:
    lacking = TiktokenTokenizer(tiktoken.Encoding("t", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={}))
    with pytest.raises(DataError, match=r"tiktoken .* cannot encode 'b'"):
        lacking.encode("b")
    with pytest.raises(DataError, match="cannot decode"):
        lacking.decode_bytes([9])
    body = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    template = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    template["single"] = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    odd = HFTokenizer("odd", tokenizer_json=json.dumps({**body, "post_processor": template}))
    with pytest.raises(DataError, match="cannot encode"):
        odd.added_ids()
    with pytest.raises(DataError, match="ids go up to 4,294,967,295"):
        HFTokenizer("huge", tokenizer_json=json.dumps(body).replace('{"a": 0}', '{"a": 4294967295}'))


def test_an_interrupt_while_encoding_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tiktoken()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer.reference, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")
