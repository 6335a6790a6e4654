"""Saving and loading a run: bitwise round trips, damage found by name, kills at every instant, retention."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.storage.formats import SAVE_FORMATS
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.errors import CheckpointError


class TinyModel(nn.Module):
    """An embedding tied to its head, a matrix, a norm, a buffer and a bfloat16 parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 6)
        self.proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 16, bias=False)
        self.head.weight = self.embed.weight
        self.gate = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
        self.register_buffer("steps_seen", torch.tensor(3, dtype=torch.int64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.proj(self.embed(ids)) * self.gate.float()))

    def model_config(self) -> dict:
        return {"family": "tiny", "vocab_size": 16}


def make_model(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel()


def make_muon(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Muon([parameter for parameter in model.parameters() if parameter.dim() == 2], lr=0.01)


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95)),
    "adamw_fused": lambda model: torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.dtype == torch.float32], fused=True
    ),
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), amsgrad=True),
    "sgd_momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "sgd_plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "muon": make_muon,
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
    "nadam": lambda model: torch.optim.NAdam(model.parameters()),
    "rprop": lambda model: torch.optim.Rprop(model.parameters()),
    "asgd": lambda model: torch.optim.ASGD(model.parameters()),
    "lbfgs": lambda model: torch.optim.LBFGS(
        [parameter for parameter in model.parameters() if parameter.dtype == torch.float32], max_iter=2
    ),
    "tensor_lr": lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3), foreach=False),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, seed: int = 0) -> list[float]:
    """A few updates on random ids; the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 16, (2, 5), generator=generator)

        def closure(ids: torch.Tensor = ids) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def save(checkpointer: Checkpointer, step: int, model: nn.Module, optimizer=None, **changes) -> Path:
    arguments = {
        "state": {"tokens_seen": 10 * step},
        "loader_state": {"plan_hash": "abc", "samples_consumed": 4 * step},
        "config_yaml": "seed: 1\n",
        "facts": {
            "model": {"vocab_size": 16},
            "fast_path": {"compile": False},
            "shape": (1, 2),
            "n": {10: 1, 9: 2},
        },
        "metrics": {"val_loss": 1.0 / step},
    }
    return checkpointer.save(step, model=model, optimizer=optimizer, **{**arguments, **changes})


def same_state(a, b) -> bool:
    """Whether two optimizer state dicts are equal to the bit, types and devices included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_state, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    ("kind", "save_format"), [*((kind, "safetensors") for kind in OPTIMIZERS), ("adamw", "torch_save")]
)
def test_round_trip_is_bitwise_and_training_goes_on_as_if_undisturbed(tmp_path, kind, save_format):
    model = make_model()
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, 3)
    path = save(Checkpointer(tmp_path, save_format=save_format), 3, model, optimizer)

    other = make_model(seed=1)
    other_optimizer = OPTIMIZERS[kind](other)
    loaded = Checkpointer(tmp_path).load(path, model=other, optimizer=other_optimizer)

    assert same_state(dict(model.state_dict()), dict(other.state_dict()))
    assert same_state(optimizer.state_dict(), other_optimizer.state_dict())
    assert other.head.weight is other.embed.weight
    assert (loaded.step, loaded.state, loaded.changes) == (3, {"tokens_seen": 30}, [])
    assert loaded.loader_state == {"plan_hash": "abc", "samples_consumed": 12}
    assert loaded.metrics == {"val_loss": 1 / 3}
    assert loaded.facts["shape"] == [1, 2] and loaded.facts["n"] == {"10": 1, "9": 2}
    assert train(model, optimizer, 3, seed=9) == train(other, other_optimizer, 3, seed=9)
    assert same_state(dict(model.state_dict()), dict(other.state_dict()))


# ------------------------------------------------------------------------------------------ what is on disk


