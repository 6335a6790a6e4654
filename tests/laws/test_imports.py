"""The laws of the house, kept by a machine: import contracts, empty packages, and what start-up may not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "automodel_cli"
HEAVY = ("torch", "transformers", "datasets", "wandb", "pandas", "pyarrow")


def test_the_import_contracts_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([tool, "--no-cache"], cwd=ROOT, text=True, capture_output=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "5 kept, 0 broken" in found.stdout


def test_packages_are_empty():
    """15 of 16 import cycles seen elsewhere ran through an __init__.py that re-exports its children."""
    for path in SOURCE.rglob("__init__.py"):
        if path.parent != SOURCE:
            assert path.read_text() == "", path


def imported_by(code: str, cwd: Path) -> tuple[int, set[str], str]:
    """Run code in a fresh interpreter: exit code, top-level modules it had imported at the end, stderr."""
    report = (
        "import json, atexit, sys\natexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n"
    )
    found = subprocess.run([sys.executable, "-c", report + code], cwd=cwd, text=True, capture_output=True)
    modules = json.loads(found.stdout.splitlines()[-1])
    return found.returncode, {name.split(".")[0] for name in modules}, found.stderr


YAML = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 1}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["pretrain", "--help"], 0),
        (["eval", "--help"], 0),
        (["plot", "--help"], 0),
        (["generate", "--help"], 0),
        (["pretrane"], 2),
        (["pretrain", "llm", "-c", "absent.yaml"], 2),
        (["pretrain", "llm", "-c", "cfg.yaml", "--print-config"], 0),
        (["pretrain", "llm", "-c", "cfg.yaml", "--step_scheduler.max_stepz", "1"], 2),
        (["pretrain", "llm", "-c", "cfg.yaml", "--model.n_layers", "1"], 2),
        (["pretrain", "llm", "-c", "cfg.yaml", "--model._target_", "os.system"], 2),
        (["cfg.yaml", "stray"], 2),
        (["cfg.yaml", "--optimizer.params", "[]"], 2),
    ],
    ids=lambda value: " ".join(value)[-50:] if isinstance(value, list) else "",
)
def test_help_and_config_errors_never_wait_for_torch(argv, code, tmp_path):
    (tmp_path / "cfg.yaml").write_text(YAML)
    found, modules, error = imported_by(f"from automodel_cli.cli.app import main\nmain({argv!r})", tmp_path)
    assert found == code, error
    assert not modules & set(HEAVY)
    assert "Traceback" not in error


def test_help_needs_neither_yaml_nor_pydantic(tmp_path):
    """They cost more than the help itself."""
    _, modules, _ = imported_by("from automodel_cli.cli.app import main\nmain(['--help'])", tmp_path)
    assert not modules & {"yaml", "pydantic", "numpy"}


def test_a_foreign_target_is_imported_by_the_second_phase_only(tmp_path):
    (tmp_path / "cfg.yaml").write_text(YAML)
    code = (
        "import sys\nfrom automodel_cli.config.load import load_config\n"
        "from automodel_cli.config.schema.pretrain import PretrainConfig\n"
        "from automodel_cli.config.targets.instantiate import check_foreign\n"
        "cfg = load_config(PretrainConfig, 'cfg.yaml')\nassert 'torch' not in sys.modules\n"
        "check_foreign(cfg)\nassert 'torch' in sys.modules\n"
    )
    found, _, error = imported_by(code, tmp_path)
    assert found == 0, error
