"""docs/formats.md against real files, read with nothing but numpy, json and safetensors.

For each JSON file the keys in the page's table must be the keys in the file: a key that is added, dropped or renamed
fails here until the page says so.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xxhash
import yaml
from safetensors import safe_open
from tests import nursery
from tests.token_files import write_megatron_file

from automodel_cli.cli import app
from automodel_cli.corpus.documents.units import BadRow, FieldSequences, TokenChunk, Unit
from automodel_cli.corpus.jobs.part_files import PartWriter
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.scaling.results import ResultRow

PAGE = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
SEQ_LEN = 16
SENTENCES = [f"line {number} of a small text, {number * number} squared" for number in range(300)]


def automodel(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = nursery.run(
        [sys.executable, "-m", "automodel_cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Made:
    """What the commands wrote."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def step(self) -> Path:
        return self.run / "step_00000004"

    def json(self, path: Path) -> dict:
        return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A corpus of three shards and a validation file, a run of four updates, its scores; and a char corpus."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    source = ("--dataset", "text.txt", "--document", "line")
    automodel(
        folder, "preprocess", "nanogpt", *source, "--tokenizer", "byte", "--shard-tokens", "5000",
        "--val-tokens", "1000", "--output-dir", "corpus",
    )  # fmt: skip
    automodel(folder, "preprocess", "nanogpt", *source, "--tokenizer", "char", "--format", "raw", "-o", "char")
    model = {"vocab_size": 257, "n_positions": SEQ_LEN, "n_embd": 16, "n_layer": 1, "n_head": 2}
    dataset = {"_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset", "seq_len": SEQ_LEN}
    config = {
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", **model},
        "dataset": {**dataset, "file_pattern": "corpus/dataset.bin"},
        "validation_dataset": {**dataset, "file_pattern": "corpus/val.bin"},
        "step_scheduler": {"global_batch_size": 4, "local_batch_size": 4, "max_steps": 4},
        "checkpoint": {"checkpoint_dir": "run"},
        "compile": False,
    }
    (folder / "cfg.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    automodel(folder, "cfg.yaml")
    automodel(folder, "eval", "run", "--bigram", "corpus/dataset.bin")
    return Made(folder)


# ----------------------------------------------------------------------------------- what the page says


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/formats.md has no section {heading!r}"
    return found[1]


def table_keys(heading: str, *, first: str = "key") -> set[str]:
    """The backticked names in the first column of the table whose heading row begins with ``first``."""
    _, _, after = section(heading).partition(f"| {first} | ")
    assert after, f"{heading}: no table that begins with {first!r}"
    rows = after.split("\n\n")[0].splitlines()[2:]
    return {re.match(r"\| `([^`]+)`", row)[1] for row in rows}


def test_no_section_is_empty():
    for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE):
        assert section(heading).strip() or heading == "Token files", heading


# ------------------------------------------------------------------------------------------ token files


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Header and tokens by the page's byte table, nothing else."""
    raw = path.read_bytes()
    header = np.frombuffer(raw[:1024], "<i4")
    tokens = np.frombuffer(raw[1024:], {2: "<u2", 4: "<u4"}[int(header[3])])
    return header, tokens


def test_shards_hold_the_text(made):
    text = b""
    names = ["dataset.bin", "dataset_00001.bin", "dataset_00002.bin", "val.bin"]
    for name in names:
        header, tokens = read_shard(made.corpus / name)
        assert header[:4].tolist() == [278895051, 1, len(tokens), 2] and not header[4:].any()
        if name != "val.bin":
            text += b"".join(b"\n" if token == 256 else bytes([token]) for token in tokens.tolist())
    assert set(text.decode().strip("\n").split("\n")) <= set(SENTENCES)


def test_the_index_counts_tokens_and_points_at_the_separator(made):
    for path in sorted(made.corpus.glob("*.bin")):
        _, tokens = read_shard(path)
        positions = np.fromfile(path.with_suffix(".bos.idx"), "<i4")
        assert (np.diff(positions) > 0).all()
        assert positions.tolist() == np.flatnonzero(tokens == 256).tolist()