def test_the_folder_holds_what_the_design_says(tmp_path):
    model = make_model()
    tokenizer = tmp_path / "tokenizer_source"
    (tokenizer / "sub").mkdir(parents=True)
    (tokenizer / "sub" / "vocab.json").write_text("{}")  # no file of a tokenizer: it stays behind
    (tokenizer / "tokenizer.json").write_text("{}")
    path = save(Checkpointer(tmp_path), 1000, model, OPTIMIZERS["adamw"](model), tokenizer_folder=tokenizer)
    assert path.name == "step_00001000"
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert found == {
        "model/shard-00001-model-00001-of-00001.safetensors",
        "model/config.json",
        "optim/optimizer.json",
        "state.json",
        "loader.json",
        "config.yaml",
        "tokenizer/tokenizer.json",
        "manifest.json",
    }
    assert (tmp_path / "LATEST").read_text().startswith("step_00001000 ")
    assert not (tmp_path / "BEST").exists()
    manifest = layout.read_step_manifest(path)
    assert {record["name"] for record in manifest["files"]} == found - {"manifest.json"}
    assert manifest["tied"] == {"head.weight": "embed.weight"}
    assert json.loads((path / "state.json").read_text())["fast_path"] == {"compile": 0}


@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_equal_states_give_equal_bytes(tmp_path, save_format):
    folders = []
    for name in ("a", "b"):
        model = make_model()
        optimizer = OPTIMIZERS["adamw"](model)
        train(model, optimizer, 2)
        folders.append(save(Checkpointer(tmp_path / name, save_format=save_format), 2, model, optimizer))
    files = [{f.relative_to(d): f.read_bytes() for f in d.rglob("*") if f.is_file()} for d in folders]
    assert files[0] == files[1] and len(files[0]) >= 8


def test_metrics_that_are_not_numbers_do_not_spoil_the_manifest(tmp_path):
    path = save(Checkpointer(tmp_path), 1, make_model(), metrics={"val_loss": float("nan")})
    assert layout.read_step_manifest(path)["metrics"] == {"val_loss": None}


# ------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_a_flipped_byte_in_any_file_is_found_and_the_file_named(tmp_path, save_format):
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model)
    train(model, optimizer, 2)
    checkpointer = Checkpointer(tmp_path, save_format=save_format)
    tokenizer = tmp_path / "tokenizer_source"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text("{}")
    save(checkpointer, 1, model, optimizer)
    path = save(checkpointer, 2, model, optimizer, tokenizer_folder=tokenizer)
    generator = torch.Generator().manual_seed(0)
    checked = 0
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        good = file.read_bytes()
        samples = torch.randint(0, len(good), (10,), generator=generator).tolist()
        for index in {0, 9, len(good) // 3, len(good) - 1, *samples}:
            if index >= len(good):
                continue
            bad = bytearray(good)
            bad[index] ^= 1 << (index % 8)
            file.write_bytes(bad)
            with pytest.raises(CheckpointError) as caught:
                checkpointer.load(path, model=model, optimizer=optimizer)
            assert file.name in caught.value.message, (file, index, caught.value)
            assert "step_00000001" in caught.value.hint
            checked += 1
        file.write_bytes(good)
    assert checked > 80
    checkpointer.load(path, model=model, optimizer=optimizer)


@pytest.mark.parametrize("change", ["cut", "longer", "missing", "swapped"])
def test_files_that_are_cut_missing_or_swapped_are_named(tmp_path, change):
    model = make_model()
    checkpointer = Checkpointer(tmp_path)
    optimizer = OPTIMIZERS["adamw"](model)
    train(model, optimizer, 1)
    path = save(checkpointer, 1, model, optimizer)
    shard = path / "model" / "shard-00001-model-00001-of-00001.safetensors"
    if change == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif change == "longer":
        shard.write_bytes(shard.read_bytes() + b"x")
    elif change == "missing":
        shard.unlink()
    else:
        other = make_model(seed=5)
        foreign = save(Checkpointer(tmp_path / "other"), 1, other)
        shard.write_bytes((foreign / "model" / shard.name).read_bytes())
    with pytest.raises(CheckpointError, match="shard-00001"):
        checkpointer.load(path, model=model, optimizer=optimizer)


def test_weights_alone_leave_the_optimizer_files_unread(tmp_path):
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model)
    train(model, optimizer, 1)
    path = save(Checkpointer(tmp_path), 1, model, optimizer)
    (path / "optim" / "optimizer.json").write_text("damaged")
    other = make_model(seed=3)
    assert Checkpointer(tmp_path).load(path, model=other).step == 1
    assert same_state(dict(model.state_dict()), dict(other.state_dict()))


