"""Messages for pages: nothing is lost or told twice, however a page comes and goes."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from tests.serving.watch.conftest import write_run

from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import rewind
from automodel_cli.serving.watch.hub import Hub
from automodel_cli.serving.watch.runs import RunSet


@pytest.fixture
def hub(tmp_path):
    write_run(tmp_path / "a")
    started = Hub(RunSet([tmp_path]), poll_s=0.01).start()
    wait_for(lambda: int(started.place.partition("-")[2]) >= 3)  # its train rows, its validation, its facts
    yield started
    started.stop()


def wait_for(what) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def heard(hub, place: str, until) -> tuple[list[dict], str]:
    """Messages after ``place`` up to one that ``until`` accepts, and the place after it."""

    async def listen():
        found = []
        async for block in hub.stream(place, lambda: False):
            for event in block.decode().split("\n\n"):
                if "data: " in event:
                    last = event.split("\n")[0].removeprefix("id: ")
                    found.append(json.loads(event.split("data: ")[1]))
                    if until(found[-1]):
                        return found, last
        raise AssertionError("the stream has ended")

    return asyncio.run(asyncio.wait_for(listen(), 20))


def log_steps(folder, *steps) -> None:
    log = MetricsLog(folder)
    for step in steps:
        log.train({"step": step, "loss": 1.0})
    log.close()


def test_rows_as_they_come(hub, tmp_path):
    place = hub.place
    log_steps(tmp_path / "a", 21, 22)
    messages, place = heard(hub, place, lambda one: one.get("rows") == 22)
    rows = [one for one in messages if one["what"] == "rows"]
    assert [step for one in rows for step in one["x"]["step"]] == [21, 22]
    assert rows[0]["first"] == 20 and rows[-1]["last"]["step"] == 22
    log_steps(tmp_path / "a", 23)
    messages, _ = heard(hub, place, lambda one: one.get("rows") == 23)  # a page that was away
    assert [step for one in messages if one["what"] == "rows" for step in one["x"]["step"]] == [23]


def test_a_rewind_is_a_new_generation(hub, tmp_path):
    place, before = hub.place, hub.runs.get("a").overview()["generation"]
    rewind(tmp_path / "a", 10)
    messages, place = heard(hub, place, lambda one: one["what"] == "read")
    assert hub.runs.get("a").overview()["generation"] == before + 1
    log_steps(tmp_path / "a", 11)
    messages, _ = heard(hub, place, lambda one: one["what"] == "rows")
    assert messages[-1]["first"] == 10 and messages[-1]["generation"] == before + 1


@pytest.mark.parametrize("place", ["", "1-1", "x-y", "{epoch}-999999999999", "{epoch}-" + "9" * 30])
def test_who_has_lost_the_place_reads_everything(hub, place):
    messages, after = heard(hub, place.format(epoch=hub.place.partition("-")[0]), lambda one: True)
    assert messages == [{"what": "everything"}] and after == hub.place


def test_only_so_much_is_kept(hub, monkeypatch):
    place = hub.place
    for number in range(3000):
        hub._say({"what": "facts", "run": "a", "number": number})
    assert heard(hub, place, lambda one: True)[0] == [{"what": "everything"}]
    epoch, _, newest = hub.place.partition("-")
    messages, _ = heard(hub, f"{epoch}-{int(newest) - 1500}", lambda one: one.get("number") == 2999)
    assert [one["number"] for one in messages if "number" in one] == list(range(1500, 3000))


def test_a_run_that_cannot_be_followed_does_not_end_the_others(hub, tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("out of luck")

    place = hub.place
    monkeypatch.setattr(hub.runs.get("a"), "update", broken)
    heard(hub, place, lambda one: one["what"] == "runs")
    assert "out of luck" in hub.runs.get("a").overview()["problem"]
    monkeypatch.setattr("automodel_cli.serving.watch.hub._FIND_S", 0.02)
    write_run(tmp_path / "b")
    heard(hub, place, lambda one: one.get("run") == "b" and one["what"] == "rows")


def test_new_runs_are_found(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("automodel_cli.serving.watch.hub._FIND_S", 0.02)
    place = hub.place
    write_run(tmp_path / "later" / "b")
    heard(hub, place, lambda one: one["what"] == "runs")
    assert [run.name for run in hub.runs] == ["a", "later/b"]


def test_the_end_of_the_server_ends_the_streams(hub):
    async def listen():
        return [block async for block in hub.stream(hub.place, lambda: True)]

    assert asyncio.run(asyncio.wait_for(listen(), 5)) == [b"retry: 1000\n\n"]
