"""Several processes: the same numbers to the last bit, and as many forwards on each."""

from __future__ import annotations

import pytest
import torch
from tests.distributed.ranks import run_ranks
from tests.evaluation.test_span_scores import gpt2, questions
from torch.distributed.fsdp import fully_shard

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.distributed.world import World
from automodel_cli.evaluation.greedy import Prompt, continue_greedily
from automodel_cli.evaluation.span_scores import SpanScorer


def in_turns(world, folder):
    """What this rank found, and how many forwards it ran (called in processes of their own)."""
    calls = []
    model = gpt2()
    model.register_forward_hook(lambda *_: calls.append(1))
    scores = SpanScorer(model, batch_size=3, world=world, share=True).score(questions())
    values = [[score.nll, score.tokens, score.greedy] for of_one in scores for score in of_one]
    sharded = gpt2()
    if world.mesh is not None:
        for part in (*sharded.blocks(), sharded):
            fully_shard(part, mesh=world.mesh["dp_shard"])
    of_shards = SpanScorer(sharded, batch_size=3, world=world, share=True).score(questions())
    shards = [score.nll for of_one in of_shards for score in of_one]
    loaded = load_model(folder)
    loaded.model.register_forward_hook(lambda *_: calls.append(1))
    engine = SpanScorer(loaded.model, batch_size=2, world=world, share=True)
    prompts = [Prompt(tuple(range(5, 9 + number)), 3 + 4 * (number % 2)) for number in range(5)]
    written = continue_greedily(engine, prompts)
    return {"values": values, "shards": shards, "written": written, "calls": len(calls)}


def test_any_number_of_processes_finds_the_same(tiny_hf):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    try:
        alone = in_turns(World.single(), str(tiny_hf.folder))
    finally:
        torch.set_num_threads(threads)
    ranks = run_ranks(2, in_turns, str(tiny_hf.folder), timeout_s=240)
    for found in ranks:
        assert found["values"] == alone["values"] and found["written"] == alone["written"]
        assert found["shards"] == pytest.approx(alone["shards"], rel=1e-6)
    assert len({found["calls"] for found in ranks}) == 1 and ranks[0]["calls"] < alone["calls"]
