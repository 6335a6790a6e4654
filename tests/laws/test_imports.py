"""The laws of the house, kept by a machine: import contracts, empty packages, and what start-up may not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "automodel_cli"
HEAVY = {"torch", "transformers", "datasets", "wandb", "pandas", "pyarrow"}


BY_NAME = {
    "cli/app.py": "a command from the table",
    "config/targets/resolution.py": "what a file names",
    "config/targets/signatures.py": "the class of a target's arguments",
    "config/targets/transformers_signatures.py": "transformers",
    "assembly/scoring/data.py": "the class of a data set",
    "models/families.py": "a family's builder and configuration",
    "train/packaged_losses.py": "a package of losses",
    "transformers_calls.py": "transformers",
    "doors.py": "transformers",
}
"""Modules that import by name, which no law sees, and what."""


def test_the_import_contracts_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([tool], cwd=ROOT, text=True, capture_output=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "5 kept, 0 broken" in found.stdout


def test_imports_by_name_are_few_and_known():
    sources = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}
    found = {name for name, text in sources.items() if "import_module(" in text or "__import__(" in text}
    assert found == BY_NAME.keys()


def test_packages_are_empty():
    """15 of 16 import cycles seen elsewhere ran through an __init__.py that re-exports its children."""
    for path in SOURCE.rglob("__init__.py"):
        if path.parent != SOURCE:
            assert path.read_text() == "", path


YAML = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 1}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
"""
LIGHT = [
    (["--help"], 0),
    (["--version"], 0),
    (["pretrain", "--help"], 0),
    (["eval", "--help"], 0),
    (["plot", "--help"], 0),
    (["generate", "--help"], 0),
    (["chat", "--help"], 0),
    (["serve", "--help"], 0),
    (["pretrane"], 2),
    (["pretrain", "llm", "-c", "absent.yaml"], 2),
    (["pretrain", "llm", "-c", "cfg.yaml", "--print-config"], 0),
    (["pretrain", "llm", "-c", "cfg.yaml", "--step_scheduler.max_stepz", "1"], 2),
    (["plan", "-c", "cfg.yaml", "step_scheduler.target_flops=1e15", "--gpu", "H100"], 0),
    (["plan", "-c", "cfg.yaml", "step_scheduler.target_flops=1"], 2),
    (["pretrain", "llm", "-c", "cfg.yaml", "--model.n_layers", "1"], 2),
    (["pretrain", "llm", "-c", "cfg.yaml", "--model._target_", "os.system"], 2),
    (["cfg.yaml", "stray"], 2),
    (["cfg.yaml", "--optimizer.params", "[]"], 2),
]
"""Command lines that end before anything heavy is needed, and their exit codes; the first is the lightest."""

IN_TURN = """
import contextlib, io, json, sys
from automodel_cli.cli.app import main
done = []
for argv in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            main(argv)
        except SystemExit as end:
            code = end.code
    done.append((code, sorted({name.split(".")[0] for name in sys.modules}), error.getvalue()))
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Exit code, top-level modules in memory and stderr of each, all of them in one fresh interpreter."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "cfg.yaml").write_text(YAML)
    command = [sys.executable, "-c", IN_TURN, json.dumps([argv for argv, _ in LIGHT])]
    found = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize(("number", "argv", "expected"), [(n, *one) for n, one in enumerate(LIGHT)])
def test_help_and_config_errors_never_wait_for_torch(done, number, argv, expected):
    code, modules, error = done[number]
    assert code == expected, (argv, error)
    assert HEAVY.isdisjoint(modules)
    assert "Traceback" not in error


def test_help_needs_neither_yaml_nor_pydantic(done):
    """They cost more than the help itself."""
    assert {"yaml", "pydantic", "numpy"}.isdisjoint(done[0][1])


def test_training_a_model_of_ours_leaves_transformers_out(tiny_training):
    """It takes as long to import as torch."""
    config = tiny_training.config(step_scheduler={"max_steps": 2, "val_every_steps": None})
    code = (
        f"import sys\nfrom automodel_cli.cli.app import main\n"
        f"try:\n    main(['pretrain', 'llm', '-c', {str(config)!r}])\n"
        "finally:\n    print('transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr
    assert (tiny_training.run / "step_00000002/model").is_dir()


def test_a_foreign_target_is_imported_by_the_second_phase_only(tmp_path):
    """With a stand-in for torch, which takes seconds to import."""
    optimizers = tmp_path / "torch/optim"
    optimizers.mkdir(parents=True)
    (tmp_path / "torch/__init__.py").touch()
    (optimizers / "optimizer.py").write_text("class Optimizer: ...\n")
    adamw = "class AdamW(Optimizer):\n    def __init__(self, params, lr): ..."
    (optimizers / "adamw.py").write_text(f"from torch.optim.optimizer import Optimizer\n{adamw}\n")
    (optimizers / "__init__.py").write_text("from torch.optim.adamw import AdamW\n")
    (tmp_path / "cfg.yaml").write_text(YAML)
    code = (
        "import sys\nfrom automodel_cli.config.load import load_config\n"
        "from automodel_cli.config.schema.pretrain import PretrainConfig\n"
        "from automodel_cli.config.targets.instantiate import check_target\n"
        "cfg = load_config(PretrainConfig, 'cfg.yaml')\nassert 'torch' not in sys.modules\n"
        "assert not check_target(cfg.optimizer, 'optimizer').problems\nassert 'torch' in sys.modules\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert found.returncode == 0, found.stderr