def test_part_files_by_the_byte_table(tmp_path):
    """Two fields, of which the first has one sequence a document and the second any number; a bad row."""
    chunk = TokenChunk(
        np.array([7, 8, 9, 1, 2, 3], "<u2"),
        [
            FieldSequences(3, np.array([2, 1]), np.array([1, 1])),
            FieldSequences(3, np.array([1, 2]), np.array([2, 0])),
        ],
        rows=3,
        bad=[BadRow(1, "no text key", after=1)],
        text_bytes=40,
    )
    writer = PartWriter(tmp_path, 3, np.dtype("<u2"))
    writer.write(Unit("jsonl", "a.jsonl", 0, {}), chunk)
    writer.close()
    header = json.loads((tmp_path / "part_000003.json").read_text())
    keys = {
        key for row in section("a part file").split("| key |")[1].splitlines() for key in re.findall("`(.+?)`", row)
    }
    assert keys >= set(header) and header["format"] == "automodel-part/1"
    assert (tmp_path / header["header_file"]).read_bytes() == (tmp_path / "part_000003.json").read_bytes()
    assert np.fromfile(tmp_path / header["tokens_file"], "<u2").tolist() == [7, 8, 9, 1, 2, 3]
    raw = (tmp_path / header["chunks_file"]).read_bytes()
    size = int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4 : 4 + size])
    assert [field["plain"] for field in head["fields"]] == [True, False]
    assert all(f"`{key}`" in section("a part file") for key in head) and head["bad"] == [[1, "no text key", None, 1]]
    arrays = raw[4 + size :]
    assert np.frombuffer(arrays[:32], "<i8").tolist() == [2, 1, 1, 2]
    assert np.frombuffer(arrays[32:], "<i4").tolist() == [2, 0]


def test_megatron_files_by_the_byte_table(tmp_path):
    """Two sentences, an empty document, a sentence: the fields lie where the page says, and fill the file."""
    write_megatron_file(tmp_path / "x", [[[5, 6, 7], [8]], [], [[9, 10]]], dtype="uint16")
    raw = (tmp_path / "x.idx").read_bytes()
    n, d = (int.from_bytes(raw[at : at + 8], "little") for at in (18, 26))
    assert (raw[:9], raw[9], raw[17], n, d) == (b"MMIDIDX\0\0", 1, 8, 3, 4)
    assert np.frombuffer(raw[34 : 34 + 4 * n], "<i4").tolist() == [3, 1, 2]
    assert np.frombuffer(raw[34 + 4 * n : 34 + 12 * n], "<i8").tolist() == [0, 6, 8]
    assert np.frombuffer(raw[34 + 12 * n :], "<i8").tolist() == [0, 2, 2, 3]
    assert np.fromfile(tmp_path / "x.bin", "<u2").tolist() == [5, 6, 7, 8, 9, 10]
    page = section("`PREFIX.bin` and `PREFIX.idx`")
    assert all(offset in page for offset in ("34 + 4N", "34 + 12N", "34 + 12N + 8D", "8 uint16", "65,500"))


def test_what_preprocess_megatron_writes(tmp_path):
    rows = "".join(f'{{"text": "{line}"}}\n' for line in SENTENCES)
    (tmp_path / "rows.jsonl").write_text(rows)
    words = ["--input", "rows.jsonl", "--output-path", "out", "--tokenizer", "byte", "--append-eod"]
    automodel(tmp_path, "preprocess", "megatron", *words, "--output-prefix", "NAME")
    page, listed = section("`PREFIX.bin` and `PREFIX.idx`"), section("Megatron `NAME.manifest.json`")
    for path in (tmp_path / "out").iterdir():
        assert path.name in page, path.name
    manifest = json.loads((tmp_path / "out/NAME.manifest.json").read_text())
    assert set(manifest) == table_keys("Megatron `NAME.manifest.json`")
    asked = listed.split("the options given: ")[1].split("|")[0]
    assert set(manifest["options"]) == set(re.findall(r"`(\w+)`", asked))
    body = {key: value for key, value in manifest.items() if key != "self"}
    assert manifest["self"] == xxh3(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())
    (pair,) = manifest["pairs"]
    assert all(f"`{key}`" in listed for key in pair)
    for suffix in ("bin", "idx"):
        data = (tmp_path / f"out/{pair['name']}.{suffix}").read_bytes()
        assert (pair[f"{suffix}_bytes"], pair[f"{suffix}_xxh3"]) == (len(data), xxh3(data))
    for file in manifest["tokenizer_files"]:
        data = (tmp_path / "out/NAME.tokenizer" / file["name"]).read_bytes()
        assert (file["bytes"], file["xxh3"]) == (len(data), xxh3(data))
    assert manifest["eod_id"] == 256 and manifest["documents"] == len(SENTENCES)


