"""Averages of checkpoints: the mean of a loop by hand, whatever the files, and nothing half-made."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoint.steps import save_tensors

from automodel_cli import files
from automodel_cli.checkpoint import average, layout
from automodel_cli.checkpoint.average import Part, write_average
from automodel_cli.checkpoint.inspect import verify
from automodel_cli.checkpoint.load_step import load_step
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

SHARD = "model/shard-00001-model-00001-of-00001.safetensors"


def made_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / SHARD)


def in_two_shards(folder) -> None:
    """Store the same step as two ranks would have: some rows of each tensor in either file."""
    reader, tensors = StepReader(folder), made_of(folder)
    manifest = {key: value for key, value in reader.manifest.items() if key not in ("files", "self")}
    aside = folder.with_name("aside")
    folder.rename(aside)
    writer = StepWriter(folder)
    cuts = {name: one.shape[0] // 3 for name, one in tensors.items()}
    save_tensors({name: one[: cuts[name]] for name, one in tensors.items()}, writer, rank=0)
    offsets = {name: (cuts[name],) + (0,) * (one.dim() - 1) for name, one in tensors.items()}
    save_tensors({name: one[cuts[name] :] for name, one in tensors.items()}, writer, rank=1, offsets=offsets)
    for name in reader.names():
        if not name.startswith("model/shard"):
            writer.write_bytes(name, (aside / name).read_bytes())
    writer.finish(manifest)
    shutil.rmtree(aside)


@pytest.fixture
def three(tmp_path, tiny, save):
    """Steps of one run, the second by torch_save; what they hold, and their folders."""
    models = [tiny(seed=seed) for seed in range(3)]
    formats = ("safetensors", "torch_save", "safetensors")
    folders = [
        save(tmp_path / "run", 10 * n, model, save_format=formats[n - 1]) for n, model in enumerate(models, start=1)
    ]
    in_two_shards(folders[2])
    return folders, [model.state_dict() for model in models]


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 0.5, 2)])
def test_the_mean_is_that_of_a_loop_by_hand_and_the_result_is_a_checkpoint(tmp_path, three, tiny, weights):
    folders, states = three
    step = write_average(list(map(Part.open, folders, weights)), tmp_path / "out")
    assert step == tmp_path / "out" / "step_00000030" and layout.checkpoint_at(tmp_path / "out") == step
    stored = made_of(step)
    assert len(stored) == 28 and "lm_head.weight" not in stored  # a tied head is stored once
    for name, found in stored.items():
        want = sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True))
        assert torch.equal(found, (want / sum(weights)).float()), name
    manifest = layout.read_step_manifest(step)
    parts = [(part["step"], part["weight"], part["fingerprint"]) for part in manifest["average"]]
    assert parts == [
        (10 * n, weight, layout.read_step_manifest(folder)["self"])
        for n, (weight, folder) in enumerate(zip(weights, folders, strict=True), start=1)
    ]
    assert verify.verify(step)["ok"]
    model = tiny(seed=5)
    load_step(step, World.single(), model=model)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in stored.items())
    with pytest.raises(CheckpointError, match="is an average of checkpoints: it holds no optimizer state") as refused:
        load_step(step, World.single(), model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert "init_from" in refused.value.hint


def test_the_same_checkpoints_give_the_same_bytes(tmp_path, three):
    folders, _ = three
    one, two = (write_average([Part.open(f, 1) for f in folders], tmp_path / name) for name in ("one", "two"))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) == 6 and all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_the_type_of_the_weights_stays_and_what_is_no_parameter_is_the_newest_ones(tmp_path, tiny, save):
    models = [tiny(seed=seed).to(torch.bfloat16) for seed in range(2)]
    for number, model in enumerate(models, start=1):
        model.register_buffer("masked_out", torch.full((3,), -torch.inf))
        model.register_buffer("calls", torch.tensor(number))
    folders = [save(tmp_path / "run", number, model) for number, model in enumerate(models, start=1)]
    stored = made_of(write_average([Part.open(folder, 1) for folder in folders[::-1]], tmp_path / "out"))
    assert stored["calls"] == 2 and stored["masked_out"].isinf().all()
    name = "h.0.mlp.c_fc.weight"
    first, second = (model.state_dict()[name].double() for model in models)
    assert stored[name].dtype == torch.bfloat16
    assert torch.equal(stored[name], ((first + second) / 2).to(torch.bfloat16))


def test_weights_that_are_no_numbers_and_other_tensors_are_refused_and_nothing_is_left(tmp_path, tiny, save, flip):
    good, bad, longer = tiny(), tiny(seed=1), tiny(seed=2)
    with torch.no_grad():
        bad.h[1].mlp.c_fc.weight[0, 3] = torch.nan
        longer.wpe.weight = torch.nn.Parameter(torch.zeros(17, 24))
    folders = {name: save(tmp_path / name, 3, model) for name, model in (("a", good), ("b", bad), ("c", longer))}
    out = tmp_path / "out"
    cases = (
        ("b", r"b/step_00000003 holds weights that are no numbers: .*'h.1.mlp.c_fc.weight'"),
        ("c", r"differ in 'wpe.weight': F32 \[16, 24\], F32 \[17, 24\]"),
    )
    for other, what in cases:
        with pytest.raises(CheckpointError, match=what):
            write_average([Part.open(folders[one], 1) for one in ("a", other)], out)
    flip(folders["c"] / SHARD)
    with pytest.raises(CheckpointError, match="damaged"):
        Part.open(folders["c"], 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_kill_leaves_no_folder_and_the_next_run_clears_what_it_left(tmp_path, three, monkeypatch):
    folders, out = three[0], tmp_path / "out"
    parts = [Part.open(folder, 1) for folder in folders]

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(average.layout, "write_pointer", killed)  # the last thing before it gets its name
        patched.setattr(average, "new_folder", without_cleaning)
        write_average(parts, out)
    assert not out.exists() and files.temporary_of(out).is_dir()
    write_average(parts, out)
    assert verify.verify(out / "step_00000030")["ok"] and not files.temporary_of(out).exists()


class Killed(BaseException):
    """In the place of a SIGKILL, which no handler sees."""


class without_cleaning:
    """``new_folder`` as a SIGKILL leaves it."""

    def __init__(self, folder):
        self.writer = StepWriter(files.temporary_of(folder))

    def __enter__(self):
        return self.writer

    def __exit__(self, *error):
        return False
