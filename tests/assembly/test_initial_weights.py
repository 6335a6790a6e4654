"""Weights of a run's beginning: whose stay, whose are drawn, and what new ids get."""

import pytest
import torch
import transformers

from automodel_cli.assembly.initial_weights import check_weights, init_or_load_weights, known_ids
from automodel_cli.assembly.model import build_model
from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.hf.export import save_hf
from automodel_cli.checkpoint.storage import formats
from automodel_cli.config.targets.target import Target
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer
from automodel_cli.errors import CheckpointError, DataError
from automodel_cli.models.gpt2 import build_gpt2_model

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 50}
CPU = torch.device("cpu")


def saved_gpt2(folder):
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **tokens))
    model.save_pretrained(folder)
    return model


def save_step(run, model, tokenizer_facts=None, tokenizer=None):
    facts = {"model": model.model_config(), "tokenizer": tokenizer_facts}
    folder = None if tokenizer is None else run.with_name(f"tokenizer of {run.name}")
    if tokenizer is not None:
        tokenizer.save(folder)
    empty = {"state": {}, "loader_state": {}, "config_yaml": ""}
    return Checkpointer(run).save(1, model=model, optimizer=None, facts=facts, tokenizer_folder=folder, **empty)


def test_weights_that_a_target_loaded_are_kept(tmp_path):
    """Drawing them anew would turn fine-tuning into training from scratch without a word."""
    original = saved_gpt2(tmp_path)
    for name in (
        "transformers.AutoModelForCausalLM.from_pretrained",
        "automodel_cli.models.hf.from_pretrained",
    ):
        model = build_model(Target(name, {"pretrained_model_name_or_path": str(tmp_path)}), seed=0)
        assert init_or_load_weights(model, init_from=None, seed=0, device=CPU) == "pretrained, from its own target"
        assert torch.equal(model.hf.transformer.wte.weight, original.transformer.wte.weight)


def test_weights_of_a_configuration_are_drawn_from_the_seed():
    target = Target("automodel_cli.models.gpt2.build_gpt2_model", SIZES)
    drawn = []
    for seed in (1, 1, 2):
        model = build_model(target, seed=seed)
        assert init_or_load_weights(model, init_from=None, seed=seed, device=CPU) == f"random, seed {seed}"
        drawn.append(model.wte.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_weights_of_another_function_are_taken_only_where_that_is_asked_for(tmp_path):
    saved_gpt2(tmp_path / "hf")
    ours = "automodel_cli.models.gpt2.build_gpt2_model"
    stored = build_model(Target(ours, SIZES), seed=1)
    stored.init_weights(1)
    step = save_step(tmp_path / "run", stored)
    for source in (str(tmp_path / "hf"), str(step)):
        for change, named in (
            ({"n_head": 4}, "n_head is 4"),
            ({"activation": "gelu"}, "activation is gelu "),
        ):
            model = build_model(Target(ours, {**SIZES, **change}), seed=0)
            with pytest.raises(CheckpointError, match=named) as refused:
                init_or_load_weights(model, init_from=source, seed=0, device=CPU)
            assert "init_from_any_function: true" in refused.value.hint
            init_or_load_weights(model, init_from=source, seed=0, device=CPU, any_function=True)
        init_or_load_weights(build_model(Target(ours, SIZES), seed=0), init_from=source, seed=0, device=CPU)


@pytest.mark.parametrize("source", ["run", "folder"])
def test_new_ids_begin_as_the_mean_of_those_that_are_known(tmp_path, source):
    """126 ids are stored as 128 rows, 130 as 256."""
    known, sizes = 126, SIZES | {"vocab_size": 126}
    before = build_gpt2_model(**sizes)
    before.init_weights(1)
    if source == "run":
        save_step(tmp_path / "run", before)
    else:
        save_hf(before, tmp_path / "folder")
    after = build_gpt2_model(**SIZES | {"vocab_size": 130})
    said = init_or_load_weights(after, init_from=str(tmp_path / source), seed=0, device=CPU, known=known)
    assert said.endswith("weights only; ids from 126 on are new")
    table, expected = after.wte.weight, before.wte.weight[:known]
    assert torch.equal(table[:known], expected) and not table[130:].any()
    torch.testing.assert_close(table[126:130], expected.mean(dim=0).expand(4, -1))
    assert torch.equal(after.h[0].mlp.c_fc.weight, before.h[0].mlp.c_fc.weight)
    with pytest.raises(CheckpointError):
        init_or_load_weights(after, init_from=str(tmp_path / source), seed=0, device=CPU)


def test_which_ids_the_weights_know(tmp_path):
    """The tokenizer of a checkpoint with special tokens added is accepted, another one is not."""
    byte = ByteTokenizer()
    more = RunTokenizer(with_chatml(byte), tmp_path)
    before, after = (build_gpt2_model(**SIZES | {"vocab_size": size}) for size in (257, 259))
    save_step(tmp_path / "run", before, RunTokenizer(byte, tmp_path).facts(), byte)
    save_step(tmp_path / "chat", after, more.facts(), more.tokenizer)
    save_hf(before, tmp_path / "folder")

    assert known_ids(None, after, more) is known_ids(str(tmp_path / "run"), after, None) is None
    assert known_ids(str(tmp_path / "run"), after, more) == known_ids(str(tmp_path / "folder"), after, more) == 257
    assert known_ids(str(tmp_path / "chat"), after, more) is None
    check_weights(after, more, init_from=str(tmp_path / "run"))
    check_weights(after, more, init_from=str(tmp_path / "folder"))
    characters = CharTokenizer(map(chr, range(32, 289)))
    for other in (RunTokenizer(characters, tmp_path), RunTokenizer(with_chatml(characters), tmp_path)):
        with pytest.raises(DataError, match="was trained with byte, the data is in ids of char"):
            known_ids(str(tmp_path / "run"), after, other)


@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (3, 3), (3, 2, 1)])
def test_a_table_grows_by_rows_alone(tmp_path, shape):
    table = {"wte.weight": torch.zeros(3, 2)}
    formats.compare(tmp_path, {"wte.weight": torch.zeros(2, 2)}, table, cast=True, growing=["wte.weight"])
    with pytest.raises(CheckpointError, match="is stored as"):
        formats.compare(tmp_path, {"wte.weight": torch.zeros(shape)}, table, cast=True, growing=["wte.weight"])