class Attack:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("save_format", SAVE_FORMATS)
@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_crafted_pickle_in_any_file_does_not_run(tmp_path, save_format, kind):
    """With hashes that fit: an attacker writes the manifest too."""
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model)
    train(model, optimizer, 1)
    canary = tmp_path / "canary"
    payload = io.BytesIO()
    (pickle.dump if kind == "pickle" else torch.save)(Attack(canary), payload)
    path = save(Checkpointer(tmp_path / "run", save_format=save_format), 1, model, optimizer)
    manifest = layout.read_step_manifest(path)
    for record in manifest["files"]:
        good = (path / record["name"]).read_bytes()
        (path / record["name"]).write_bytes(payload.getvalue())
        changed = {"bytes": len(payload.getvalue()), "xxh3": files.hash_bytes(payload.getvalue())}
        forged = [{**other, **changed} if other is record else other for other in manifest["files"]]
        files.write_manifest(path / layout.MANIFEST, {**manifest, "files": forged})
        with contextlib.suppress(CheckpointError):
            Checkpointer(tmp_path / "run").load(path, model=model, optimizer=optimizer)
            assert record["name"] in ("config.yaml", "model/config.json"), "nothing else may be ignored"
        assert not canary.exists(), record["name"]
        (path / record["name"]).write_bytes(good)


# ------------------------------------------------------------------------------------------ what does not fit


def test_another_model_is_refused_with_the_difference(tmp_path):
    path = save(Checkpointer(tmp_path), 1, make_model())
    wider = make_model()
    wider.proj = nn.Linear(6, 7)
    with pytest.raises(CheckpointError, match=r"proj\.\w+' is stored as \[6.*this run has \[7"):
        Checkpointer(tmp_path).load(path, model=wider)
    bigger = make_model()
    bigger.extra = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"lacks 2 of 9 tensors: extra\.bias, extra\.weight"):
        Checkpointer(tmp_path).load(path, model=bigger)
    smaller = make_model()
    del smaller.norm
    with pytest.raises(CheckpointError, match=r"holds 2 that this run has not: norm\.bias"):
        Checkpointer(tmp_path).load(path, model=smaller)


def test_weights_that_are_tied_now_but_were_not_are_refused_and_the_reverse_is_filled(tmp_path):
    untied = make_model()
    untied.head.weight = nn.Parameter(torch.zeros(16, 6))
    path = save(Checkpointer(tmp_path / "a"), 1, untied)
    with pytest.raises(CheckpointError, match="one tensor in this run"):
        Checkpointer(tmp_path / "a").load(path, model=make_model())
    tied = make_model()
    path = save(Checkpointer(tmp_path / "b"), 1, tied)
    Checkpointer(tmp_path / "b").load(path, model=untied)
    assert torch.equal(untied.head.weight, tied.embed.weight)
    assert torch.equal(untied.embed.weight, tied.embed.weight)


def test_another_precision_is_refused_on_resume_and_cast_for_evaluation(tmp_path):
    model = make_model()
    path = save(Checkpointer(tmp_path), 1, model, OPTIMIZERS["sgd_plain"](model))
    half = make_model(seed=1).to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"stored as torch\.float32, this run has torch\.bfloat16"):
        Checkpointer(tmp_path).load(path, model=half, optimizer=OPTIMIZERS["sgd_plain"](half))
    Checkpointer(tmp_path).load(path, model=half)
    assert torch.equal(half.proj.weight, model.proj.weight.to(torch.bfloat16))


def test_a_compiled_model_has_the_same_names(tmp_path):
    model = make_model()
    path = save(Checkpointer(tmp_path), 1, torch.compile(model))
    names = [name for name in StepReader(path).names("model") if name.endswith(".safetensors")]
    assert names
    other = make_model(seed=1)
    Checkpointer(tmp_path).load(path, model=other)
    assert same_state(dict(model.state_dict()), dict(other.state_dict()))


# ------------------------------------------------------------------------------------ kills, disk errors


