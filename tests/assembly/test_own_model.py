"""A model of one's own: trained with --trust, then scored, continued and (not) exported by its checkpoint alone."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tests.conftest import TinyTraining

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.assembly.facts import Facts, refuse_other_run
from automodel_cli.batch import Batch
from automodel_cli.checkpoint import layout
from automodel_cli.cli import app
from automodel_cli.config.targets import resolution
from automodel_cli.corpus.tokenizer import open_tokenizer
from automodel_cli.errors import AutomodelError
from automodel_cli.files import hash_file, write_manifest
from automodel_cli.models.external import needs_code
from automodel_cli.models.gpt2 import GPT2, build_gpt2_model
from automodel_cli.models.hf import wrap
from automodel_cli.models.huggingface.same_function import differences

IDS = torch.arange(20).view(2, 10) % 64
SOURCE = """
from pathlib import Path

import torch
from torch import nn

from automodel_cli.models.gpt2 import GPT2, build_gpt2_model

Path(__file__).with_name("ran").write_text("yes")


class Own(nn.Module):
    def __init__(self, vocab_size, width):
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)
        self.lm_head = nn.Linear(width, vocab_size)

    def forward(self, input_ids):
        return self.lm_head(torch.tanh(self.table(input_ids)))


class Louder(GPT2):
    def forward(self, batch, **keywords):
        return super().forward(batch, **keywords) * 2


def build(vocab_size=64, width=8):
    return Own(vocab_size, width)


def louder():
    model = build_gpt2_model(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model.__class__ = Louder
    model.init_weights(0)
    return model


def plain():
    model = build_gpt2_model(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model.init_weights(0)
    return model


other = build
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory, tiny_tokens):
    """One update of a model of one's own, named by a relative path; with the model in memory."""
    training = TinyTraining(tmp_path_factory.mktemp("own"), tiny_tokens)
    return training, train_one(training, "build", {"width": 12})


@pytest.fixture
def trained(once, tmp_path, monkeypatch):
    """A copy in the current folder, as in another process: (folder, model, step)."""
    training, model = once
    folder = Path(shutil.copytree(training.folder, tmp_path / "work"))
    monkeypatch.chdir(folder)
    return folder, model, folder / "run" / "step_00000001"


def train_one(training, builder, arguments):
    (training.folder / "mine.py").write_text(SOURCE)
    with contextlib.chdir(training.folder):
        recipe = training.recipe(
            trust=("mine.py",),
            model={"_target_": f"mine.py:{builder}", **arguments},
            step_scheduler={"max_steps": 1},
        )
        recipe.run_train_validation_loop()
    (training.folder / "ran").unlink()
    forget(training.folder / "mine.py")
    open_tokenizer("byte").save(training.folder / "byte")
    return recipe.model


def forget(file: Path) -> None:
    """As in another process: the file was not executed yet."""
    resolution._FILES.pop(file.resolve(), None)


def test_the_builder_comes_from_the_checkpoint_and_runs_only_where_it_is_trusted(trained, capsys, tmp_path):
    folder, model, checkpoint = trained
    file = folder / "mine.py"
    manifest = layout.read_step_manifest(checkpoint)
    assert manifest["facts"]["code"] == {"target": "mine.py:build", "xxh3": hash_file(file)}
    (tmp_path / "other.py").write_text(SOURCE + "# other\n")
    for trust in ((), (str(tmp_path / "other.py"),), ("mine",)):
        with pytest.raises(AutomodelError, match=r"built by .*mine.py:build"):
            load_model(folder / "run", trust=trust)
    assert not (folder / "ran").exists() and not (tmp_path / "ran").exists()
    loaded = load_model(folder / "run", trust=(str(file),))
    assert (folder / "ran").exists() and loaded.notes == ()
    with torch.no_grad():
        assert torch.equal(loaded.model(Batch(IDS)), model.eval()(Batch(IDS)))

    words = [str(folder / "run"), "--device", "cpu", "--trust", str(file)]
    assert app.run(["eval", *words, "--limit-batches", "1"]) == 0
    assert "results_step_00000001_val.json" in capsys.readouterr().out.replace("\n", "")
    words += ["--tokenizer", str(folder / "byte"), "-p", "\x01", "--max-new-tokens", "3"]
    assert app.run(["generate", *words]) == 0
    assert "3 tokens at" in capsys.readouterr().err
    assert app.run(["inspect-ckpt", str(folder / "run")]) == 0


def test_what_cannot_be_exported_is_said_in_the_users_words(trained, capsys):
    folder, _, checkpoint = trained
    assert app.run(["export", "hf", str(folder / "run"), str(folder / "out")]) == 1
    err = capsys.readouterr().err
    assert "mine.py:build, has no Hugging Face format" in err and str(checkpoint / "model") in err
    assert len(err.strip().splitlines()) == 1 + 2  # what it does first, then the error
    assert "ExternalCausalLM" not in err and "family" not in err


def test_a_file_that_changed_is_said(trained):
    folder, _, _ = trained
    file = folder / "mine.py"
    file.write_text(SOURCE + "\nMORE = 1\n")
    assert any("mine.py is not as it was" in note for note in load_model(folder / "run", trust=[str(file)]).notes)


def test_a_run_that_was_moved_takes_an_unchanged_copy(trained, tmp_path):
    folder, model, _ = trained
    file = folder / "mine.py"
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.move(file, tmp_path / "elsewhere/renamed.py"))
    with pytest.raises(AutomodelError, match=r"there is no .*mine.py here"):
        load_model(folder / "run")
    with torch.no_grad():
        logits = load_model(folder / "run", trust=[str(copy)]).model(Batch(IDS))
        assert torch.equal(logits, model.eval()(Batch(IDS)))
    copy.write_text(SOURCE + "\nMORE = 1\n")
    with pytest.raises(AutomodelError, match="built by"):
        load_model(folder / "run", trust=[str(copy)])


