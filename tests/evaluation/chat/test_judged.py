"""MT-Bench and AlpacaEval: turns, files in the suites' formats, grades by a stand-in of a judge's endpoint."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.evaluation.chat import judged
from automodel_cli.evaluation.chat.judge_client import JudgeClient
from automodel_cli.evaluation.chat.judged import SUITES

MT = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["1+1?"], "reference": ["2"]},
]
ALPACA = [
    {"dataset": "own", "instruction": f"Say {word}.", "output": word, "generator": "other"} for word in ("a", "b", "c")
]


def echo(conversations) -> list[str]:
    return [f"{len(one)} turns after {one[-1].content}" for one in conversations]


def test_each_turn_is_asked_with_those_before_it() -> None:
    answers = judged.answer(SUITES["mt_bench"], MT, echo)
    assert answers == [["1 turns after Write.", "3 turns after Shorter."], ["1 turns after 1+1?"]]


def test_files_in_the_formats_of_the_suites(tmp_path) -> None:
    suite = SUITES["mt_bench"]
    path = suite.export(MT, judged.answer(suite, MT, echo), "mine", tmp_path)
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert path.name == "mine.jsonl"
    assert first.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert first["choices"] == [{"index": 0, "turns": ["1 turns after Write.", "3 turns after Shorter."]}]
    assert (first["question_id"], second["model_id"]) == (81, "mine") and first["answer_id"] != second["answer_id"]
    before = path.read_bytes()
    suite.export(MT, judged.answer(suite, MT, echo), "mine", tmp_path)
    assert path.read_bytes() == before
    path = SUITES["alpaca_eval"].export(ALPACA, [["x"], ["y"], ["z"]], "mine", tmp_path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found[0] == {"dataset": "own", "instruction": "Say a.", "output": "x", "generator": "mine"}


def test_grades() -> None:
    replies = iter(["Fine. [[7]]", "[[2]] no: [[3]]", "no grade [[11]]"])
    seen = []
    found = judged.grade(
        SUITES["mt_bench"], MT, [["a", "b"], ["c"]], lambda text: (seen.append(text), next(replies))[1]
    )
    assert found["metrics"]["grade"]["value"] == 5 and found["metrics"]["grade"]["stderr"] == pytest.approx(2)
    assert found["grades"] == [7, 3, None] and found["without_grade"] == 1
    assert "Shorter." in seen[1] and "Shorter." not in seen[0] and "[A correct answer to the last turn]\n2" in seen[2]


def test_the_better_answer_wins_wherever_it_stands() -> None:
    def judge(text: str) -> str:
        return "[[A]]" if text.index("GOOD") < text.index("[Answer B]") else "[[B]]"

    rows = [{**ALPACA[0], "instruction": f"Question {n}."} for n in range(20)]
    suite = SUITES["alpaca_eval"]
    seen = []
    won = judged.grade(suite, rows, [["GOOD"]] * 20, lambda text: (seen.append(text.index("GOOD")), judge(text))[1])
    assert won["metrics"]["win_rate"]["value"] == 1.0
    lost = judged.grade(suite, [{**row, "output": "GOOD"} for row in rows], [["poor"]] * 20, judge)
    assert lost["metrics"]["win_rate"]["value"] == 0.0 and len(set(seen)) > 1
    tie = judged.grade(suite, rows, [["x"]] * 20, lambda text: "[[C]]")
    assert tie["metrics"]["win_rate"] == {"value": 0.5, "stderr": 0.0}
    none = judged.grade(suite, [{"instruction": "x"}], [["y"]], judge)  # nothing to compare with
    assert none["grades"] == [] and none["metrics"]["win_rate"]["value"] is None


@pytest.mark.parametrize("row", [{"turns": ["a"]}, {"question_id": 1, "turns": []}, {"question_id": 1, "turns": [3]}])
def test_rows_that_are_no_questions(row) -> None:
    with pytest.raises(DataError):
        SUITES["mt_bench"].checked(row)
    with pytest.raises(DataError):
        SUITES["alpaca_eval"].checked(row)


# ------------------------------------------------------------------------------------------- the endpoint


class Handler(BaseHTTPRequestHandler):
    """Replies with what the server was given, and keeps what it was asked."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        status, reply = self.server.replies.pop(0)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_) -> None:
        pass


GOOD = json.dumps({"choices": [{"message": {"role": "assistant", "content": "[[9]]"}}], "usage": {}}).encode()


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.replies = [], []
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def client(server, waited=None) -> JudgeClient:
    sleep = (lambda _: None) if waited is None else waited.append
    return JudgeClient(f"http://127.0.0.1:{server.server_port}/v1", "judge-1", "secret", sleep=sleep)


def test_a_judge_is_asked_as_openai_is(server) -> None:
    server.replies = [(200, GOOD)]
    assert client(server)("Grade this.") == "[[9]]"
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {"model": "judge-1", "messages": [{"role": "user", "content": "Grade this."}], "temperature": 0}


def test_what_passes_is_waited_for(server) -> None:
    waited: list[float] = []
    server.replies = [(429, b"slow down"), (503, b""), (200, GOOD)]
    assert client(server, waited)("x") == "[[9]]" and waited == [1, 4]


@pytest.mark.parametrize(
    ("status", "reply", "says"),
    [
        (401, b"wrong key\x1b[2J", "said 401: wrong key"),
        (401, b"x" * 290 + b" is no key: secret", "said 401: x+ is no key"),
        (302, b"", "said 302"),
        (200, b"<html>", "valid JSON"),
        (200, b'{"choices": 1}', "choices"),
    ],
)
def test_what_does_not_pass_is_an_error(server, status, reply, says) -> None:
    server.replies = [(status, reply)]
    with pytest.raises(AutomodelError, match=says) as caught:
        client(server)("x")
    assert len(server.asked) == 1 and "secret" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_an_error_whose_reason_breaks_off_is_one_too(server, monkeypatch) -> None:
    def broken(*_):
        raise ConnectionResetError

    monkeypatch.setattr("urllib.error.HTTPError.read", broken, raising=False)
    server.replies = [(403, b"no")]
    with pytest.raises(AutomodelError, match="said 403"):
        client(server)("x")


def test_a_key_that_is_none_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        JudgeClient("https://x/v1", "m", "hush\nhush")
    assert "hush" not in str(caught.value)


def test_a_judge_that_is_not_there() -> None:
    waited: list[float] = []
    with pytest.raises(AutomodelError, match="cannot be reached"):
        JudgeClient("http://127.0.0.1:1/v1", "m", sleep=waited.append)("x")
    assert waited == [1, 4, 16]


@pytest.mark.parametrize(
    "url",
    [
        "https://a b/v1",
        "https://a\n/v1",
        "http://example.com/v1",
        "ftp://127.0.0.1",
        "nonsense",
        "https://",
        "https://me:key@host/v1",
        "http://[::1",
    ],
)
def test_addresses_that_are_refused(url) -> None:
    with pytest.raises(ConfigError):
        JudgeClient(url, "m")
    for good in ("https://api.example.com/v1", "http://localhost:8003/v1", "http://[::1]:1/v1/chat/completions"):
        JudgeClient(good, "m")
