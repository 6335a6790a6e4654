"""n + k updates equal n, a kill, a resume and k: bitwise the same losses and weights."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tests import nursery


@pytest.mark.parametrize("kill", [("step", 7), ("fsync", 20), ("rename", 9)], ids=lambda kill: f"{kill[0]}-{kill[1]}")
def test_killed_and_resumed_equals_undisturbed(tiny_training, undisturbed, kill):
    first = tiny_training.train(kill=kill, real=kill[0] == "step")
    assert first.returncode == -signal.SIGKILL, first.stderr
    second = tiny_training.train()
    assert second.returncode == 0, second.stderr
    assert tiny_training.losses() == undisturbed.losses()
    assert tiny_training.records("val")[-1]["loss"] == undisturbed.records("val")[-1]["loss"]
    assert tiny_training.weights(12) == undisturbed.weights(12)


def test_a_llama_resumes_as_well(tiny_training):
    llama = {
        "_target_": "automodel_cli.models.llama.build_llama_model",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    assert tiny_training.train(model=llama, kill=("step", 7)).returncode == -signal.SIGKILL
    assert tiny_training.train(model=llama).returncode == 0
    losses, weights = tiny_training.losses(), tiny_training.weights(12)
    assert tiny_training.train("--fresh", model=llama).returncode == 0
    assert (tiny_training.losses(), tiny_training.weights(12)) == (losses, weights)


def test_extending_a_run_continues_its_course(tiny_training, undisturbed):
    """Constant learning rate: 8 updates, then 4 more, are 12."""
    constant = {"lr_scheduler": None}
    assert tiny_training.train("--step_scheduler.max_steps", "8", **constant).returncode == 0
    extended = tiny_training.train(**constant)
    assert extended.returncode == 0, extended.stderr
    losses = tiny_training.losses()
    again = tiny_training.train("--fresh", **constant)
    assert again.returncode == 0, again.stderr
    assert tiny_training.losses() == losses
    assert (tiny_training.folder / "run.old-1" / "metrics.jsonl").is_file()  # --fresh moved, and deleted nothing


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signal_saves_and_exits_75(tiny_training, name):
    config = tiny_training.config(
        step_scheduler={"max_steps": 100_000, "ckpt_every_steps": None, "val_every_steps": None}
    )
    command = [sys.executable, "-m", "automodel_cli", "pretrain", "llm", "-c", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = subprocess.Popen if name == "SIGTERM" else nursery.Popen
    process = start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.Signals[name])
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 75, rest
    latest = (tiny_training.run / "LATEST").read_text().split()[0]
    state = json.loads((tiny_training.run / latest / "state.json").read_text())
    last_logged = tiny_training.records()[-1]["step"]
    assert state["step"] == last_logged >= 5
    assert name in rest


def test_another_run_in_the_same_folder_is_refused(tiny_training):
    config = tiny_training.config(step_scheduler={"max_steps": 100_000})
    command = [sys.executable, "-m", "automodel_cli", "pretrain", "llm", "-c", str(config)]
    first = nursery.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tiny_training.run / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = tiny_training.train()
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert "another" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--model.n_embd", "48", "--model.n_head", "3"], "n_embd"),
        (["--dataset.seq_len", "16"], "seq_len"),
        (["--rng.seed", "7"], "seed"),
    ],
)
def test_another_model_or_data_is_refused_with_the_difference(undisturbed, change, named):
    before = sorted(undisturbed.run.iterdir())
    done = undisturbed.train(*change)
    assert done.returncode == 1, done.stdout
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
    assert sorted(undisturbed.run.iterdir()) == before


def test_finished_run_says_so(undisturbed):
    done = undisturbed.train()
    assert done.returncode == 0
    assert "already trained" in done.stdout
