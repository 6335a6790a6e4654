"""Checkpoints by many ranks: any layout writes what any other reads, to the bit, every element once."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tests.checkpoint import many_ranks
from tests.distributed.ranks import run_ranks
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.inspect import verify
from automodel_cli.checkpoint.inspect.describe import describe_checkpoint
from automodel_cli.checkpoint.storage import formats
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.checkpoint.storage.tensor_file import read_header
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

WRITERS = ["ddp", "fsdp2", "fsdp3", "fsdp4", "hsdp", "dp2_tp2", "tp2", "hsdp_tp"]
READERS = {
    "one": [*WRITERS, "dcp_fsdp3", "dcp_dp2_tp2"],
    "fsdp3": ["ddp", "fsdp4", "dp2_tp2", "dcp_dp2_tp2"],
    "dp2_tp2": ["fsdp3", "hsdp_tp", "dcp_fsdp3"],
}
STEP = "step_00000002"


def write(world: World, run: str, layout_name: str, *, kind: str = "adamw", save_format: str = "safetensors") -> None:
    """One layout makes two updates and saves; all ranks call this."""
    part = many_ranks.world_of(world, layout_name)
    if part is not None:
        model = many_ranks.make(part)
        optimizer = many_ranks.optimizer_of(model, kind)
        many_ranks.update(model, optimizer)
        many_ranks.save(run, part, model, optimizer, options={"save_format": save_format})
        state = many_ranks.whole_state(model, optimizer)
        if part.is_main:
            torch.save(state, f"{run}/state.pt")
    world.barrier()


def read(world: World, runs: list[str], layout_name: str, *, kind: str = "adamw") -> dict[str, list[str]]:
    """Another layout loads what each run saved; the names of what differs from the state of the writers."""
    part, found = many_ranks.world_of(world, layout_name), {}
    for run in runs if part is not None else []:
        model = many_ranks.make(part, seed=1)
        optimizer = many_ranks.optimizer_of(model, kind)
        loaded = many_ranks.load(f"{run}/{STEP}", part, model, optimizer)
        assert (loaded.step, loaded.changes) == (2, []), loaded
        state = many_ranks.whole_state(model, optimizer)
        found[f"{run} -> {layout_name}"] = many_ranks.differing(torch.load(f"{run}/state.pt"), state)
        many_ranks.update(model, optimizer, 1)  # the optimizer goes on with what it was given
    world.barrier()
    return found


def everything(world: World, folder: str) -> dict[str, list[str]]:
    """All that needs four ranks, in one start of them."""
    for name in WRITERS:
        write(world, f"{folder}/{name}", name)
    for name in ("fsdp3", "dp2_tp2"):
        write(world, f"{folder}/dcp_{name}", name, save_format="torch_save")
    for kind in ("muon", "sgd"):
        write(world, f"{folder}/{kind}", "fsdp2", kind=kind)
    found = {}
    for name, writers in READERS.items():
        found |= read(world, [f"{folder}/{writer}" for writer in writers], name)
    for kind in ("muon", "sgd"):
        found |= read(world, [f"{folder}/{kind}"], "fsdp2", kind=kind)
        found |= read(world, [f"{folder}/{kind}"], "one", kind=kind)
    return found | exchange_with_torch(world, folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, run_ranks(4, everything, str(folder))[0]


def test_any_layout_reads_what_any_other_wrote_to_the_bit(written):
    _, found = written
    assert len(found) == 10 + 4 + 3 + 4 + 2
    assert {name: differing for name, differing in found.items() if differing} == {}


def test_ranks_without_shards_write_the_same_bytes_as_one_process(written, tmp_path):
    folder, _ = written
    model = many_ranks.make(World.single())
    optimizer = many_ranks.optimizer_of(model)
    many_ranks.update(model, optimizer)
    alone = many_ranks.save(tmp_path / "run", World.single(), model, optimizer)
    together = folder / "ddp" / alone.name
    contents = [
        {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for path in (alone, together)
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 8


@pytest.mark.parametrize(("writer", "shards"), [("fsdp4", 4), ("hsdp", 2), ("dp2_tp2", 4), ("tp2", 2)])
def test_every_element_is_stored_once_in_the_file_of_one_rank(written, writer, shards):
    step = written[0] / writer / STEP
    for folder in ("model", "optim"):
        files = sorted((step / folder).glob("*.safetensors"))
        assert len(files) == shards
        stored = [info for file in files for info in read_header(file).tensors.values()]
        total = sum(info.num_bytes for info in stored)
        whole = sum(tensor["bytes"] for tensor in describe_checkpoint(step)["tensors"])
        assert total == whole * (2 if folder == "optim" else 1)
    assert not list(step.parent.glob("*.tmp"))
    assert (step.parent / "LATEST").read_text().startswith(step.name)


def test_what_reads_checkpoints_without_torch_sees_whole_tensors(written):
    descriptions = [describe_checkpoint(written[0] / writer / STEP) for writer in ("ddp", "dp2_tp2")]
    one, many = ({tensor["name"]: tensor for tensor in found["tensors"]} for found in descriptions)
    assert one == many
    assert descriptions[0]["parameters"] == descriptions[1]["parameters"]
    result = verify.verify(written[0] / "dp2_tp2" / STEP)
    assert result["ok"] and result["files"] == 4 + 4 + 5, result


@pytest.mark.parametrize("writer", ["fsdp3", "dp2_tp2"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_shards_of_many_ranks(written, writer):
    expected = many_ranks.make(World.single(), seed=1).state_dict()
    found = {name: torch.zeros_like(value) for name, value in expected.items()}
    source = HuggingFaceStorageReader(str(written[0] / writer / STEP / "model"))
    dcp.load(found, storage_reader=source, no_dist=True)
    state = torch.load(written[0] / writer / "state.pt")
    assert all(torch.equal(value, state[f"model/{name}"]) for name, value in found.items())


def test_dcp_files_are_one_a_rank(written):
    manifest = layout.read_step_manifest(written[0] / "dcp_dp2_tp2" / STEP)
    assert [r["name"] for r in manifest["files"] if r["name"].startswith("model/")] == [
        "model/.metadata",
        *(f"model/__{rank}_0.distcp" for rank in range(4)),
        "model/config.json",
    ]
    assert manifest["tensors"]["model"]["wpe.weight"] == ["F32", [17, 24]]


class Attack:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_crafted_pickle_in_any_file_of_many_ranks_does_not_run(written, tmp_path, kind):
    """With hashes that fit: an attacker writes the manifest too."""
    payload = io.BytesIO()
    (pickle.dump if kind == "pickle" else torch.save)(Attack(tmp_path / "canary"), payload)
    step = tmp_path / STEP
    shutil.copytree(written[0] / "dcp_dp2_tp2" / STEP, step)
    model = many_ranks.make(World.single())
    optimizer = many_ranks.optimizer_of(model)
    manifest = layout.read_step_manifest(step)
    for record in manifest["files"]:
        good = (step / record["name"]).read_bytes()
        (step / record["name"]).write_bytes(payload.getvalue())
        changed = {"bytes": len(payload.getvalue()), "xxh3": files.hash_bytes(payload.getvalue())}
        forged = [{**other, **changed} if other is record else other for other in manifest["files"]]
        files.write_manifest(step / layout.MANIFEST, {**manifest, "files": forged})
        with contextlib.suppress(CheckpointError):
            many_ranks.load(step, World.single(), model, optimizer)
            assert record["name"] in ("config.yaml", "model/config.json"), "nothing else may be ignored"
        assert not (tmp_path / "canary").exists(), record["name"]
        (step / record["name"]).write_bytes(good)


def exchange_with_torch(world: World, folder: str) -> dict[str, list[str]]:
    """torch's own distributed checkpoint reads our .distcp files, and we read its."""
    part = many_ranks.world_of(world, "dp2_tp2")
    model = many_ranks.make(part)
    expected = {name: value.full_tensor() for name, value in model.state_dict().items()}
    ours = many_ranks.save(f"{folder}/ours", part, model, None, options={"save_format": "torch_save"})
    state = many_ranks.make(part, seed=1).state_dict()
    dcp.load(state, checkpoint_id=str(ours / "model"))
    by_torch = many_ranks.differing(expected, {name: value.full_tensor() for name, value in state.items()})

    dcp.save(model.state_dict(), checkpoint_id=f"{folder}/theirs/model")
    if world.is_main:
        writer = StepWriter(Path(f"{folder}/theirs"), join=True)
        writer.adopt("model")
        writer.finish({**many_ranks.MANIFEST, "save_format": "torch_save"})
    world.barrier()
    targets = dict(many_ranks.make(part, seed=1).state_dict())
    formats.load_tensors(StepReader(Path(f"{folder}/theirs")), "model", targets, world=part)
    found = {name: value.full_tensor() for name, value in targets.items()}
    return {"ours by torch": by_torch, "torch's by us": many_ranks.differing(expected, found)}