def reconfigure(checkpoint: Path, change) -> None:
    """Another ``config.yaml`` in a step, sealed as if it had been written so."""
    path = checkpoint / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["self"]
    for record in manifest["files"]:
        if record["name"] == "config.yaml":
            record |= {"bytes": path.stat().st_size, "xxh3": hash_file(path)}
    write_manifest(checkpoint / "manifest.json", manifest)


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system", "command": "touch ran"},
        {"_target_": "mine.py:build", "width": {"_target_": "os.getcwd"}},
        {"_target_": "{file}:Path.cwd"},
        {"_target_": "{file}:_private"},
        {"_target_": "{file}:build", "width": {"_target_": "builtins.eval", "source": "1"}},
        {"_target_": "{file}:build", "depth": 3},
        {"_target_": "transformers.AutoModelForCausalLM.from_pretrained", "pretrained_model_name_or_path": "x"},
        {"_target_": 3},
        None,
        "text",
    ],
)  # fmt: skip
def test_a_hostile_configuration_reaches_nothing_but_the_trusted_file(trained, model):
    folder, _, checkpoint = trained
    file = "mine.py"
    named = json.loads(json.dumps(model).replace("{file}", file)) if model is not None else None
    reconfigure(checkpoint, lambda config: config.update(model=named))
    with pytest.raises(AutomodelError):
        load_model(folder / "run", trust=(file,))


def test_another_class_of_ours_is_not_taken_for_ours(tiny_training, monkeypatch):
    """Its tensors are GPT-2's, its function is not: rebuilt as GPT-2 it would answer something else in silence."""
    training, model = tiny_training, train_one(tiny_training, "louder", {})
    monkeypatch.chdir(training.folder)
    with pytest.raises(AutomodelError, match=r"built by .*mine.py:louder"):
        load_model(training.run)
    with torch.no_grad():
        expected = model.eval()(Batch(IDS))
        assert torch.equal(load_model(training.run, trust=("mine.py",)).model(Batch(IDS)), expected)
    assert app.run(["export", "hf", str(training.run), str(training.folder / "out")]) == 1


def test_a_builder_of_ones_own_that_returns_a_known_model_needs_no_code(tiny_training):
    training, model = tiny_training, train_one(tiny_training, "plain", {})
    checkpoint = training.run / "step_00000001"
    assert layout.read_step_manifest(checkpoint)["facts"]["code"] is None
    with torch.no_grad():
        assert torch.equal(load_model(training.run).model(Batch(IDS)), model.eval()(Batch(IDS)))
    assert not (training.folder / "ran").exists()


def test_whose_code_a_model_needs():
    class Swapped(torch.nn.Linear):
        pass

    ours = build_gpt2_model(vocab_size=64, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    assert not needs_code(ours)
    ours.h[0].mlp.c_fc = Swapped(8, 32)
    assert needs_code(ours)

    class Own(GPT2):
        pass

    assert needs_code(Own(ours.config)) and needs_code(wrap(torch.nn.Sequential(torch.nn.Embedding(5, 5))))


def test_a_run_that_was_moved_with_its_file_goes_on(trained):
    """The class of a file has a name with a mark of the folder it was loaded from."""
    _, _, checkpoint = trained
    stored = layout.read_step_manifest(checkpoint)["facts"]
    moved = resolution.load_file(Path("mine.py"))
    now = wrap(moved.build(width=12))
    assert now.model_config()["class"] != stored["model"]["class"]
    refuse_other_run(Facts.from_json(stored), Facts(model=now.model_config()), checkpoint)
    assert differences(stored["model"], now) == []
    moved.Own.__qualname__ = "Another"
    with pytest.raises(AutomodelError, match=r"Own -> .*Another"):
        refuse_other_run(Facts.from_json(stored), Facts(model=now.model_config()), checkpoint)
    forget(Path("mine.py"))
