"""Checkpoints to Hugging Face folders: transformers computes the same logits, whoever wrote the shards."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.checkpoint import many_ranks
from tests.checkpoint.hf import hub_server
from tests.checkpoint.steps import save_tensors

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.formats import read_tensor
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.cli import app
from automodel_cli.config.schema.results import ExportConfig
from automodel_cli.corpus.tokenizer import open_tokenizer
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.models import hf
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model
from automodel_cli.recipes import export

KINDS = ["gpt2", "our llama", "our llama tied", "llama", "llama tied"]


def tiny(kind: str):
    if kind.startswith("gpt2"):
        model = build_gpt2_model(
            vocab_size=300, n_positions=16, n_embd=24, n_layer=2, n_head=4, bias=kind != "gpt2 without biases"
        )
    else:
        sizes = {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        if kind == "mixtral":  # its experts are one tensor here, many on disk
            config = transformers.MixtralConfig(vocab_size=300, intermediate_size=16, num_local_experts=3, **sizes)
        else:
            tied = kind.endswith("tied")
            sizes.update(vocab_size=300, intermediate_size=40, tie_word_embeddings=tied)
            config = transformers.LlamaConfig(**sizes)
        model = build_llama_model(**sizes) if kind.startswith("our") else hf.from_config(config)
    model.init_weights(0)
    return model.eval()


def save(run, model, *, save_format="safetensors", **changes):
    tokenizer = run.parent / "tokenizer"
    open_tokenizer("byte").save(tokenizer)
    arguments = {"state": {}, "loader_state": {}, "config_yaml": "", "facts": {"model": model.model_config()}}
    checkpointer = Checkpointer(run, save_format=save_format)
    return checkpointer.save(3, model=model, optimizer=None, tokenizer_folder=tokenizer, **{**arguments, **changes})


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("save_format", ["safetensors", "torch_save"])
@pytest.mark.parametrize("kind", [*KINDS, "gpt2 without biases", "mixtral"])
def test_transformers_computes_the_same_logits(tmp_path, kind, save_format):
    model = tiny(kind)
    save(tmp_path / "run", model, save_format=save_format)
    cfg = ExportConfig(checkpoint=str(tmp_path / "run"), output=str(tmp_path / "out"))
    result = export.run(cfg)
    assert result.folder == tmp_path / "out" and result.checkpoint.name == "step_00000003"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(result.folder).eval()
    ids = torch.arange(10)[None] * 7 % 300
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(Batch(ids, None)), atol=1e-5, rtol=1e-5)
    text = "\u00e9t\u00e9 and more"
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.folder)
    assert tokenizer.encode(text, add_special_tokens=False) == list(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tensors_as_the_copy_that_a_run_makes(tmp_path, kind):
    model = tiny(kind)
    step = save(tmp_path / "run", model, consolidate=True)
    hf_export.export(step, tmp_path / "out")
    made, kept = contents(tmp_path / "out"), contents(step / "hf")
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "out", step / "hf")]
    assert many_ranks.differing(*weights) == []
    for contents_of in (made, kept):
        contents_of.pop("model.safetensors")
    assert made == kept


def parts_in_two_files(step, model):
    """The same step as two ranks would have written it: rows in halves."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    writer = StepWriter(step.with_name("step_00000004"))
    for rank in (0, 1):
        halves = {name: value.chunk(2)[rank] for name, value in state.items()}
        offsets = {name: (rank * -(-value.shape[0] // 2), *[0] * (value.dim() - 1)) for name, value in state.items()}
        save_tensors(halves, writer, rank=rank, offsets=offsets)
    writer.write_json("model/config.json", model.model_config())
    manifest = StepReader(step).manifest
    writer.finish({**manifest, "step": 4})
    return writer.folder


def test_shards_of_several_ranks_and_several_files_out(tmp_path, monkeypatch):
    model = tiny("gpt2")
    one = save(tmp_path / "run", model)
    two = parts_in_two_files(one, model)
    hf_export.export(two, tmp_path / "whole")
    monkeypatch.setattr(hf_export, "MAX_FILE_BYTES", 20_000)
    hf_export.export(two, tmp_path / "cut")
    index = json.loads((tmp_path / "cut" / hf_format.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    expected = {f"transformer.{name}": value for name, value in model.state_dict().items() if value.dim() == 1}
    for folder in ("whole", "cut"):
        found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder).state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_memory_is_bounded_by_the_largest_tensor(tmp_path, monkeypatch):
    model = build_gpt2_model(vocab_size=1000, n_positions=8, n_embd=128, n_layer=24, n_head=2)
    model.init_weights(0)
    step = save(tmp_path / "run", model)
    largest = max(value.nbytes for value in model.state_dict().values())
    total = sum(value.nbytes for value in model.state_dict().values())
    hf_export.export(step, tmp_path / "first")  # imports and tables are there now
    read: list[int] = []

    def counted(reader, stored):
        tensor = read_tensor(reader, stored)
        read.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(hf_export, "read_tensor", counted)
    tracemalloc.start()
    try:
        hf_export.export(step, tmp_path / "second")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(read) == total and max(read) == largest < total / 20
    assert peak < 20 << 20  # Python's own memory: headers and pieces of files, no tensors


@pytest.mark.parametrize("trouble", ["exists", "damaged", "foreign", "nothing"])
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, trouble, capsys):
    step = save(tmp_path / "run", tiny("gpt2"))
    shard = step / "model" / sharded.shard_name()
    words = {"exists": "exists already", "damaged": shard.name, "foreign": "no Hugging Face format"}
    if trouble == "exists":
        (tmp_path / "out").mkdir()
    elif trouble == "damaged":
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    elif trouble == "foreign":
        model = torch.nn.Linear(2, 2)
        model.model_config = lambda: {"family": "foreign"}
        save(tmp_path / "run", model)
    source = tmp_path if trouble == "nothing" else tmp_path / "run"
    code = app.run(["export", "hf", str(source), str(tmp_path / "out")])
    assert code == 1 and words.get(trouble, "neither a checkpoint nor a run folder") in capsys.readouterr().err
    assert not list(tmp_path.glob("out*.tmp"))
    assert (tmp_path / "out").exists() == (trouble == "exists")


def test_the_command(tmp_path, capsys):
    save(tmp_path / "run", tiny("gpt2"))
    assert app.run(["export", "hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert f"KiB from {tmp_path / 'run' / 'step_00000003'}" in capsys.readouterr().out.replace("\n", "")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(contents(tmp_path / "out"))


def test_a_world_of_one_is_enough(tmp_path):
    """No process group is made."""
    save(tmp_path / "run", tiny("gpt2"))
    hf_export.export(tmp_path / "run" / "step_00000003", tmp_path / "out")
    assert World.single().size == 1 and not torch.distributed.is_initialized()
    with pytest.raises(CheckpointError, match="exists already"):
        hf_export.export(tmp_path / "run" / "step_00000003", tmp_path / "out")


def test_an_export_clears_what_a_killed_one_left_and_waits_for_nobody(tmp_path):
    step = save(tmp_path / "run", tiny("gpt2"))
    left = tmp_path / "out.automodel.tmp"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"1")
    (tmp_path / "out.automodel.tmp.lock").touch()
    hf_export.export(step, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    assert "half.safetensors" not in contents(tmp_path / "out")
    with hf_export.new_folder(tmp_path / "two"), pytest.raises(AutomodelError, match="another process"):
        hf_export.export(step, tmp_path / "two")


def test_what_lies_beside_the_output_is_not_touched(tmp_path):
    """A temporary has a name that is nobody else's."""
    save(tmp_path / "run", tiny("gpt2"))
    (tmp_path / "mine.tmp").mkdir()
    (tmp_path / "mine.tmp/canary").write_text("precious")
    assert app.run(["export", "hf", str(tmp_path / "run"), str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine.tmp/canary").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.glob("mine*")) == ["mine", "mine.tmp"]


def test_links_and_files_of_others_in_a_tokenizer_go_nowhere(tmp_path):
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "tokenizer"
    open_tokenizer("byte").save(folder)
    (folder / "notes").write_text("mine")
    (folder / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    (folder / "vocab.json").symlink_to(tmp_path / "gone")
    step = save(tmp_path / "run", tiny("gpt2"))
    assert [path.name for path in (step / "tokenizer").iterdir()] == ["automodel_tokenizer.json"]
    for name in ("notes", "special_tokens_map.json"):
        (step / "tokenizer" / name).write_bytes((folder / name).read_bytes())
    hf_export.export(step, tmp_path / "out")
    assert "notes" not in contents(tmp_path / "out")


# --------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch):
    with hub_server.instead_of_the_hub(monkeypatch) as server:
        yield server


def test_an_export_goes_to_the_hub_with_its_card(tmp_path, capsys, hub):
    save(tmp_path / "run", tiny("gpt2"))
    where = ["export", "hf", str(tmp_path / "run"), str(tmp_path / "out")]
    assert app.run([*where, "--push-to-hub", "me/gpt", "--private", "--license", "apache-2.0"]) == 0
    made = hub.repositories["me/gpt"]
    uploaded = made.branches["main"]
    assert uploaded == {".gitattributes": b"", **contents(tmp_path / "out")} and made.private
    assert b"license: apache-2.0" in uploaded["README.md"] and b"# me/gpt" in uploaded["README.md"]
    assert made.messages == ["automodel: step_00000003"]
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"{hub.address}/me/gpt (private if it is new)" in shown and f"uploaded to {hub.address}/me/gpt" in shown
    assert hub_server.TOKEN not in shown and not any(hub_server.TOKEN.encode() in one for one in uploaded.values())


def test_an_upload_that_fails_leaves_the_folder_and_says_how_to_go_on(tmp_path, capsys, hub):
    save(tmp_path / "run", tiny("gpt2"))
    where = ["export", "hf", str(tmp_path / "run"), str(tmp_path / "out")]
    assert app.run([*where, "--push-to-hub", "them/gpt"]) == 1
    told = capsys.readouterr().err
    assert "may not write there (403)" in told and f"hf upload them/gpt {tmp_path / 'out'} ." in told.replace("\n", "")
    assert {"README.md", "config.json", "model.safetensors"} <= set(contents(tmp_path / "out"))


def test_without_a_token_nothing_is_exported_in_vain(tmp_path, capsys, hub, monkeypatch):
    save(tmp_path / "run", tiny("gpt2"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert app.run(["export", "hf", str(tmp_path / "run"), str(tmp_path / "out"), "--push-to-hub", "me/gpt"]) == 1
    assert "there is no token: run hf auth login, or set HF_TOKEN" in capsys.readouterr().err.replace("\n", " ")
    assert not hub.requests and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["push_to_hub: me/${HF_TOKEN}", "push_to_hub: me/x\nlicense: ${HF_TOKEN}"])
def test_no_secret_becomes_a_name_that_others_see(tmp_path, capsys, hub, text):
    (tmp_path / "export.yaml").write_text(text)
    where = ["export", "hf", str(tmp_path / "run"), str(tmp_path / "out"), "-c", str(tmp_path / "export.yaml")]
    save(tmp_path / "run", tiny("gpt2"))
    assert app.run(where) == 2
    told = capsys.readouterr().err
    assert "takes no environment variables" in told and hub_server.TOKEN not in told and not hub.requests


@pytest.mark.parametrize(
    "wrong",
    [
        ["--push-to-hub", "../../etc"],
        ["--push-to-hub", "a/b/c"],
        ["--push-to-hub", "me/gpt", "--revision", "../x"],
        ["--push-to-hub", "me/gpt", "--license", "mit\nbase_model: evil/x"],
        ["--private"],
        ["--revision", "v1"],
    ],
)
def test_what_names_no_place_is_refused_before_anything_is_made(tmp_path, hub, wrong):
    assert app.run(["export", "hf", str(tmp_path / "run"), str(tmp_path / "out"), *wrong]) == 2
    assert not hub.requests and not (tmp_path / "out").exists()
