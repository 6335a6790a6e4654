"""The commands as typed: tables, exit codes, files of settings, help; heavy packages stay out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import nursery

from automodel_cli.corpus.formats.manifest import read_corpus_manifest

SHARED_CACHE = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/tiktoken_cache"


def automodel(
    *words: str, cwd: Path | None = None, env: dict | None = None, real: bool = False
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "automodel_cli", *words]
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    return (subprocess if real else nursery).run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"row {k} of the input"}) for k in range(50)]
    lines[7] = "{"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


def test_from_text_to_a_verified_corpus(rows: Path, tmp_path: Path) -> None:
    done = automodel(
        "preprocess", "nanogpt", "--dataset", "rows.jsonl", "-m", "500", "--tokenizer", "byte", cwd=tmp_path,
        real=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "rows_max_tokens_500"
    assert "500 tokens" in done.stdout and "rows_max_tokens_500" in done.stdout
    assert "writing tokens: 100%  " in done.stdout
    assert done.stderr.splitlines()[1:] == ["warning: bad row rows.jsonl:8: malformed JSON"]
    assert read_corpus_manifest(out).tokens == 500
    good = automodel("preprocess", "verify", str(out))
    assert good.returncode == 0 and "ok: 3 files match the manifest" in good.stdout
    data = bytearray((out / "dataset.bin").read_bytes())
    data[1500] ^= 1
    (out / "dataset.bin").write_bytes(data)
    bad = automodel("preprocess", "verify", str(out))
    assert bad.returncode == 1 and f"{out}/dataset.bin was changed" in bad.stderr
    report = automodel("preprocess", "verify", str(out), "--json")
    found = json.loads(report.stdout)
    assert (report.returncode, report.stderr, found["ok"], len(found["files"])) == (1, "", False, 1)


def test_tokenizer_then_nanogpt(rows: Path, tmp_path: Path) -> None:
    trained = automodel(
        "preprocess", "tokenizer", "--dataset", str(rows), "--vocab-size", "270", "-o", "tok", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    assert "270" in trained.stdout and "automodel preprocess nanogpt --tokenizer tok" in trained.stdout
    done = automodel("preprocess", "nanogpt", "--dataset", str(rows), "--tokenizer", "tok", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_corpus_manifest(tmp_path / "out").tokenizer["name"] == "tok"


def test_settings_from_a_file_and_flags_over_it(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"dataset: {rows}\ntokenizer: byte\nmax_tokens: 300\noutput_dir: out\n")
    done = automodel("preprocess", "nanogpt", "-c", "p.yaml", "--max-tokens", "200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_corpus_manifest(tmp_path / "out").tokens == 200


def test_dry_run_and_errors(rows: Path, tmp_path: Path) -> None:
    base = (
        "preprocess",
        "nanogpt",
        "--dataset",
        str(rows),
        "--tokenizer",
        "byte",
        "-o",
        str(tmp_path / "out"),
    )
    plan = automodel(*base, "--dry-run", "--val-tokens", "100")
    assert plan.returncode == 0 and "would write" in plan.stdout and not (tmp_path / "out").exists()
    wrong = automodel(*base, "--max-tokens", "lots")
    assert (
        wrong.returncode == 2
        and "error: --max-tokens: expected a number like" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )
    missing = automodel("preprocess", "nanogpt", "--dataset", "nothing.jsonl")
    assert missing.returncode == 1 and "nothing.jsonl" in missing.stderr
    strict = automodel(*base, "--strict")
    assert strict.returncode == 1 and "rows.jsonl:8: malformed JSON" in strict.stderr


def test_help_lists_every_option() -> None:
    text = automodel("preprocess", "nanogpt", "--help").stdout
    options = (
        "--dataset --set-name --split --text-key --document --max-tokens --tokenizer --output-dir --format --eot "
        "--val-fraction --val-tokens --shard-tokens --shuffle --seed --overwrite --strict --dry-run --num-workers "
        "--chunk-size --prefetch --engine --config"
    )
    assert [option for option in options.split() if option not in text] == []
    group = automodel("preprocess", "--help").stdout
    assert all(name in group for name in ("nanogpt", "tokenizer", "verify"))


@pytest.mark.skipif(not SHARED_CACHE.is_dir(), reason="needs ../shared (GPT-2's vocabulary)")
def test_gpt2_with_the_whole_command_leaves_torch_out(rows: Path, tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('heavy', sorted(set(sys.modules) & {'torch', 'transformers'})))\n"
        "from automodel_cli.cli.app import main\n"
        "main()\n"
    )
    words = [
        "preprocess",
        "nanogpt",
        "--dataset",
        str(rows),
        "-o",
        str(tmp_path / "out"),
        "--num-workers",
        "2",
    ]
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(SHARED_CACHE)}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "heavy []" in done.stdout
    assert "encoded by gigatoken" in done.stdout or "encoded by tiktoken" in done.stdout
