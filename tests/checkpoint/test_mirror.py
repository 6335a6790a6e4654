"""A mirror at a URL: what it holds at every instant, what goes, and what is made of it on an empty machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from tests.checkpoint.steps import damage, make_step

from automodel_cli.checkpoint import from_mirror, layout
from automodel_cli.checkpoint.mirror import Mirror
from automodel_cli.errors import CheckpointError


class Both:
    """A run folder, its mirror in another folder, and what was said."""

    def __init__(self, folder: Path, **keep: int | None) -> None:
        self.run, self.there = folder / "run", folder / "there"
        self.url, self.said = f"file://{self.there}", []
        self.run.mkdir(parents=True, exist_ok=True)
        self.mirror = Mirror(
            self.run, self.url, say=self.said.append, **{"keep_last": None, "keep_every": None, **keep}
        )

    def save(self, step: int, *, best: bool = False) -> None:
        folder = make_step(self.run, step)
        with (self.run / "metrics.jsonl").open("a") as log:
            log.write(f'{{"kind": "train", "step": {step}}}\n')
        layout.write_pointer(self.run, "LATEST", folder.name)
        if best:
            layout.write_pointer(self.run, "BEST", folder.name)
        self.mirror.add(folder)

    def wait(self) -> None:
        waiting = self.mirror.finish(lambda: False)
        while next(waiting):
            time.sleep(0.005)

    def steps(self) -> list[int]:
        return layout.list_steps(self.there)

    def restored(self, folder: Path) -> Path | None:
        folder.mkdir()
        return from_mirror.restore(folder, self.url, say=self.said.append)


def test_an_empty_folder_becomes_what_the_run_was(tmp_path: Path) -> None:
    both = Both(tmp_path)
    (both.run / "config.yaml").write_text("a: 1\n")
    both.save(10, best=True)
    both.save(20)
    both.wait()
    with (both.run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 25}\n')
    both.wait()
    assert not list(both.run.glob("*.mirror*"))
    found = both.restored(tmp_path / "again")
    assert found == tmp_path / "again" / "step_00000020"
    names = ["BEST", "LATEST", "config.yaml", "metrics.jsonl", "step_00000010", "step_00000020"]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for path in (tmp_path / "again").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (both.run / path.relative_to(tmp_path / "again")).read_bytes()


def test_what_is_kept_there_is_what_would_be_kept_here(tmp_path: Path) -> None:
    both = Both(tmp_path, keep_last=2, keep_every=20)
    for step in range(5, 55, 5):
        both.save(step, best=step == 15)
        both.wait()
    assert both.steps() == [15, 20, 40, 45, 50]
    assert not list(both.there.glob("step_00000010/*"))


def test_a_damaged_or_half_copied_step_is_left_for_the_one_before(tmp_path: Path) -> None:
    both = Both(tmp_path)
    for step in (10, 20, 30, 40):
        both.save(step)
        both.wait()
    (both.there / "step_00000040" / "manifest.json").unlink()
    damage(both.there / "step_00000030" / "state.json")
    assert both.restored(tmp_path / "again") == tmp_path / "again" / "step_00000020"
    assert any("step_00000030" in line and "not what its manifest says" in line for line in both.said)
    assert layout.list_steps(tmp_path / "again", complete=False) == [20]
    for step in (10, 20):
        (both.there / layout.step_name(step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no step of file:.* is sound"):
        both.restored(tmp_path / "thrice")
    shutil.rmtree(both.there)
    assert both.restored(tmp_path / "nothing") is None


def test_latest_decides_over_newer_steps_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.save(10)
    both.save(20)
    both.wait()
    layout.write_pointer(both.run, "LATEST", "step_00000010")  # the run stepped back
    both.wait()
    assert from_mirror.newest_at(both.url) == "step_00000010"
    (both.there / "LATEST").write_text("step_00000010 xxh3:0000000000000000\n")
    assert from_mirror.newest_at(both.url) == "step_00000020"


def test_another_step_of_the_same_name_replaces_it_manifest_first(tmp_path: Path, monkeypatch) -> None:
    both = Both(tmp_path)
    both.save(10)
    both.wait()
    shutil.rmtree(both.run / "step_00000010")
    both.save(10)  # the same bytes: nothing to do
    both.wait()
    copied = [line for line in both.said if line.startswith("copied")]
    assert len(copied) == 1
    damage(both.there / "step_00000010" / "manifest.json")
    again = Both(tmp_path)
    gone = []
    upload = again.mirror._upload_manifest
    monkeypatch.setattr(again.mirror, "_upload_manifest", lambda *args: (gone.append(again.steps()), upload(*args)))
    again.mirror.add(again.run / "step_00000010")
    again.wait()
    assert gone[0] == [] and again.steps() == [10]


def test_a_copy_that_fails_is_said_and_the_next_brings_what_is_missing(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.there.write_text("in the way")
    both.save(10)
    both.wait()
    assert any("warning: step_00000010 was not copied to file://" in line for line in both.said)
    both.there.unlink()
    both.save(20)
    both.wait()
    assert both.steps() == [20]


def test_what_was_logged_without_a_step_is_set_aside(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.save(10)
    both.wait()
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 3}\n')
    assert from_mirror.restore(folder, both.url, say=both.said.append)
    assert '"step": 3' in (folder / "metrics.superseded.jsonl").read_text()
    assert '"step": 3' not in (folder / "metrics.jsonl").read_text()
