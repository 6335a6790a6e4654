"""`automodel preprocess shuffle` as it is typed: flags, file, what it prints, exit codes, no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.cli.app import run

FLAGS = (
    "--dataset --input --text-key --document --keep-columns --dedup --check --strict --output-dir --name --chunks "
    "--chunk-size --val-fraction --val-documents --seed --overwrite --dry-run --memory --temp-dir --num-workers"
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"text {k % 30}"}) for k in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "broken"]) + "\n")
    return tmp_path / "rows.jsonl"


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["preprocess", "shuffle", "--help"]) == 0
    shown = capsys.readouterr().out
    assert not [flag for flag in FLAGS.split() if flag not in shown]


def test_summary(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["preprocess", "shuffle", "--input", str(rows), "-o", str(tmp_path / "out"), "--num-workers", "1"]
    words += ["--val-documents", "5", "--chunks", "2", "--dedup", "--memory", "1M", "--seed", "7"]
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "25 documents" in shown.out and "rows.chunk.00000.jsonl ... rows.chunk.00001.jsonl" in shown.out
    assert "5 documents" in shown.out and "10 left out" in shown.out and "seed 7" in shown.out
    assert "bad row rows.jsonl:41: malformed JSON" in shown.err
    assert run(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run([*words, "--chunks", "3"]) == 2
    assert "chunks 2 -> 3" in capsys.readouterr().err


def test_config_file(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(
        f"dataset: {rows}\noutput_dir: {tmp_path}/out\nnum_workers: 1\nval_fraction: 0.2\n"
    )
    assert run(["preprocess", "shuffle", "-c", str(tmp_path / "c.yaml"), "--name", "n"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jsonl")) == [
        "n.chunk.00000.jsonl",
        "n.val.jsonl",
    ]
    (tmp_path / "c.yaml").write_text("dataset: x\nmemmory: 1G\n")
    assert run(["preprocess", "shuffle", "-c", str(tmp_path / "c.yaml")]) == 2
    assert "memory" in capsys.readouterr().err


def test_a_missing_file_and_a_missing_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preprocess", "shuffle", "--dataset", str(tmp_path / "no.jsonl")]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert run(["preprocess", "shuffle"]) == 2
    assert "dataset" in capsys.readouterr().err


def test_no_torch_and_no_transformers(tmp_path: Path, rows: Path) -> None:
    code = (
        "import sys\nfrom automodel_cli.cli.app import run\n"
        f"assert run(['preprocess', 'shuffle', '--dataset', {str(rows)!r}, '-o', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
