"""preprocess megatron, whole: bytes as the format says, for any workers and chunks; parts, keys, refusals, bad rows.

The expected bytes come from ``reference_files``, written here from the format alone, and from documents put together
in plain Python.
"""

import functools
import gzip
import itertools
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import zstandard
from tests.recipes.preprocess.small_runs import check_same_bytes, content, empty_sentence_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
from automodel_cli.corpus.tokenizer import ByteTokenizer, load_tokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import exclusive_lock
from automodel_cli.recipes.preprocess import megatron as preprocess_megatron
from automodel_cli.recipes.preprocess.megatron import MegatronResult

EOD = 256
TEXTS = [f"document {k}: " + "words é漢 " * (k * 7 % 23) for k in range(60)]
TEXTS[7] = TEXTS[31] = ""
BAD = [b"{broken", b'{"other": 1}', b'{"text": null}', b'{"text": "\xff"}', b'{"text": ["a", 3]}']
SHARED_CACHE = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/tiktoken_cache"
SHARED_GPT2 = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/gpt2"
Documents = list[list[list[int]]]  # a document is a list of sequences


def reference_files(documents: Documents, code: int = 8) -> tuple[bytes, bytes]:
    """``.bin`` and ``.idx`` of these documents, from the byte table of the format."""
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    sequences = [sequence for document in documents for sequence in document]
    lengths = [len(sequence) for sequence in sequences]
    pointers = [size * sum(lengths[:k]) for k in range(len(lengths))]
    bounds = [sum(len(document) for document in documents[:k]) for k in range(len(documents) + 1)]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
    index += struct.pack(f"<{len(lengths)}i{len(lengths)}q", *lengths, *pointers)
    index += struct.pack(f"<{len(bounds)}q", *bounds)
    return b"".join(struct.pack(f"<{len(s)}{letter}", *s) for s in sequences), index


def documents_of(texts: list, *, eod: bool = True) -> Documents:
    """Bytes of each text (or of each text of a list) as Megatron has documents: empty ones without sequences."""
    documents = []
    for text in texts:
        parts = [text] if isinstance(text, str) else text
        sequences = [list(part.encode()) for part in parts if part]
        if sequences and eod:
            sequences[-1].append(EOD)
        documents.append(sequences)
    return documents


def run(tmp_path: Path, name: str = "out", say: list | None = None, **options: object) -> MegatronResult:
    settings = {"tokenizer": "byte", "workers": 1, "append_eod": True, "output_path": str(tmp_path / name)}
    cfg = PreprocessMegatronConfig(**{**settings, **options})  # type: ignore[arg-type]
    lines = [] if say is None else say
    return preprocess_megatron.run(cfg, progress=lambda event: None, say=lines.append)


