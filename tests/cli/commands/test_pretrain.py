"""The command up to the recipe: what is read, what is refused, what is handed over."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from automodel_cli.cli import app
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig

YAML = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 1, n_head: 1, n_embd: 8}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("cfg.yaml").write_text(YAML)
    return tmp_path


@pytest.fixture
def recipe(monkeypatch):
    """What the recipe was called with, instead of training."""
    from automodel_cli.recipes import pretrain

    calls = []

    def run(cfg, **more):
        calls.append(SimpleNamespace(cfg=cfg, **more))
        return 75

    monkeypatch.setattr(pretrain, "run", run)
    return calls


@pytest.mark.parametrize(
    "argv",
    [
        ["pretrain", "llm", "-c", "cfg.yaml"],
        ["pretrain", "llm", "--config", "cfg.yaml"],
        ["pretrain", "llm", "cfg.yaml"],
        ["pretrain", "-c", "cfg.yaml", "llm"],
        ["pretrain", "cfg.yaml"],
        ["llm", "pretrain", "-c", "cfg.yaml"],
        ["cfg.yaml"],
        ["-c", "cfg.yaml"],
        ["--nproc-per-node", "1", "/somewhere/bin/automodel", "pretrain", "llm", "-c", "cfg.yaml"],
    ],
)
def test_every_form_of_the_guides_reaches_the_recipe(argv, recipe):
    assert app.run([*argv, "--model.n_layer", "3", "seed=5"]) == 75
    assert recipe[0].cfg.model.arguments["n_layer"] == 3
    assert recipe[0].cfg.rng_seed == 5
    assert (recipe[0].fresh, recipe[0].dry_run, recipe[0].trust) == (False, False, ())


def test_options_are_handed_over(recipe):
    Path("mine.py").write_text("def build(): ...\n")
    argv = [
        "cfg.yaml",
        "--fresh",
        "--model={_target_: 'mine.py:build'}",
        "--trust",
        "mine.py",
        "--trust",
        "other",
    ]
    assert app.run(argv) == 75
    assert recipe[0].fresh is True
    assert recipe[0].trust == ("mine.py", "other")
    assert recipe[0].profile is None
    assert app.run(["cfg.yaml", "--dry-run", "--profile", "20"]) == 75
    assert recipe[1].dry_run is True
    assert recipe[1].profile == 20


def test_the_printed_configuration_can_be_pasted_back(capsys, recipe):
    assert app.run(["cfg.yaml", "--print-config", "--model.n_layer=4"]) == 0
    Path("again.yaml").write_text(capsys.readouterr().out)
    assert load_config(PretrainConfig, "again.yaml").model.arguments["n_layer"] == 4
    assert recipe == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretrain", "llm"], "no configuration given"),
        (["pretrain", "vlm", "-c", "cfg.yaml"], "cannot pretrain 'vlm'"),
        (["pretrain", "llm", "-c", "absent.yaml"], "there is no file absent.yaml"),
        (["cfg.yaml", "stray"], "unexpected argument 'stray'"),
        (
            ["pretrain", "llm", "cfg.yaml", "-c", "other.yaml"],
            "two configuration files are given, other.yaml and",
        ),
        (["preprocess", "index", "cfg.yaml", "-c", "other.yaml"], "two configuration files are given"),
        (["slurm", "pretrain", "llm", "cfg.yaml", "-c", "other.yaml"], "two configuration files are given"),
        (["cfg.yaml", "-x", "7"], "unknown option -x"),
        (["cfg.yaml", "--step_scheduler.max_stepz", "3"], "did you mean step_scheduler.max_steps?"),
        (["cfg.yaml", "--optimizer.lrr", "3"], "AdamW takes no such argument, did you mean lr?"),
        (["cfg.yaml", "--model._target_", "os.system"], "os.system is not a model builder"),
        (["cfg.yaml", "--freshh"], "unknown key"),
        (["cfg.yaml", "--profile", "0"], "--profile: expected a whole number from 1 up or null, found 0"),
        (
            ["cfg.yaml", "--profile", "many"],
            "--profile: expected a whole number from 1 up or null, found the text 'many'",
        ),
        (["cfg.yaml", "--profile"], "'--profile' requires an argument"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(argv, message, capsys, recipe):
    assert app.run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert recipe == []


@pytest.fixture
def launcher(monkeypatch):
    """What the launcher was asked to start, instead of starting it."""
    from automodel_cli.recipes import launch

    calls = []

    def run(cfg, flags, arguments, *, reporter):
        calls.append(SimpleNamespace(cfg=cfg, flags=flags, arguments=arguments))
        return None if flags.get("nproc-per-node") == "auto" else 75

    monkeypatch.setattr(launch, "run", run)
    return calls


@pytest.mark.parametrize(
    "argv",
    [
        "--nproc-per-node 8 /somewhere/bin/automodel pretrain llm -c cfg.yaml --seed 3",
        "pretrain llm -c cfg.yaml --nproc_per_node=8 --seed 3",
        "pretrain llm -c cfg.yaml --seed 3 --nproc-per-node gpu --debug",
        "cfg.yaml --seed 3 --nnodes 1:4 --rdzv-endpoint host:1",
        "pretrain llm -c cfg.yaml --seed 3 --nproc-per-node 2 --profile 5",
    ],
)
def test_launch_flags_start_the_same_command_without_them(argv, recipe, launcher):
    assert app.run(argv.split()) == 75
    (call,) = launcher
    form = ["pretrain", "llm", "--config" if argv.startswith("cfg") else "-c", "cfg.yaml", "--seed", "3"]
    more = ["--debug"] * ("--debug" in argv) + ["--profile", "5"] * ("--profile" in argv)
    assert call.arguments == form + more
    assert call.cfg.rng_seed == 3
    assert recipe == []


def test_one_process_is_this_one(recipe, launcher):
    assert app.run(["cfg.yaml", "--nproc-per-node", "1"]) == 75
    assert (len(recipe), launcher) == (1, [])
    assert app.run(["cfg.yaml", "--nproc-per-node", "auto"]) == 75  # one, where there is one core and no GPU
    assert (len(recipe), len(launcher)) == (2, 1)
    assert app.run(["cfg.yaml", "--nproc-per-node", "2", "--dry-run"]) == 75
    assert recipe[2].dry_run and len(launcher) == 1


def test_a_run_that_is_started_again_does_not_start_over(recipe, launcher, monkeypatch, capsys):
    monkeypatch.setenv("AUTOMODEL_ATTEMPT", "1")
    assert app.run(["cfg.yaml", "--fresh"]) == 75
    assert recipe[0].fresh is False
    assert app.run(["cfg.yaml", "--fresh", "--nnodes", "1:2", "--rdzv-endpoint", "h:1"]) == 2
    assert "each machine that joins would start over" in capsys.readouterr().err


def test_a_wrong_configuration_starts_nothing(capsys, recipe, launcher):
    assert app.run(["cfg.yaml", "--nproc-per-node", "2", "--model.n_layrs", "2"]) == 2
    assert "n_layrs" in capsys.readouterr().err
    assert (recipe, launcher) == ([], [])


@pytest.mark.parametrize("environment", [{"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}])
def test_a_process_of_another_launcher_joins_in_and_is_quiet(environment, recipe, launcher, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert app.run(["cfg.yaml"]) == 75
    assert not hasattr(recipe[0], "reporter")
    monkeypatch.setenv(next(iter(environment)), "0")
    assert app.run(["cfg.yaml"]) == 75
    assert recipe[1].reporter is not None
    assert launcher == []


def test_workers_of_torchrun_start_no_others_but_tasks_of_srun_may(recipe, launcher, monkeypatch, capsys):
    """srun starts one launcher per machine; under torchrun each of 8 workers would start 8."""
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert app.run(["cfg.yaml", "--nproc-per-node", "8", "--nnodes", "2", "--rdzv-endpoint", "h:1"]) == 75
    assert len(launcher) == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert app.run(["cfg.yaml", "--nproc-per-node", "8"]) == 2
    assert "already one of 8 processes" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from(capsys):
    assert app.run(["cfg.yaml", "--debug", "stray"]) == 2
    assert "Traceback" in capsys.readouterr().err
