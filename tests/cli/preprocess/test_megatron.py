"""preprocess megatron as typed: the guide's command, lists of words, summary, exit codes, no heavy packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import nursery

from automodel_cli.cli.options import repeat_options
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest

SHARED_CACHE = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/tiktoken_cache"


def automodel(*words: str, cwd: Path, real: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "automodel_cli", "preprocess", *words]
    environment = {**os.environ, "COLUMNS": "200", **env}
    return (subprocess if real else nursery).run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.fixture
def chunks(tmp_path: Path) -> Path:
    for k in range(3):
        rows = [json.dumps({"id": n, "text": f"chunk {k}, row {n}", "title": f"t{n}"}) for n in range(20)]
        (tmp_path / f"data.chunk.0000{k}.jsonl").write_text("\n".join(rows) + "\n")
    with (tmp_path / "data.chunk.00001.jsonl").open("a") as handle:
        handle.write("{\n")
    return tmp_path


@pytest.mark.skipif(not SHARED_CACHE.exists(), reason="no GPT-2 vocabulary beside the project")
def test_the_guides_command(chunks: Path) -> None:
    words = (
        "megatron --input data.chunk.*.jsonl --json-keys text --output-prefix processed_data --output-path out "
        "--workers 8 --pretrained-model-name-or-path openai-community/gpt2 --append-eod --log-interval 1000"
    )
    done = automodel(*words.split(), cwd=chunks, real=True, TIKTOKEN_CACHE_DIR=str(SHARED_CACHE))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (chunks / "out").glob("processed_data_*")) == sorted(
        f"processed_data_{k}_text_document.{suffix}" for k in range(3) for suffix in ("bin", "idx")
    )
    assert "openai-community/gpt2: GPT-2's vocabulary" in done.stdout and "encoded by " in done.stdout
    assert "60 documents in processed_data_0_text_document ... processed_data_2_text_document (3)" in done.stdout
    assert "uint16, end-of-document 50256" in done.stdout
    assert "warning: bad row data.chunk.00001.jsonl:21: malformed JSON" in done.stderr
    assert "log_interval is ignored" in done.stderr
    verified = automodel("verify", "out", cwd=chunks)
    assert verified.returncode == 0 and "ok: 8 files match the manifest" in verified.stdout
    assert "chunk 0, row 0<|endoftext|>" in verified.stdout
    again = automodel(*words.split(), cwd=chunks, TIKTOKEN_CACHE_DIR=str(SHARED_CACHE))
    assert again.returncode == 0 and "is already there: nothing to do" in again.stdout


def test_lists_of_words() -> None:
    words = ["--json-keys", "a", "b", "--input", "x.jsonl", "y.jsonl", "--append-eod", "--workers", "2"]
    lists = ("--json-keys", "--input")
    assert repeat_options(words, lists) == [
        *("--json-keys", "a", "--json-keys", "b", "--input", "x.jsonl", "--input", "y.jsonl"),
        *("--append-eod", "--workers", "2"),
    ]
    assert repeat_options(["--json-keys=a", "stray"], lists) == ["--json-keys=a", "stray"]
    assert repeat_options(["stray", "--input"], lists) == ["stray", "--input"]


def test_several_keys_and_files_that_the_shell_expanded(chunks: Path) -> None:
    files = sorted(path.name for path in chunks.glob("*.jsonl"))
    words = [
        "megatron",
        "--json-keys",
        "text",
        "title",
        "--input",
        *files,
        "--tokenizer",
        "byte",
        "-o",
        "out",
    ]
    done = automodel(*words, cwd=chunks)
    assert done.returncode == 0, done.stderr
    manifest = MegatronManifest.read(chunks / "out/processed_data.manifest.json")
    assert manifest.keys == ("text", "title") and len(manifest.pairs) == 6
    assert "  title " in done.stdout and "no end-of-document" in done.stdout


def test_settings_from_a_file_and_errors(chunks: Path) -> None:
    (chunks / "cfg.yaml").write_text("input: [data.chunk.*.jsonl]\ntokenizer: byte\nshards: 2\noutput_path: out\n")
    done = automodel("megatron", "-c", "cfg.yaml", "--append-eod", cwd=chunks)
    assert done.returncode == 0, done.stderr
    assert len(list((chunks / "out").glob("*.idx"))) == 2
    other = automodel("megatron", "-c", "cfg.yaml", cwd=chunks)
    assert other.returncode == 2 and "append_eod True -> False" in other.stderr
    wrong = automodel("megatron", "-c", "cfg.yaml", "--shards", "0", "--special-tokens", "maybe", cwd=chunks)
    assert wrong.returncode == 2 and "--shards" in wrong.stderr and "--special-tokens" in wrong.stderr
    gone = automodel("megatron", "--input", "gone/*.jsonl", cwd=chunks)
    assert gone.returncode == 1 and "no file matches gone/*.jsonl" in gone.stderr
    stray = automodel("megatron", "stray", cwd=chunks)
    assert stray.returncode == 2 and "Traceback" not in stray.stderr


def test_dry_run(chunks: Path) -> None:
    words = ["megatron", "--input", "data.*.jsonl", "--tokenizer", "byte", "--dry-run"]
    done = automodel(*words, cwd=chunks)
    assert done.returncode == 0 and "would read 3 files" in done.stdout
    assert "would make processed_data_2_text_document from data.chunk.00002.jsonl" in done.stdout
    assert not list(chunks.glob("processed*"))


def test_a_changed_byte_is_exit_code_1(chunks: Path) -> None:
    words = ["megatron", "--input", "data.*.jsonl", "--tokenizer", "byte", "-o", "out", "--workers", "0"]
    assert automodel(*words, cwd=chunks).returncode == 0
    path = chunks / "out/processed_data_1_text_document.bin"
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    path.write_bytes(data)
    for target in ("out", "out/processed_data_1_text_document", "out/processed_data.manifest.json"):
        bad = automodel("verify", target, cwd=chunks)
        assert bad.returncode == 1 and "processed_data_1_text_document.bin was changed" in bad.stderr


def test_the_whole_command_leaves_torch_out(chunks: Path) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'nltk'}\n"
        "atexit.register(lambda: print('heavy', sorted(set(sys.modules) & heavy)))\n"
        "from automodel_cli.cli.app import main\n"
        "main()\n"
    )
    words = ["preprocess", "megatron", "--input", "data.*.jsonl", "--tokenizer", "byte", "--workers", "2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=chunks)
    assert done.returncode == 0, done.stderr
    assert "heavy []" in done.stdout


def test_help_names_every_option(chunks: Path) -> None:
    done = automodel("megatron", "--help", cwd=chunks)
    assert done.returncode == 0
    for option in (
        "--json-keys",
        "--append-eod",
        "--special-tokens",
        "--split-sentences",
        "--shards",
        "--dry-run",
    ):
        assert option in done.stdout