def pair(folder: Path, part: int = 0, key: str = "text", level: str = "document") -> tuple[bytes, bytes]:
    prefix = folder / f"processed_data_{part}_{key}_{level}"
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def write_rows(path: Path, values: list, key: str = "text") -> str:
    path.write_text("".join(json.dumps({"id": k, key: value}) + "\n" for k, value in enumerate(values)))
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A .jsonl of TEXTS with a bad row after every tenth."""
    lines = []
    for k, text in enumerate(TEXTS):
        lines.append(json.dumps({"id": k, "text": text}).encode())
        if k % 10 == 9:
            lines.append(BAD[k // 10 % len(BAD)])
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return str(tmp_path / "rows.jsonl")


# ------------------------------------------------------------------------------------------- the files


def test_one_pair_for_each_input_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in (2, 0, 1):
        write_rows(tmp_path / f"in/chunk.0000{k}.jsonl", TEXTS[20 * k : 20 * k + 20])
    result = run(tmp_path, input=str(tmp_path / "in/chunk.*.jsonl"), json_keys="text")
    for k in range(3):
        assert pair(tmp_path / "out", k) == reference_files(documents_of(TEXTS[20 * k : 20 * k + 20]))
    names = {f"processed_data_{k}_text_document.{suffix}" for k in range(3) for suffix in ("bin", "idx")}
    others = {".processed_data.lock", "processed_data.manifest.json", "processed_data.tokenizer"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | others
    manifest = MegatronManifest.read(tmp_path / "out/processed_data.manifest.json")
    assert manifest == result.manifest
    assert [(p.name, p.source) for p in manifest.pairs] == [
        (f"processed_data_{k}_text_document", f"chunk.0000{k}.jsonl") for k in range(3)
    ]
    ids = sum(len(s) for d in documents_of(TEXTS) for s in d)
    assert (manifest.documents, manifest.sequences, manifest.tokens) == (60, 58, ids)
    assert (manifest.dtype, manifest.eod_id, manifest.level, manifest.bad_rows) == (
        "uint16",
        EOD,
        "document",
        0,
    )
    assert manifest.tokenizer == load_tokenizer(manifest.tokenizer_folder).describe()
    assert str(tmp_path) not in manifest.own_path.read_text()


def test_bad_rows_are_left_out_and_named(tmp_path: Path, rows: str) -> None:
    result = run(tmp_path, input=rows)
    assert pair(tmp_path / "out") == reference_files(documents_of(TEXTS))
    assert result.manifest is not None and result.manifest.bad_rows == 6
    assert result.bad_rows[0] == "rows.jsonl:11: malformed JSON"
    assert result.bad_rows[4] == "rows.jsonl:55: text is a number, not a string in a list"
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"bad row rows\.jsonl:11: malformed JSON"):
            run(tmp_path, "strict", input=rows, strict=True, workers=workers, chunk_size=1)
    assert not list((tmp_path / "strict").glob("*.manifest.json"))


def test_empty_documents_are_kept_or_skipped(tmp_path: Path) -> None:
    texts = ["", "a", "", "", "bc", ""]
    data = write_rows(tmp_path / "a.jsonl", texts)
    run(tmp_path, input=data)
    assert pair(tmp_path / "out") == reference_files(documents_of(texts))
    run(tmp_path, "skipped", input=data, skip_empty=True)
    assert pair(tmp_path / "skipped") == reference_files(documents_of(["a", "bc"]))
    run(tmp_path, "no_eod", input=data, append_eod=False)
    assert pair(tmp_path / "no_eod") == reference_files(documents_of(texts, eod=False))


def test_a_list_of_sentences_is_one_document_of_several_sequences(tmp_path: Path) -> None:
    values = [["One.", "", "Two."], "plain", [], ["", ""], ["three"]]
    run(tmp_path, input=write_rows(tmp_path / "a.jsonl", values))
    assert pair(tmp_path / "out") == reference_files(documents_of(values))


def test_the_version_that_cut_sentences_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk", reason="nltk is not installed")
    empty_sentence_model(tmp_path, monkeypatch)
    data = write_rows(tmp_path / "a.jsonl", ["One. Two."])
    run(tmp_path, input=data, split_sentences=True)
    run(tmp_path, "whole", input=data)
    versions = [
        json.loads((tmp_path / name / "processed_data.manifest.json").read_text())["versions"]
        for name in ("out", "whole")
    ]
    assert versions[0]["nltk"] == nltk.__version__ and "nltk" not in versions[1]


def test_several_keys_in_one_pass(tmp_path: Path) -> None:
    rows = [{"text": text, "title": [f"title {k}", "x" * (k % 3)]} for k, text in enumerate(TEXTS)]
    lines = [json.dumps(row) for row in rows]
    lines[5:5] = ['{"text": "alone"}', '{"title": "alone"}', "{"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    result = run(tmp_path, input=str(tmp_path / "a.jsonl"), json_keys=["text", "title"])
    assert pair(tmp_path / "out", key="text") == reference_files(documents_of(TEXTS))
    assert pair(tmp_path / "out", key="title") == reference_files(documents_of([row["title"] for row in rows]))
    assert result.bad_rows == [
        "a.jsonl:6: no text key in 'title'",
        "a.jsonl:7: no text key in 'text'",
        "a.jsonl:8: malformed JSON",
    ]


def test_every_kind_of_input_gives_the_same_files(tmp_path: Path) -> None:
    values = [*TEXTS, ["a", "b"], [], ["", "c"]]
    lists = [value if isinstance(value, list) else [value] for value in values]
    plain = Path(write_rows(tmp_path / "rows.jsonl", lists))
    (tmp_path / "gz.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "zst.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    (tmp_path / "array.json").write_text(json.dumps([{"text": value} for value in lists]))
    for name, kind in (("large", pa.large_list(pa.large_string())), ("small", pa.list_(pa.string()))):
        table = pa.table({"id": list(range(len(lists))), "text": pa.array(lists, kind)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=10)
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "small.parquet", tmp_path / "folder/x.parquet")
    expected = reference_files(documents_of(lists))
    names = [
        "rows.jsonl",
        "gz.jsonl.gz",
        "zst.jsonl.zst",
        "array.json",
        "large.parquet",
        "small.parquet",
        "folder",
    ]
    for name in names:
        for chunk_size in (1, 256) if name in names[1:5] else (1,):
            run(tmp_path, f"{name}-{chunk_size}", input=str(tmp_path / name), chunk_size=chunk_size)
            assert pair(tmp_path / f"{name}-{chunk_size}") == expected, name
    run(tmp_path, "several", input=[str(tmp_path / "zst.jsonl.zst"), str(tmp_path / "array.json")])
    assert pair(tmp_path / "several", 0) == pair(tmp_path / "several", 1) == expected


def test_text_files_are_documents_of_one_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for k, text in enumerate(TEXTS[:12]):
        (tmp_path / f"in/{k:02d}.txt").write_text(text)
    present = [text for text in TEXTS[:12] if text]
    run(tmp_path, input=str(tmp_path / "in"))
    assert pair(tmp_path / "out") == reference_files(documents_of(present))
    run(tmp_path, "lines", input=str(tmp_path / "in/0*.txt"), document="line")
    assert pair(tmp_path / "lines", 3) == reference_files(documents_of([TEXTS[3]]))
    monkeypatch.setattr("automodel_cli.corpus.documents.source.BYTES_PER_DOCUMENT", 512)
    huge = "The quick brown fox jumps over the lazy dog. " * 400
    (tmp_path / "huge.txt").write_text(huge)
    run(tmp_path, "huge", input=str(tmp_path / "huge.txt"), chunk_size=1, workers=2)
    assert pair(tmp_path / "huge") == reference_files(documents_of([huge]))
    run(tmp_path, "sharded", input=str(tmp_path / "huge.txt"), chunk_size=1, shard_tokens=1000)
    assert pair(tmp_path / "sharded") == reference_files(documents_of([huge]))
    with pytest.raises(ConfigError, match="is a text file"):
        run(tmp_path, "x", input=str(tmp_path / "huge.txt"), json_keys=["text", "title"])


@pytest.mark.parametrize(
    ("options", "in_workers"),
    [
        ({}, False),
        ({"skip_empty": True, "max_tokens": 1234}, False),
        ({"json_keys": ["text", "id_text"], "shard_tokens": 700}, True),
        ({"json_keys": ["id_text", "text"], "max_tokens": 301}, False),
        ({"shards": 5, "json_keys": ["text", "id_text"], "skip_empty": True}, True),
        ({"shards": 3, "max_tokens": 999}, False),
    ],
    ids=["plain", "skip-max", "keys-shard-tokens", "keys-max", "keys-shards", "shards-max"],
)
def test_bytes_are_the_same_for_any_workers_and_chunk_size(
    tmp_path: Path, options: dict, in_workers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": text, "id_text": f"number {k}"}) for k, text in enumerate(TEXTS)]
    lines[25] = lines[49] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:30]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[30:]))
    again = functools.partial(run, tmp_path, input=str(tmp_path / "*.jsonl"), **options)
    again("out")
    monkeypatch.setattr("automodel_cli.recipes.preprocess.megatron.cores", lambda: 3)
    check_same_bytes(tmp_path / "out", monkeypatch, again, in_workers=in_workers, workers="workers")


# ------------------------------------------------------------------------------------------- how much


@pytest.mark.parametrize("wanted", [1, 14, 15, 16, 300, 301, 1500])
def test_max_tokens_is_exact_and_cuts_the_last_document(tmp_path: Path, rows: str, wanted: int) -> None:
    manifest = run(tmp_path, input=rows, max_tokens=wanted).manifest
    assert manifest is not None and manifest.tokens == wanted
    documents: Documents = []
    for document in documents_of(TEXTS):
        left = wanted - sum(len(s) for d in documents for s in d)
        if left <= 0:
            break
        documents.append([s[:left] for s in document])
    assert pair(tmp_path / "out") == reference_files(documents)


def test_more_than_there_is_is_said(tmp_path: Path, rows: str) -> None:
    said: list[str] = []
    run(tmp_path, say=said, input=rows, max_tokens="1M")
    assert any("the source ended at" in line and "1,000,000" in line for line in said)


def test_other_keys_get_whole_documents_of_the_same_rows(tmp_path: Path) -> None:
    rows = [{"a": "12345", "b": "x" * k} for k in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path, input=str(tmp_path / "a.jsonl"), json_keys=["a", "b"], max_tokens=21)
    assert pair(tmp_path / "out", key="a") == reference_files([*documents_of(["12345"] * 3), [[49, 50, 51]]])
    assert pair(tmp_path / "out", key="b") == reference_files(documents_of(["", "x", "xx", "xxx"]))


def test_shard_tokens_are_a_limit_that_only_a_single_document_passes(tmp_path: Path) -> None:
    texts = ["a" * 4, "b" * 4, "c" * 4, "d" * 20, "e", "f", "g" * 9]
    (tmp_path / "1.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[:5]))
    (tmp_path / "2.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[5:]))
    manifest = run(tmp_path, input=str(tmp_path / "*.jsonl"), shard_tokens=10).manifest
    assert manifest is not None
    groups = [texts[:2], texts[2:3], texts[3:4], texts[4:6], texts[6:]]
    for part, group in enumerate(groups):
        assert pair(tmp_path / "out", part) == reference_files(documents_of(group))
    assert [(p.part, p.tokens, p.source) for p in manifest.pairs] == [
        (part, sum(len(text) + 1 for text in group), None) for part, group in enumerate(groups)
    ]


def test_shards_are_about_equal_and_keep_the_order(tmp_path: Path, rows: str) -> None:
    whole = b"".join(reference_files([document])[0] for document in documents_of(TEXTS))
    longest = max(len(text.encode()) + 1 for text in TEXTS)
    for shards in (1, 2, 7, 58):
        name = f"out{shards}"
        manifest = run(tmp_path, name, input=rows, shards=shards).manifest
        assert manifest is not None and [p.part for p in manifest.pairs] == list(range(shards))
        assert b"".join(pair(tmp_path / name, part)[0] for part in range(shards)) == whole
        assert manifest.documents == 60 and min(p.tokens for p in manifest.pairs) > 0
        if shards < 58:
            share = manifest.tokens / shards
            assert all(abs(p.tokens - share) <= longest for p in manifest.pairs)
        assert not list((tmp_path / name).glob(".*spool"))
    with pytest.raises(DataError, match="58 documents with text for 59 shards"):
        run(tmp_path, "too many", input=rows, shards=59)


def test_inputs_without_text_give_no_files_and_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "0.jsonl", ["", ""])
    write_rows(tmp_path / "1.jsonl", ["text"])
    (tmp_path / "2.jsonl").write_text("{\n")
    said: list[str] = []
    manifest = run(tmp_path, say=said, input=str(tmp_path / "*.jsonl")).manifest
    assert manifest is not None and [p.name for p in manifest.pairs] == ["processed_data_1_text_document"]
    assert "0.jsonl holds no text in 'text': no processed_data_0_text_document" in said
    assert "2.jsonl holds no text in 'text': no processed_data_2_text_document" in said
    with pytest.raises(DataError, match=r"holds no text \(1 bad rows; first: 2\.jsonl:1: malformed JSON\)"):
        run(tmp_path, "none", input=str(tmp_path / "2.jsonl"))


# --------------------------------------------------------------------------------------- tokenizers


def big_tokenizer(folder: Path, size: int) -> None:
    vocab = {f"w{k}": k for k in range(size - 1)} | {"<|endoftext|>": size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("size", "code"), [(65_499, 8), (65_500, 4), (65_536, 4)])
def test_dtype_is_megatrons_choice(tmp_path: Path, size: int, code: int) -> None:
    big_tokenizer(tmp_path / "big", size)
    data = write_rows(tmp_path / "a.jsonl", [f"w5 w{size - 2}", "w1"])
    run(tmp_path, input=data, tokenizer=str(tmp_path / "big"))
    assert pair(tmp_path / "out") == reference_files([[[5, size - 2, size - 1]], [[1, size - 1]]], code)


def bpe_with_special_tokens(folder: Path, config: dict) -> None:
    """Bytes as they are, <s> added in front by the post-processor, and special tokens that texts may spell out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: k for k, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>", "<|endoftext|>")]
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", special=True, lstrip=True, normalized=False)])
    tokenizer.add_tokens(["<think>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


NASTY = [
    "plain",
    "a<|endoftext|>b",
    "<s>x</s>",
    "",
    "  <mask> <mask>y",
    "<think>hm</think>",
    "<|endof text|>",
    "é<s",
]


@pytest.mark.parametrize("add", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_parse_is_what_transformers_does(tmp_path: Path, add: dict, add_special_tokens: bool) -> None:
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **add}
    bpe_with_special_tokens(tmp_path / "bpe", config)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "bpe"))
    data = write_rows(tmp_path / "a.jsonl", NASTY)
    common = {"input": data, "tokenizer": str(tmp_path / "bpe"), "add_special_tokens": add_special_tokens}
    for engine in ("auto", "reference"):
        run(tmp_path, engine, special_tokens="parse", engine=engine, **common)
        documents = []
        for text in NASTY:
            ids = theirs(text, add_special_tokens=add_special_tokens).input_ids
            documents.append([[*ids, theirs.eos_token_id]] if ids else [])
        assert pair(tmp_path / engine) == reference_files(documents)