def test_sample_indices(tmp_path):
    for name in ("a", "b"):
        write_megatron_file(tmp_path / name, [[[1, 2, 3, 4, 5, 6, 7, 8]]] * 20, dtype="uint16")
    MegatronPretraining(str(tmp_path), 4, split="1,0,0")
    page = section("sample indices")
    folder = tmp_path / "index_mapping"
    for path in folder.iterdir():
        general = re.sub("-[0-9a-f]{8}-", lambda found: "-1a2b3c4d-", path.name)
        general = re.sub("^[ab]-", "PREFIX-", general).replace("blend-train-1a2b3c4d", "blend-train-5e6f7a8b")
        assert general in page, path.name
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        if path.suffix == ".json":
            assert set(json.loads(path.read_text())) == table_keys("sample indices")
    assert len(list(folder.iterdir())) == 2 * 4 + 3 + 1


def test_shuffled_documents_by_the_formula(tmp_path):
    """Rows, order, split and manifest, as the page has them."""
    rows = [f'{{"text": "row {number}", "more": {number}}}' for number in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    automodel(tmp_path, "preprocess", "shuffle", "--dataset", "rows.jsonl", "--val-fraction", "0.25", "-o", "out")
    page, mask = section("A folder of shuffled documents"), 2**64 - 1
    assert all(number in page for number in ("0x9E3779B97F4A7C15", "0xBF58476D1CE4E5B9", "0x94D049BB133111EB"))
    keys = {}
    for number, row in enumerate(rows):
        x = number * 0x9E3779B97F4A7C15 + xxhash.xxh3_64_intdigest(b"shuffle:42") & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        keys[x ^ x >> 31] = row
    ordered = [(key, keys[key]) for key in sorted(keys)]
    expected = {"rows.val.jsonl": [row for key, row in ordered if key < 2**62]}
    expected["rows.chunk.00000.jsonl"] = [row for key, row in ordered if key >= 2**62]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert set(manifest) == table_keys("documents `manifest.json`")
    listed = section("documents `manifest.json`")
    assert set(manifest["options"]) == set(re.findall(r"`(\w+)`", listed.split("the options given: ")[1].split("|")[0]))
    assert [file["name"] for file in manifest["files"]] == list(expected)
    for file in manifest["files"]:
        data = (tmp_path / "out" / file["name"]).read_bytes()
        assert data.decode().splitlines() == expected[file["name"]]
        assert (file["bytes"], file["xxh3"]) == (len(data), xxh3(data))
        assert all(f"`{key}`" in listed for key in file)


def test_raw_files_are_tokens_only(made):
    corpus = made.folder / "char"
    characters = json.loads((corpus / "tokenizer/vocab.json").read_text(encoding="utf-8"))
    ids = np.fromfile(corpus / "train.bin", "<u2")
    assert "".join(characters[number] for number in ids) == "".join(SENTENCES)


def test_meta_pkl_is_what_nanogpt_expects(made):
    meta = pickle.loads((made.folder / "char/meta.pkl").read_bytes())
    assert set(meta) == set(re.findall(r'"(\w+)":', section("`meta.pkl`")))
    assert meta["itos"] == {number: character for character, number in meta["stoi"].items()}
    assert sorted(meta["stoi"]) == json.loads((made.folder / "char/tokenizer/vocab.json").read_text())


# ------------------------------------------------------------------------------- manifests and JSON files


def xxh3(data: bytes) -> str:
    return f"xxh3:{xxhash.xxh3_64(data).hexdigest()}"


def check_manifest(folder: Path) -> dict:
    """Hashes and sizes of every file named, and the manifest's hash of itself, as the page describes it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    body = {key: value for key, value in manifest.items() if key != "self"}
    assert manifest["self"] == xxh3(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())
    for file in manifest["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["xxh3"]) == (len(content), xxh3(content)), file["name"]
    named = {file["name"] for file in manifest["files"]} | {"manifest.json", ".lock"}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found <= named
    return manifest


def inner_keys(heading: str, key: str) -> set[str]:
    """The names that a table's row lists for an object inside."""
    row = re.search(rf"^\| `{key}` \| (.*) \|$", section(heading), re.MULTILINE)[1]
    return set(re.findall(r"`(\w+)`", row))


def test_corpus_manifest(made):
    heading = "corpus `manifest.json`"
    manifest = check_manifest(made.corpus)
    assert set(manifest) == table_keys(heading)
    for key in ("tokenizer", "options", "versions"):
        assert set(manifest[key]) == inner_keys(heading, key)
    assert set(manifest["source"]) <= inner_keys(heading, "source")
    assert {key for file in manifest["files"] for key in file} == inner_keys(heading, "files")
    assert {file["role"] for file in manifest["files"]} == {"tokens", "bos_index", "tokenizer"}
    assert manifest["tokens"] == sum(file["tokens"] for file in manifest["files"])
    raw = check_manifest(made.folder / "char")
    assert (raw["layout"], raw["eot"], raw["tokenizer"]["eot_id"]) == ("raw", "none", None)
    assert "meta" in {file["role"] for file in raw["files"]}


def test_conversations_by_the_byte_table(tmp_path):
    pairs = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    source = ("--dataset", "a.jsonl", "--val-fraction", "0.25", "--tokenizer", "byte", "--output-dir", "chat")
    automodel(tmp_path, "preprocess", "chat", *source)
    manifest = check_manifest(tmp_path / "chat")
    heading = "`train_TASK.bin`, `.mask` and `train.order`"
    assert set(manifest["options"]) <= set(re.findall(r"`(\w+)`", section(heading)))
    counts = {file["name"]: (file["role"], file["tokens"], file["documents"]) for file in manifest["files"]}
    order = np.fromfile(tmp_path / "chat/train.order", "<i8")
    assert sorted(order) == list(range(15)) and counts["train.order"] == ("order", 0, 15)
    special = json.loads((tmp_path / "chat/tokenizer/automodel_tokenizer.json").read_text())["special_tokens"]
    assert special == {"<|im_start|>": 257, "<|im_end|>": 258}
    for name, rows in (("train_messages", 15), ("val_messages", 5)):
        header, tokens = read_shard(tmp_path / f"chat/{name}.bin")
        starts = np.fromfile(tmp_path / f"chat/{name}.bos.idx", "<i4")
        mask = np.fromfile(tmp_path / f"chat/{name}.mask", np.uint8)
        assert len(starts) == rows and header[2] == len(tokens) == len(mask)
        assert (tokens[starts] == 257).all() and set(mask) == {0, 1}
        for conversation, learned in zip(np.split(tokens, starts[1:]), np.split(mask, starts[1:]), strict=True):
            text = bytes(conversation[(learned == 1) & (conversation < 256)].tolist()).decode()
            assert text.endswith("!") and conversation[learned == 1][-1] == 258
        assert counts[f"{name}.mask"] == ("mask", int(mask.sum()), rows)


def test_tokenizer_folder(made):
    keys = table_keys("`tokenizer/`")
    body = made.json(made.corpus / "tokenizer/automodel_tokenizer.json")
    assert set(body) == keys - {"pattern", "special_tokens"}
    assert (body["kind"], body["eot_id"], body["vocab_size"]) == ("byte", 256, 257)


def test_fingerprint_of_the_training_data(made):
    """Stored with every checkpoint: hashes of the shards in order, then the tokenizer's."""
    manifest = made.json(made.corpus / "manifest.json")
    parts = [file["xxh3"] for file in manifest["files"] if (file["role"], file["split"]) == ("tokens", "train")]
    parts.append(manifest["tokenizer"]["fingerprint"])
    facts = made.json(made.step / "manifest.json")["facts"]
    assert len(parts) == 4 and facts["data"]["fingerprint"] == xxh3("\n".join(parts).encode())


def test_branch_json(made, tmp_path, monkeypatch):
    """Of a branch that is made and not trained; its hash of itself is that of a manifest."""
    monkeypatch.chdir(made.folder)  # paths of the run are from there
    into = tmp_path / "branch"
    words = ["branch", str(made.run), "--into", str(into), "--cooldown-steps", "2", "--prepare"]
    assert app.run(words) == 0
    branch = made.json(into / "branch.json")
    body = {key: value for key, value in branch.items() if key != "self"}
    assert branch["self"] == xxh3(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())
    assert set(branch) == table_keys("`branch.json`")
    assert set(branch["parent"]) == inner_keys("`branch.json`", "parent")
    assert set(branch["asked"]) == inner_keys("`branch.json`", "asked")
    assert branch["parent"]["checkpoint"] == made.json(made.step / "manifest.json")["self"]


def test_step_manifest(made):
    manifest = check_manifest(made.step)
    assert set(manifest) == table_keys("step `manifest.json`")
    assert set(manifest["facts"]) == table_keys("step `manifest.json`", first="key of `facts`")
    assert set(manifest["metrics"]) == inner_keys("step `manifest.json`", "metrics")
    assert set(manifest["facts"]["fast_path"]) == inner_keys("step `manifest.json`", "fast_path")


@pytest.mark.parametrize(
    ("heading", "path"),
    [
        ("`state.json`", "state.json"),
        ("`loader.json`", "loader.json"),
        ("`optim/optimizer.json`", "optim/optimizer.json"),
    ],
)
def test_json_of_a_step(made, heading, path):
    assert set(made.json(made.step / path)) == table_keys(heading)


def test_state_and_position(made):
    state, loader = made.json(made.step / "state.json"), made.json(made.step / "loader.json")
    train = state["state"]["train"]
    assert set(train) | {"scaler", "train"} == inner_keys("`state.json`", "state")
    assert (state["step"], train["tokens_seen"], loader["samples_consumed"]) == (4, 4 * 4 * SEQ_LEN, 16)
    assert loader["plan_hash"] == xxh3(json.dumps(loader["plan"], sort_keys=True, ensure_ascii=False).encode())


def test_pointers(made):
    for name in ("LATEST", "BEST"):
        step, digest = (made.run / name).read_text().split()
        assert (step, digest) == ("step_00000004", xxh3(step.encode()))


def test_run_folder_holds_what_the_page_lists(made):
    listed = set(re.findall(r"^    (\S+?)/?(?:  (\S+))? ", section("A run folder"), re.MULTILINE))
    names = {name for pair in listed for name in pair if name} - {"one"}
    found = {path.name.replace("step_00000004_val", "STEP_DATA") for path in made.run.iterdir()}
    assert {re.sub(r"\d{8}", "00001000", name) for name in found} <= names


# ------------------------------------------------------------------------------------------- tensors


def test_safetensors_by_the_byte_table(made):
    for folder in ("model", "optim"):
        (path,) = (made.step / folder).glob("*.safetensors")
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        assert (8 + length) % 8 == 0
        metadata = header.pop("__metadata__")
        assert (metadata["format"], metadata["DCP_VERSION"]) == ("pt", "1.0")
        assert set(json.loads(metadata["DCP_SHARDING_INFO"])) == set(header)
        with safe_open(path, "numpy") as tensors:
            for name, entry in header.items():
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                ours = np.frombuffer(raw[begin:end], "<f4").reshape(entry["shape"])
                assert np.array_equal(ours, tensors.get_tensor(name))
        assert max(8 + length + entry["data_offsets"][1] for entry in header.values()) == len(raw)


def test_names_padding_and_ties(made):
    (path,) = (made.step / "model").glob("*.safetensors")
    with safe_open(path, "numpy") as tensors:
        names = set(tensors.keys())
        assert tensors.get_tensor("wte.weight").shape == (384, 16)  # 257 ids, padded to 3 x 128
    assert "h.0.attn.c_attn.weight" in names and not any("head" in name for name in names)
    (path,) = (made.step / "optim").glob("*.safetensors")
    with safe_open(path, "numpy") as tensors:
        assert "exp_avg/wte.weight" in set(tensors.keys())
    with safe_open(made.step / "hf/model.safetensors", "numpy") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    assert [257, 16] in shapes.values()
    assert next(v for k, v in shapes.items() if k.endswith("h.0.attn.c_attn.weight")) == [16, 48]


def test_optimizer_document(made):
    document = made.json(made.step / "optim/optimizer.json")
    (name,) = (name for name in document["parameters"] if name == "wte.weight")
    assert document["state"][name]["exp_avg"] == {"$tensor": "exp_avg/wte.weight"}
    assert set(document["state"][name]["step"]) == {"$scalar", "$dtype"}
    assert {name for group in document["groups"] for name in group["params"]} == set(document["parameters"])


# ------------------------------------------------------------------------------------------- numbers


def test_rows_of_a_sweep():
    assert table_keys("`results.jsonl` of a sweep") == set(ResultRow.model_fields)


@pytest.mark.parametrize("kind", ["train", "val"])
def test_metrics(made, kind):
    lines = (made.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == kind]
    assert records
    for record in records:
        assert set(record) == table_keys("`metrics.jsonl`", first=f'key of `"kind": "{kind}"`')


def test_results(made):
    results = made.json(made.run / "results_step_00000004_val.json")
    assert set(results) - {"bigram"} == table_keys("`results_STEP_DATA.json`")
    for key in ("checkpoint", "settings"):
        assert set(results[key]) == inner_keys("`results_STEP_DATA.json`", key) - {"self"}
    assert set(results["sets"][0]) == inner_keys("`results_STEP_DATA.json`", "sets")
    beside = section("`results_STEP_DATA.json`").rpartition("With `--bigram` also")[2]
    assert set(results["bigram"]) == set(re.findall(r"`(\w+)`", beside)) - {"bigram"}
    assert results["perplexity"] == pytest.approx(np.exp(results["loss"]))
    bits = results["loss"] * results["tokens"] / np.log(2) / results["bytes"]
    assert results["bits_per_byte"] == pytest.approx(bits)
