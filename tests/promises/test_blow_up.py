"""A run over two ranks that leaves the numbers on one of them: no rank saves it, and the last good checkpoint stays."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.promises.spread_runs import configuration, on_mesh
from torch.distributed.tensor import DTensor

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.checkpoint import layout
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError
from automodel_cli.recipes.pretrain import PretrainRecipe

CASES = {
    # 4 was saved, and no finite loss came after it
    "loss": ("step_00000002", [2, 4], "step 6 is not saved: the loss is not finite"),
    "weights": ("step_00000004", [2, 4], "step 6 is not saved: the weights hold NaN or infinity"),
}


def blow_ups(world: World, folder: str) -> dict[str, Any]:
    """Each case on this rank."""
    return {what: blow_up(world, folder, what) for what in CASES}


def blow_up(world: World, folder: str, what: str) -> dict[str, Any]:
    """What a rank sees of a run whose loss or weights are no numbers on rank 1 from update 5 on."""
    run, said = Path(folder, what), []
    cfg = configuration(
        Path(folder),
        step_scheduler={"ckpt_every_steps": 2, "max_skipped_steps": 4, "max_steps": 20},
        checkpoint={"checkpoint_dir": str(run), "keep_last": 1, "save_consolidated": False},
        validation_dataset=None,
    )
    recipe = PretrainRecipe(cfg, world=on_mesh(world, cfg), reporter=Reporter(say=said.append))
    recipe.setup()
    if world.rank == 1:
        poison_loss(recipe) if what == "loss" else poison_weights(recipe)
    with pytest.raises(AutomodelError) as caught:
        recipe.run_train_validation_loop()
    return {"message": caught.value.message, "hint": caught.value.hint, "said": said}


def poison_loss(recipe: PretrainRecipe) -> None:
    honest = recipe.head_loss

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        return honest(*args, **kwargs) * (math.nan if recipe.state.step >= 4 else 1.0)

    recipe.run = dataclasses.replace(recipe.run, head_loss=poisoned)


@torch.no_grad()
def poison_weights(recipe: PretrainRecipe) -> None:
    honest = recipe.optimizer.step

    def step(*args: Any, **kwargs: Any) -> None:
        honest(*args, **kwargs)
        if recipe.state.step == 5:
            weight = next(recipe.model.parameters())
            assert isinstance(weight, DTensor)
            weight.detach().to_local().fill_(math.inf)

    recipe.optimizer.step = step  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def blown_up(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("blown_up")
    write_tokens(folder / "train.bin", tokens=2_000, seed=0, vocab_size=61)
    return folder, run_ranks(2, blow_ups, str(folder))


@pytest.mark.parametrize("what", CASES)
def test_one_rank_that_blows_up(what, blown_up):
    (good, kept, unsaved), (folder, ranks) = CASES[what], blown_up
    for rank in ranks:
        assert "of the last 4 updates was not finite" in rank[what]["message"]
        assert f"the last good checkpoint is {folder / what / good}" in rank[what]["hint"]
    assert unsaved in ranks[0][what]["said"] and ranks[1][what]["said"] == []
    assert layout.list_steps(folder / what) == kept
    assert layout.resolve(folder / what).name == good