def test_special_tokens_in_text_stay_text_by_default(tmp_path: Path) -> None:
    bpe_with_special_tokens(tmp_path / "bpe", {"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "bpe/tokenizer.json"))
    special = {tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<|endoftext|>", "<mask>")}
    data = write_rows(tmp_path / "a.jsonl", NASTY)
    run(tmp_path, input=data, tokenizer=str(tmp_path / "bpe"), add_special_tokens=False)
    ids = np.frombuffer(pair(tmp_path / "out")[0], "<u2").tolist()
    assert special & set(ids) == {tokenizer.token_to_id("</s>")}
    assert ids.count(tokenizer.token_to_id("</s>")) == sum(bool(text) for text in NASTY)


@pytest.mark.skipif(not SHARED_GPT2.exists(), reason="no GPT-2 vocabulary beside the project")
def test_gpt2_by_its_hub_name_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = write_rows(tmp_path / "a.jsonl", [*NASTY, *TEXTS])
    said: list[str] = []
    for special in ("text", "parse"):
        common = {"input": data, "special_tokens": special}
        run(tmp_path, f"name-{special}", say=said, tokenizer="openai-community/gpt2", **common)
        run(tmp_path, f"folder-{special}", tokenizer=str(SHARED_GPT2), engine="reference", **common)
        assert pair(tmp_path / f"name-{special}") == pair(tmp_path / f"folder-{special}")
    assert pair(tmp_path / "name-text") != pair(tmp_path / "name-parse")
    assert any("openai-community/gpt2: GPT-2's vocabulary as tiktoken has it" in line for line in said)


def test_a_tokenizer_without_end_of_text(tmp_path: Path, rows: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    (tmp_path / "tiny").mkdir()
    tokenizer.save(str(tmp_path / "tiny/tokenizer.json"))
    with pytest.raises(ConfigError, match="no end-of-text token to append"):
        run(tmp_path, input=rows, tokenizer=str(tmp_path / "tiny"))
    run(tmp_path, input=rows, tokenizer=str(tmp_path / "tiny"), append_eod=False)


def test_a_wrong_fast_engine_is_found_and_the_run_starts_over(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        name = "wrong"

        def encode(self, text: str) -> np.ndarray:
            found = np.frombuffer(text.encode(), np.uint8)
            return found[:-1] if "document 41" in text else found

    monkeypatch.setattr(ByteTokenizer, "_fast_engine", lambda self: Wrong())
    monkeypatch.setattr("automodel_cli.corpus.tokenizers.engines.SAMPLE_ONE_IN", 1)
    said: list[str] = []
    run(tmp_path, say=said, input=rows, shards=2)
    assert any("starting over with the reference engine" in line for line in said)
    run(tmp_path, "right", input=rows, shards=2, engine="reference")
    assert content(tmp_path / "out") == content(tmp_path / "right")


# ------------------------------------------------------------------------------------------- refusals


def test_finished_files_are_left_alone_and_another_plan_is_refused(tmp_path: Path, rows: str) -> None:
    run(tmp_path, input=rows, max_tokens=500)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = run(tmp_path, input=rows, max_tokens=500, workers=2)
    assert again.already_complete and again.manifest is not None and again.manifest.tokens == 500
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ConfigError, match="max_tokens 500 -> 600"):
        run(tmp_path, input=rows, max_tokens=600)
    with pytest.raises(ConfigError, match="append_eod True -> False"):
        run(tmp_path, input=rows, max_tokens=500, append_eod=False)
    run(tmp_path, input=rows, max_tokens=600, overwrite=True)
    (tmp_path / "out/processed_data_0_text_document.bin").unlink()
    with pytest.raises(DataError, match=r"processed_data_0_text_document\.bin is missing"):
        run(tmp_path, input=rows, max_tokens=600)


def test_other_prefixes_in_the_folder_are_not_touched(tmp_path: Path, rows: str) -> None:
    run(tmp_path, input=rows, output_prefix="data")
    run(tmp_path, input=rows, output_prefix="data_0")
    run(tmp_path, input=rows, output_prefix="other", shards=3)
    before = content(tmp_path / "out")
    run(tmp_path, input=rows, output_prefix="data", overwrite=True, json_keys=["text"], append_eod=False)
    after = content(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {
        "data.manifest.json",
        "data_0_text_document.bin",
        "data_0_text_document.idx",
    }


def test_files_that_are_not_ours_are_not_touched(tmp_path: Path, rows: str) -> None:
    (tmp_path / "out").mkdir()
    precious = tmp_path / "out/processed_data_3_text_document.bin"
    precious.write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"processed_data_3_text_document\.bin but no"):
        run(tmp_path, input=rows)
    with pytest.raises(ConfigError, match=r"processed_data_3_text_document\.bin but no"):
        run(tmp_path, input=rows, overwrite=True)
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "name",
    [
        "processed_data_0_text_document.idx.tmp",
        "processed_data.manifest.json",
        "processed_data.progress.json",
        "processed_data.tokenizer/tokenizer.json",
        ".processed_data.shuffle/notes",
        ".processed_data.spool/notes",
    ],
)
def test_what_others_made_is_neither_replaced_nor_removed(tmp_path: Path, rows: str, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="but no manifest of ours"):
            run(tmp_path, input=rows, overwrite=overwrite, shards=2, shuffle=True)
        assert content(tmp_path / "out").items() <= {name: b"precious", ".processed_data.lock": b""}.items()


def test_overwrite_keeps_what_was_added(tmp_path: Path, rows: str) -> None:
    run(tmp_path, input=rows)
    others = ["processed_data.tokenizer/notes", "processed_data_text_document.bin", "notes"]
    for name in others:
        (tmp_path / "out" / name).write_bytes(b"precious")
    run(tmp_path, input=rows, overwrite=True, append_eod=False)
    assert all((tmp_path / "out" / name).read_bytes() == b"precious" for name in others)


def test_overwrite_with_fewer_parts_leaves_none_of_the_old(tmp_path: Path, rows: str) -> None:
    run(tmp_path, input=rows, shards=4)
    run(tmp_path, input=rows, overwrite=True)
    run(tmp_path, "fresh", input=rows)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_second_writer_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "out").mkdir()
    lock = exclusive_lock(tmp_path / "out/.processed_data.lock", busy="busy")
    with lock, pytest.raises(AutomodelError, match="another process is writing processed_data"):
        run(tmp_path, input=rows)
    with exclusive_lock(tmp_path / "out/.processed_data.lock", busy="busy"):
        run(tmp_path, input=rows, output_prefix="other")


def test_dry_run_writes_nothing(tmp_path: Path, rows: str) -> None:
    said: list[str] = []
    result = run(tmp_path, say=said, input=rows, dry_run=True)
    assert result.manifest is None and not (tmp_path / "out").exists()
    text = "\n".join(said)
    assert "would read 1 file, " in text and "would write all tokens (about " in text and "iB free)" in text
    assert "would make processed_data_0_text_document from rows.jsonl" in text
    said.clear()
    run(tmp_path, say=said, input=rows, dry_run=True, shards=4, max_tokens=100)
    assert "would make 4 pairs for each of text" in "\n".join(said) and "exactly 100 tokens" in "\n".join(said)


def test_too_little_room_is_said_before(tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automodel_cli.corpus.build.disk_space.free_bytes", lambda folder: 10_000)
    said: list[str] = []
    run(tmp_path, say=said, input=rows)
    assert any("the disk may become full" in line for line in said)
    monkeypatch.setattr("automodel_cli.corpus.build.disk_space.free_bytes", lambda folder: 1000)
    with pytest.raises(AutomodelError, match="B free, about"):
        run(tmp_path, "none", input=rows)


def test_output_prefix_may_name_the_folder(tmp_path: Path, rows: str) -> None:
    run(tmp_path, input=rows, output_path=None, output_prefix=str(tmp_path / "a/b/mine"))
    assert (tmp_path / "a/b/mine_0_text_document.idx").exists()


# --------------------------------------------------------------------------------------------- shuffle


def documents_in(folder: Path) -> list[bytes]:
    manifest = MegatronManifest.read(folder / "processed_data.manifest.json")
    data = b"".join(pair(folder, part)[0] for part in range(len(manifest.pairs)))
    documents, first = [], 0
    tokens = np.frombuffer(data, "<u2")
    for end in np.flatnonzero(tokens == EOD) + 1:
        documents.append(bytes(tokens[first : end - 1].astype(np.uint8)))
        first = end
    return documents


def test_shuffle_is_the_order_of_preprocess_shuffle(tmp_path: Path, rows: str) -> None:
    from automodel_cli.config.schema.shuffle import ShuffleConfig
    from automodel_cli.recipes.preprocess import shuffle

    data = tmp_path / "in"
    data.mkdir()
    shutil.copy(rows, data / "a.jsonl")
    write_rows(data / "b.jsonl", ["", *(f"other {k}" for k in range(50))])
    run(tmp_path, input=str(data), shuffle=True, seed=7)
    cfg = ShuffleConfig(dataset=str(data), output_dir=str(tmp_path / "text"), seed=7, check=True, name="x")
    shuffle.run(cfg, progress=lambda event: None, say=lambda line: None)
    lines = (tmp_path / "text/x.chunk.00000.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert sorted(texts) == sorted([*TEXTS, "", *(f"other {k}" for k in range(50))])
    assert pair(tmp_path / "out") == reference_files(documents_of(texts))
    assert not list((tmp_path / "out").glob(".*shuffle"))
    manifest = MegatronManifest.read(tmp_path / "out/processed_data.manifest.json")
    assert manifest.bad_rows == 6 and manifest.options["seed"] == 7


def test_shuffled_bytes_depend_on_seed_and_input_alone(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"input": rows, "shuffle": True, "shard_tokens": 700, "max_tokens": 3000}
    run(tmp_path, **options)
    expected = content(tmp_path / "out")
    assert set(documents_in(tmp_path / "out")) < {text.encode() for text in TEXTS}
    monkeypatch.setattr("automodel_cli.corpus.documents.source.BYTES_PER_DOCUMENT", 37)
    for workers, memory in ((1, 2000), (2, 10**6)):
        run(tmp_path, "again", workers=workers, chunk_size=1, shuffle_memory=memory, **options)
        assert content(tmp_path / "again") == expected
        shutil.rmtree(tmp_path / "again")
    run(tmp_path, "other", seed=1, **options)
    assert documents_in(tmp_path / "other") != documents_in(tmp_path / "out")
    said: list[str] = []
    run(tmp_path, "dry", say=said, dry_run=True, **options)
    assert any("in random order (seed 42)" in line for line in said)
    with pytest.raises(DataError, match=r"bad row rows\.jsonl:11"):
        run(tmp_path, "strict", strict=True, **options)
    assert not list((tmp_path / "strict").glob(".*shuffle"))


def test_a_source_without_text_leaves_nothing_to_continue(tmp_path: Path) -> None:
    """The next command in that folder is not taken for another run of this one."""
    (tmp_path / "nothing.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no text"):
        run(tmp_path, input=str(tmp_path / "nothing.jsonl"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".processed_data.lock"]
    run(tmp_path, input=write_rows(tmp_path / "some.jsonl", TEXTS))
    assert pair(tmp_path / "out") == reference_files(documents_of(TEXTS))


def test_killed_while_it_cleans_up(tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever file it stops, the same command ends with the same folder, and nothing of ours stays behind."""

    class Killed(BaseException):
        """Stands for a signal that nobody can catch."""

    options = {"input": rows, "shards": 2, "shuffle": True, "overwrite": True}
    run(tmp_path, "whole", **options)
    whole, out = content(tmp_path / "whole"), tmp_path / "out"
    unlink, stops = Path.unlink, 0
    for number in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        run(tmp_path, input=rows)
        calls = itertools.count(1)

        def counted(path: Path, missing_ok: bool = False, calls=calls, number=number) -> None:
            if next(calls) == number:
                raise Killed
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", counted)
        try:
            run(tmp_path, **options)
            break
        except Killed:
            stops += 1
        finally:
            monkeypatch.setattr(Path, "unlink", unlink)
        run(tmp_path, **options)
        assert content(out) == whole and not list(out.glob(".*.s[hp]*")), number
    assert stops > 10
