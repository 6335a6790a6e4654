"""The meshes that must carry everything: activation checkpointing, saves in the background, and a resume on another
mesh, all at once; rows and losses stay those of one process. And what cannot be combined says so."""

import pytest
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.effort import in_a_push
from tests.promises.elastic_runs import leg
from tests.promises.spread_runs import GPT_ALL, OWN, QWEN2, configuration, on_mesh, train

LEG = in_a_push(3, of=7)
STEPS = 3 * LEG
MESHES = {
    "dp x tp": {"tp_size": 2},
    "dp x cp": {"cp_size": 2},
    "hsdp x tp": {"tp_size": 2, "dp_replicate_size": 2},
}
HF_GPT2 = {
    "_target_": "transformers.AutoModelForCausalLM.from_config",
    "config": {
        "_target_": "transformers.GPT2Config",
        "vocab_size": 61,
        "n_positions": 16,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
    },
}
REFUSED = {
    "no plan": ({"model": HF_GPT2, "distributed": {"tp_size": 2}}, "tensor parallel: no plan"),
    "own model, tp": (
        {"model": OWN, "distributed": {"tp_size": 2}},
        "attention of ExternalCausalLM cannot be spread",
    ),
    "own model, cp": (
        {"model": OWN, "distributed": {"cp_size": 2}},
        "attention of ExternalCausalLM cannot be spread",
    ),
    "heads": (
        {"model": QWEN2, "distributed": {"tp_size": 4}},
        "does not divide the model's 2 key-value heads",
    ),
    "windows, cp": ({"model": GPT_ALL, "distributed": {"cp_size": 2}}, "window_pattern S cannot be spread over 2"),
    "windows, tp": (
        {"model": GPT_ALL, "distributed": {"tp_size": 2, "tp_plan": {"layers.*.q_proj": "column"}}},
        "window_pattern S and value_embeddings cannot be spread over 2",
    ),
    "style": ({"distributed": {"tp_size": 2, "tp_plan": {"h.*": "diagonal"}}}, "has style 'diagonal'"),
}


def legs(world, folder):
    """The first mesh trains a third of the way, the next one as far again, the last one to the end."""
    return [
        leg(world, folder, "run", until, options(mesh))
        for mesh, until in zip(MESHES, (LEG, 2 * LEG, None), strict=True)
    ]


def options(mesh):
    return {
        "distributed": {**MESHES[mesh], "activation_checkpointing": "full"},
        "checkpoint": {"is_async": True},
        "step_scheduler": {"max_steps": STEPS},
    }


def refusals(world, folder):
    from pathlib import Path

    from tests.promises.spread_runs import TRUST

    from automodel_cli.errors import AutomodelError
    from automodel_cli.recipes.pretrain import PretrainRecipe

    said = {}
    for name, (sections, _) in REFUSED.items():
        cfg = configuration(Path(folder), **sections)
        try:
            PretrainRecipe(cfg, world=on_mesh(world, cfg), trust=TRUST).setup()
            said[name] = "nothing"
        except AutomodelError as error:
            said[name] = error.message
    return said


def both(world, folder):
    return {"refused": refusals(world, folder), "legs": legs(world, folder)}


def by_step(item):
    return int(item[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    write_tokens(folder / "train.bin", tokens=5_000, seed=0, vocab_size=61)
    write_tokens(folder / "val.bin", tokens=300, seed=1, vocab_size=61)
    return str(folder)


@pytest.fixture(scope="module")
def results(folder):
    return run_ranks(4, both, folder, timeout_s=500)


@pytest.fixture(scope="module")
def alone(folder):
    (numbers,) = run_ranks(1, train, folder, {"gpt2": {}}, STEPS)
    return numbers["gpt2"]


def test_meshes_take_over_from_each_other(results, alone):
    for rank in results:
        parts = rank["legs"]
        losses, rows = (
            [numbers for part in parts for _, numbers in sorted(part[kind].items(), key=by_step)]
            for kind in ("losses", "rows")
        )
        assert losses == pytest.approx(alone["losses"], abs=1e-5)
        assert rows == alone["rows"]
        assert [part["began"] for part in parts] == [0, LEG, 2 * LEG]
        assert [part["exit_codes"] for part in parts] == [[75] * 4, [75] * 4, [0] * 4]


def test_what_cannot_be_combined_says_so_on_every_rank(results):
    for rank in results:
        for name, (_, message) in REFUSED.items():
            assert message in rank["refused"][name], name
