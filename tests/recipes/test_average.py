"""The command ``average``, and averages where a checkpoint is asked for: scored, exported, begun with."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from automodel_cli.assembly.hub.model_card import model_card
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.cli import app
from automodel_cli.config.schema.results import (
    AverageConfig,
    EvaluateConfig,
    ExportConfig,
    ExportGGUFConfig,
    GenerateConfig,
)
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.recipes import average, export, export_gguf, generate
from automodel_cli.recipes.evaluation import likelihood

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def save(tiny_run, run, step, *, width=32, ema=None):
    """A step of a run on the tiny corpus; ``ema`` is its average of the weights."""
    model = build_gpt2_model(vocab_size=257, n_positions=32, n_embd=width, n_layer=1, n_head=2)
    model.materialize("cpu", seed=step)
    Checkpointer(run).save(
        step,
        model=model,
        optimizer=torch.optim.SGD(model.parameters()),
        state={"train": {"step": step}},
        loader_state={},
        config_yaml=(tiny_run.run / "step_00000007" / "config.yaml").read_text(),
        facts={"model": model.model_config(), "tokenizer": ByteTokenizer().describe()},
        tokenizer_folder=tiny_run.corpus / "tokenizer",
        average=ema,
    )
    return model


@pytest.fixture
def run(tmp_path, tiny_run):
    for step in (1, 2, 3):
        save(tiny_run, tmp_path / "run", step)
    return tmp_path / "run"


@pytest.fixture
def averaged(tmp_path, tiny_run):
    """A run whose one step also holds the weights of another model as their average."""
    other = build_gpt2_model(vocab_size=257, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    other.materialize("cpu", seed=99)
    save(tiny_run, tmp_path / "ema", 4, ema={name: one.detach() for name, one in other.named_parameters()})
    save_plain = Checkpointer(tmp_path / "plain")
    save_plain.save(
        4,
        model=other,
        optimizer=None,
        state={"train": {"step": 4}},
        loader_state={},
        config_yaml=(tiny_run.run / "step_00000007" / "config.yaml").read_text(),
        facts={"model": other.model_config(), "tokenizer": ByteTokenizer().describe()},
        tokenizer_folder=tiny_run.corpus / "tokenizer",
    )
    return tmp_path / "ema", tmp_path / "plain"


# ------------------------------------------------------------------------------------------ automodel average


def test_the_average_is_scored_spoken_with_exported_and_begun_with(run, tmp_path, tiny_training):
    out = tmp_path / "mean"
    done = average.run(AverageConfig(checkpoints=(str(run),), last=2, output=str(out)))
    assert [part.folder.name for part in done.parts] == ["step_00000002", "step_00000003"]
    assert [part.share for part in done.parts] == [0.5, 0.5]
    scored = likelihood.run(EvaluateConfig(checkpoint=str(out), device="cpu"))
    assert scored.output == out / "results_step_00000003_val.json"
    spoken = generate.run(GenerateConfig(checkpoint=str(out), prompt="line", max_new_tokens=3, device="cpu"))
    assert len(spoken.prompts[0].samples[0].ids) == 3
    export.run(ExportConfig(checkpoint=str(out), output=str(tmp_path / "hf")))
    stored = load_file(done.folder / "model" / SHARD)
    assert torch.equal(load_file(tmp_path / "hf" / "model.safetensors")["transformer.wpe.weight"], stored["wpe.weight"])


def test_a_run_begins_with_an_average_and_does_not_go_on_from_it(tiny_training):
    tiny_training.recipe(step_scheduler={"max_steps": 4, "ckpt_every_steps": 2}).run_train_validation_loop()
    out = tiny_training.folder / "mean"
    average.run(AverageConfig(checkpoints=(str(tiny_training.run),), last=2, output=str(out)))
    begun = tiny_training.recipe(init_from=str(out), checkpoint={"checkpoint_dir": str(tiny_training.folder / "next")})
    stored = load_file(out / "step_00000004" / "model" / SHARD)
    assert torch.equal(begun.model.state_dict()["wpe.weight"], stored["wpe.weight"])
    for checkpoint in ({"checkpoint_dir": str(out)}, {"restore_from": str(out)}):
        with pytest.raises(CheckpointError, match="is an average of checkpoints") as refused:
            tiny_training.recipe(checkpoint=checkpoint)
        assert "init_from" in refused.value.hint


def test_the_command_says_what_went_in_and_inspect_ckpt_shows_it(run, tmp_path, capsys):
    out = str(tmp_path / "out")
    words = ["average", str(run / "step_00000001"), str(run), "--weights", "3,1", "--output", out]
    assert app.run(words) == 0
    said = capsys.readouterr().out
    assert "75.00%" in said and "step_00000003" in said and "the average of 2 checkpoints" in said
    assert app.run(["inspect-ckpt", out, "--step", "LATEST"]) == 0
    assert "of steps 1 (x 3), 3 (x 1)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"last": 4}, "has 3 checkpoints, and last is 4"),
        ({"last": 1}, "one checkpoint"),
        ({}, "one checkpoint"),
        ({"steps": (1, 9)}, "no complete checkpoint '9'"),
        ({"steps": (1, 2), "weights": (1.0,)}, "found 1 for 2 checkpoints"),
        ({"steps": (1, 2), "weights": (1.0, 1e308)}, "expected 1e-9 to 1e9"),
        ({"checkpoints": ("RUN", "RUN/step_00000003")}, "named twice"),
        ({"checkpoints": ("RUN", "RUN/other")}, "neither a checkpoint nor a run folder"),
        ({"checkpoints": ("RUN/other",), "last": 2}, "is not a run folder with checkpoints"),
        ({"last": 2, "output": "RUN"}, "exists already"),
    ],
)
def test_what_cannot_be_averaged_is_refused_and_leaves_nothing(run, tmp_path, given, what):
    names = [name.replace("RUN", str(run)) for name in given.pop("checkpoints", ("RUN",))]
    output = str(given.pop("output", tmp_path / "out")).replace("RUN", str(run))
    with pytest.raises(AutomodelError, match=what):
        average.run(AverageConfig(checkpoints=tuple(names), output=output, **given))
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_with_the_difference(run, tmp_path, tiny_run):
    save(tiny_run, tmp_path / "wide", 5, width=48)
    with pytest.raises(CheckpointError, match="the model: n_embd: 32 -> 48"):
        average.run(AverageConfig(checkpoints=(str(run), str(tmp_path / "wide")), output=str(tmp_path / "out")))


@pytest.mark.parametrize("given", [{"last": 2, "steps": "1,2"}, {"checkpoints": ("a", "b"), "last": 2}])
def test_the_checkpoints_are_named_in_one_way(given):
    with pytest.raises(ValueError, match=r"expected one of them|choose from one run folder"):
        AverageConfig.model_validate({"checkpoints": ("a",), "output": "out", **given})


# ------------------------------------------------------------------------------------------ --ema


def test_the_average_in_a_checkpoint_is_what_is_scored_spoken_with_and_exported(averaged, tmp_path):
    ema, plain = map(str, averaged)
    found, want = (
        likelihood.run(EvaluateConfig(checkpoint=name, ema=name == ema, device="cpu")) for name in (ema, plain)
    )
    assert found.results["loss"] == want.results["loss"]
    assert found.results["checkpoint"]["weights"] == "ema" and "weights" not in want.results["checkpoint"]
    assert "Its weights are an average" in model_card(averaged[0] / "step_00000004", averaged=True)
    loss = f"{want.results['loss']:.4f}"
    assert loss in model_card(averaged[0] / "step_00000004", averaged=True)
    assert loss not in model_card(averaged[0] / "step_00000004")
    spoken = [
        generate.run(GenerateConfig(checkpoint=name, ema=name == ema, prompt="a", max_new_tokens=5, device="cpu"))
        for name in (ema, plain)
    ]
    assert spoken[0].prompts == spoken[1].prompts
    for name, output in ((ema, "one"), (plain, "two")):
        export.run(ExportConfig(checkpoint=name, output=str(tmp_path / output), ema=name == ema))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_is_refused_where_there_is_none(run, averaged, tmp_path):
    export.run(ExportConfig(checkpoint=str(averaged[1]), output=str(tmp_path / "hf")))
    for ask in (
        lambda path: likelihood.run(EvaluateConfig(checkpoint=path, ema=True, device="cpu")),
        lambda path: export_gguf.run(ExportGGUFConfig(checkpoint=path, output_file=str(tmp_path / "x.gguf"), ema=True)),
    ):
        with pytest.raises(CheckpointError, match="holds no averaged weights"):
            ask(str(run))
        with pytest.raises(CheckpointError, match="one set of weights"):
            ask(str(tmp_path / "hf"))
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        export.run(ExportConfig(checkpoint=str(run), output=str(tmp_path / "x"), ema=True))
    assert not list(tmp_path.glob("x*"))
