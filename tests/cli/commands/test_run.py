"""``automodel run``: what a pipeline's file may hold; a stranger's runs no code."""

import pytest

from automodel_cli.cli import app


def code(capsys, tmp_path, step, *arguments):
    path = tmp_path / "pipeline.yaml"
    path.write_text(f"output_dir: {tmp_path}/made\nsteps: {{a: '{step}'}}\n")
    found = app.run(["run", str(path), "--dry-run", *arguments])
    return found, " ".join("".join(capsys.readouterr()).split())


def test_a_dry_run_shows_the_steps_and_writes_nothing(capsys, tmp_path):
    found, said = code(capsys, tmp_path, "eval {out}/run --nproc-per-node 2")
    assert found == 0 and f"[1/1] a $ automodel eval {tmp_path}/made/run" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("rm -rf /", "'rm' is no command that a pipeline can run"),
        ("run other.yaml", "'run' is no command"),
        ("slurm --submit --setup reboot pretrain llm -c x.yaml", "'slurm' is no command"),
        ("pretrain llm -c x.yaml --nnodes 2 --rdzv_endpoint=far.example:1", "--nnodes in a file"),
        ("pretrain llm -c x.yaml --rdzv_endpoint=far.example:1", "--rdzv-endpoint in a file"),
        ("pretrain llm -c x.yaml --trust=x.py", "--trust=x.py in a file"),
    ],
)
def test_commands_that_a_file_cannot_ask_for(capsys, tmp_path, step, message):
    found, said = code(capsys, tmp_path, step)
    assert found == 2 and message in said


@pytest.mark.parametrize("command", ["sweep run -c {}", "race a.yaml b.yaml -c {}"])
def test_settings_of_many_runs_cannot_trust_code_either(capsys, tmp_path, command):
    (tmp_path / "many.yaml").write_text("base: run.yaml\ntrust: [x.py]\n")
    assert app.run(command.format(tmp_path / "many.yaml").split()) == 2
    assert "many.yaml:2: trust: would let a file run code" in " ".join(capsys.readouterr().err.split())