def undisturbed(folder: Path) -> tuple[dict[Path, bytes], str]:
    """All files of the latest checkpoint, once it has been loaded."""
    path = layout.resolve(folder)
    model = make_model(seed=7)
    Checkpointer(folder).load(path, model=model, optimizer=OPTIMIZERS["adamw"](model))
    return {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}, path.stem


def count_calls(run: Path, work) -> int:
    """How many durable operations (fsync, replace, rmtree) ``work`` performs."""
    calls = [0]
    with patched(lambda: calls.__setitem__(0, calls[0] + 1)):
        work(run)
    return calls[0]


class patched:
    """Let ``hook`` run before every fsync, rename and removal."""

    def __init__(self, hook) -> None:
        self.hook = hook

    def __enter__(self) -> None:
        self.originals = (os.fsync, os.replace, os.unlink, os.rmdir, Path.replace)

        def wrap(original):
            def wrapped(*arguments, **options):
                self.hook()
                return original(*arguments, **options)

            return wrapped

        os.fsync, os.replace, os.unlink, os.rmdir = map(wrap, self.originals[:4])
        Path.replace = wrap(self.originals[4])

    def __exit__(self, *_) -> None:
        os.fsync, os.replace, os.unlink, os.rmdir, Path.replace = self.originals


def killed_at(call: int, run: Path, work) -> bool:
    """Run ``work(run)`` in a forked process that dies without a word at the given call; whether it did."""
    child = os.fork()
    if child == 0:
        left = [call]

        def die() -> None:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

        try:
            with patched(die):
                work(run)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def prepare(run: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Steps 1 to 3 of a run; 3 is LATEST, 1 is BEST."""
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model)
    for step in (1, 2, 3):
        train(model, optimizer, 1, seed=step)
        save(Checkpointer(run), step, model, optimizer, is_best=step == 1)
    return model, optimizer


@pytest.mark.parametrize("case", ["new step", "over an existing step"])
@pytest.mark.parametrize("points", [6, pytest.param(None, marks=pytest.mark.torture)], ids=["some", "all"])
def test_a_save_killed_at_a_durable_operation_leaves_a_sound_latest(tmp_path, one_thread, case, points):
    model, optimizer = prepare(tmp_path / "start")
    step = 4 if case == "new step" else 3

    def work(run: Path) -> None:
        checkpointer = Checkpointer(run, keep_last=1)
        checkpointer.retention.protected = set()
        save(checkpointer, step, model, optimizer, is_best=True, state={"again": True})

    def fresh(name: str) -> Path:
        run = tmp_path / name
        prepare(run)
        return run

    before = undisturbed(tmp_path / "start")
    total = count_calls(fresh("count"), work)
    after = undisturbed(tmp_path / "count")
    assert before != after and total > 15
    seen = set()
    for call in range(1, total + 1) if points is None else {1 + total * i // points for i in range(points)}:
        run = fresh(f"run{call}")
        assert killed_at(call, run, work)
        found = undisturbed(run)
        assert found in (before, after), call
        assert layout.resolve(run, "BEST").is_dir()
        seen.add(found == after)
        work(run)  # the same save again, over whatever was left
        assert undisturbed(run) == after
        assert not [path.name for path in run.iterdir() if path.suffix]
    assert seen == {True, False}


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rest(tmp_path, monkeypatch):
    model, optimizer = prepare(tmp_path)
    before = undisturbed(tmp_path)
    real, left = os.fsync, [2]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step_00000004: .*No space left[\s\S]*step_00000003 is intact"):
        save(Checkpointer(tmp_path), 4, model, optimizer)
    monkeypatch.undo()
    assert undisturbed(tmp_path) == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_consolidation_that_fails_does_not_cost_the_checkpoint(tmp_path, monkeypatch):
    def fail(model, weights, writer, place, *rest, **options):
        writer.write_bytes(f"{place}half", b"1")
        raise ValueError("no such converter")

    monkeypatch.setattr(hf_export, "has_format", lambda model: True)
    monkeypatch.setattr(hf_export, "write", fail)
    lines: list[str] = []
    path = save(Checkpointer(tmp_path, say=lines.append), 1, make_model(), consolidate=True)
    assert layout.find_problem(path) is None and not (path / "hf").exists()
    assert "no such converter" in lines[0]


# ------------------------------------------------------------------------------------------ retention


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="keep_last is 0"):
        Checkpointer(tmp_path, keep_last=0)


def test_retention_keeps_the_newest_the_milestones_and_the_best(tmp_path):
    checkpointer, model = Checkpointer(tmp_path, keep_last=2, keep_every=4), make_model()
    for step in range(1, 10):
        save(checkpointer, step, model, is_best=step == 2)
    assert layout.list_steps(tmp_path) == [2, 4, 8, 9]


def test_retention_never_touches_what_is_newer_than_what_was_loaded(tmp_path):
    model = make_model()
    for step in (1, 2, 3, 4, 5):
        save(Checkpointer(tmp_path), step, model)
    again = Checkpointer(tmp_path, keep_last=1)
    again.load(layout.resolve(tmp_path, "2"), model=model)
    save(again, 3, model, state={"course": "new"})
    assert layout.list_steps(tmp_path) == [2, 3, 4, 5]  # 2 stays until 3 is proven
    assert layout.resolve(tmp_path).name == "step_00000003"
    save(again, 6, model, proven=True)
    assert layout.list_steps(tmp_path) == [4, 5, 6]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_newest_proven_checkpoint_outlives_the_next_one(tmp_path, is_async):
    checkpointer, model = Checkpointer(tmp_path, keep_last=1, is_async=is_async), make_model()
    for step in (1, 2, 3):
        save(checkpointer, step, model)
        checkpointer.wait()
        checkpointer.confirm(step)  # the loss of update `step` came before the checkpoint: it proves nothing
    assert layout.list_steps(tmp_path) == [2, 3]
    assert checkpointer.retention.proven() == tmp_path / "step_00000002"
    checkpointer.confirm(4)
    assert checkpointer.retention.proven() == tmp_path / "step_00000003"
    save(checkpointer, 5, model, proven=True)
    checkpointer.wait()
    assert layout.list_steps(tmp_path) == [5] and checkpointer.retention.proven() == tmp_path / "step_00000005"


def test_stepping_back_lets_latest_name_the_proven_checkpoint(tmp_path):
    first, model = Checkpointer(tmp_path), make_model()
    save(first, 1, model)
    save(first, 2, model)
    assert first.step_back() == tmp_path / "step_00000001"
    assert layout.resolve(tmp_path).name == "step_00000001"
    layout.write_pointer(tmp_path, "LATEST", "step_00000002")
    again = Checkpointer(tmp_path)
    again.load(layout.resolve(tmp_path), model=model)
    assert again.step_back() == tmp_path / "step_00000001"  # 2 was loaded, and no finite loss has followed
    again.load(layout.resolve(tmp_path, "2"), model=model)
    again.confirm(3)
    assert again.step_back() == tmp_path / "step_00000002" == layout.resolve(tmp_path)
    alone = Checkpointer(tmp_path / "other")
    save(alone, 1, model)
    assert alone.step_back() is None and layout.resolve(tmp_path / "other").name == "step_00000001"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_weights_that_are_no_numbers_are_not_loaded(tmp_path, value, save_format):
    checkpointer, model = Checkpointer(tmp_path, save_format=save_format), make_model()
    save(checkpointer, 1, model)
    with torch.no_grad():
        model.proj.weight[2, 3] = value
    bad = save(checkpointer, 2, model)
    with pytest.raises(CheckpointError, match=r"proj\.weight") as caught:
        checkpointer.load(bad, model=make_model())
    assert "restore_from step_00000001" in caught.value.hint and "--verify" in caught.value.hint


def test_best_goes_when_the_step_it_names_is_replaced_by_a_worse_one(tmp_path):
    model = make_model()
    lines: list[str] = []
    save(Checkpointer(tmp_path), 1, model)
    save(Checkpointer(tmp_path), 2, model, is_best=True)
    again = Checkpointer(tmp_path, say=lines.append)
    again.load(layout.resolve(tmp_path, "1"), model=model)
    save(again, 2, model)
    assert not (tmp_path / "BEST").exists() and "BEST" in lines[0]
