"""Step folders: names, what counts as complete, pointers, the lock."""

from __future__ import annotations

import pytest
from tests.checkpoint.steps import damage, make_step, manifest_of

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.errors import AutomodelError, CheckpointError


def test_names_sort_like_steps_and_only_real_ones_count():
    assert layout.step_name(1000) == "step_00001000"
    assert layout.step_of("step_00001000") == 1000
    assert layout.step_of(layout.step_name(123456789)) == 123456789
    for name in (
        "step_1000",
        "step_00001000.tmp",
        "step_00001000.deleted",
        "step_x",
        "LATEST",
        "step_000001000",
    ):
        assert layout.step_of(name) is None, name


def test_steps_are_listed_when_complete(tmp_path):
    make_step(tmp_path, 20)
    make_step(tmp_path, 3)
    make_step(tmp_path, 40, complete=False)
    make_step(tmp_path, 50, suffix=".tmp")
    assert layout.list_steps(tmp_path) == [3, 20]
    assert layout.list_steps(tmp_path, complete=False) == [3, 20, 40]
    assert layout.list_steps(tmp_path / "nowhere") == []


def test_resolve_finds_by_pointer_number_name_path_and_run(tmp_path):
    run = tmp_path / "run"
    one, two = make_step(run, 1), make_step(run, 2)
    layout.write_pointer(run, "LATEST", two.name)
    layout.write_pointer(run, "BEST", one.name)
    assert layout.resolve(run) == layout.latest(run) == two
    assert layout.resolve(run, "BEST") == one
    assert layout.resolve(tmp_path, str(run / "BEST")) == layout.followed(run / "BEST") == one
    assert layout.followed(run) == run
    assert layout.resolve(run, "1") == layout.resolve(run, one.name) == one
    assert layout.resolve(tmp_path / "other", str(one)) == one
    assert layout.resolve(tmp_path / "other", str(run)) == two


def test_a_pointer_written_by_hand_is_believed(tmp_path):
    one = make_step(tmp_path, 1)
    make_step(tmp_path, 2)
    (tmp_path / "LATEST").write_text("step_00000001\n")
    assert layout.resolve(tmp_path) == one


@pytest.mark.parametrize("complete", [None, False])
def test_latest_that_names_a_missing_or_incomplete_step_falls_back_with_a_note(tmp_path, complete):
    one = make_step(tmp_path, 1)
    if complete is not None:
        make_step(tmp_path, 2, complete=complete)
    layout.write_pointer(tmp_path, "LATEST", "step_00000002")
    lines: list[str] = []
    assert layout.resolve(tmp_path, say=lines.append) == one
    assert len(lines) == 1 and "step_00000002" in lines[0] and "step_00000001" in lines[0]


def test_without_a_pointer_the_newest_good_step_is_taken(tmp_path):
    one = make_step(tmp_path, 1)
    damage(make_step(tmp_path, 2) / layout.MANIFEST)
    assert layout.latest(tmp_path) == one
    assert layout.latest(tmp_path / "empty") is None


def test_what_cannot_be_resolved_says_what_there_is(tmp_path):
    make_step(tmp_path, 1)
    with pytest.raises(CheckpointError, match="step_00000001"):
        layout.resolve(tmp_path, "step_00000009")
    with pytest.raises(CheckpointError, match="no BEST"):
        layout.resolve(tmp_path, "BEST")
    layout.write_pointer(tmp_path, "BEST", "step_00000009")
    with pytest.raises(CheckpointError, match="BEST names step_00000009"):
        layout.resolve(tmp_path, "BEST")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        layout.resolve(tmp_path / "empty")


def test_a_pointer_of_another_program_is_an_error(tmp_path):
    (tmp_path / "epoch_0_step_9").mkdir()
    (tmp_path / "LATEST").symlink_to("epoch_0_step_9")
    with pytest.raises(CheckpointError, match="LATEST is a folder"):
        layout.latest(tmp_path)


def test_every_flipped_bit_of_a_pointer_is_found(tmp_path):
    for step in (1, 2, 3):
        make_step(tmp_path, step)
    layout.write_pointer(tmp_path, "LATEST", "step_00000003")
    good = (tmp_path / "LATEST").read_bytes()
    for index in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[index] ^= 1 << bit
            (tmp_path / "LATEST").write_bytes(bad)
            with pytest.raises(CheckpointError, match=r"LATEST is damaged[\s\S]*step_00000003"):
                layout.resolve(tmp_path)


def test_every_flipped_byte_of_a_manifest_is_found_and_the_way_back_named(tmp_path):
    make_step(tmp_path, 1)
    path = make_step(tmp_path, 2) / layout.MANIFEST
    good = path.read_bytes()
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"manifest.json[\s\S]*restore_from step_00000001"):
            layout.read_step_manifest(path.parent)


def test_many_damaged_steps_do_not_take_long(tmp_path):
    for step in range(1, 40):
        damage(make_step(tmp_path, step) / layout.MANIFEST)
    with pytest.raises(CheckpointError, match="no older complete"):
        layout.read_step_manifest(layout.step_folder(tmp_path, 39))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "model/../../x", "a\\b", "", "x\x1b[2J"])
def test_a_manifest_that_points_outside_is_refused(tmp_path, name):
    folder = make_step(tmp_path, 1)
    record = {"name": name, "bytes": 0, "xxh3": files.hash_bytes(b"")}
    files.write_manifest(folder / layout.MANIFEST, manifest_of(1, record))
    with pytest.raises(CheckpointError, match=r"a plain name below this folder|without control characters"):
        layout.read_step_manifest(folder)


def test_problem_sees_missing_and_cut_files(tmp_path):
    folder = make_step(tmp_path, 1)
    assert layout.find_problem(folder) is None
    (folder / "state.json").write_text("{")
    assert "1 bytes" in (layout.find_problem(folder) or "")
    (folder / "state.json").unlink()
    assert "state.json is missing" in (layout.find_problem(folder) or "")


def test_a_second_writer_is_refused_and_the_lock_goes_with_its_holder(tmp_path):
    run = tmp_path / "run"
    with layout.run_lock(run), pytest.raises(AutomodelError, match="another process"), layout.run_lock(run):
        pass
    with layout.run_lock(tmp_path / "run"):
        pass


def test_an_odd_loss_and_any_kernel_of_the_optimizer_are_read(tmp_path):
    folder = make_step(tmp_path, 1)
    record = {"name": "state.json", "bytes": 2, "xxh3": files.hash_bytes(b"{}")}
    odd = {"metrics": {"loss": float("nan"), "val_loss": {"default": float("inf")}}}
    for kernel in ("fused", "foreach", "loop", "own"):
        facts = {"fast_path": {"optimizer": kernel}}
        files.write_manifest(folder / layout.MANIFEST, {**manifest_of(1, record), **odd, "facts": facts})
        assert layout.read_step_manifest(folder)["facts"] == facts
