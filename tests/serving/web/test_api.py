"""The API as OpenAI's own client sees it."""

from __future__ import annotations

import httpx
import pytest

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


@pytest.fixture
def client(echo):
    with openai.OpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


def ask(client, text: str, **settings):
    return client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}], **settings)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "echo" and client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-9")


def test_a_conversation(client):
    answer = client.chat.completions.create(
        model="echo",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "on"}, {"type": "text", "text": "e"}]},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "zwölf 🐤"},
        ],
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "zwölf 🐤", "stop")
    assert answer.object == "chat.completion" and answer.model == "echo" and answer.id.startswith("chatcmpl-")
    said = len("zwölf 🐤".encode())
    assert answer.usage.completion_tokens == said and answer.usage.prompt_tokens == 9 + 4 + 4 + (said + 1) + 1


def test_a_stream_is_whole_characters_and_ends_with_usage(client):
    stream = ask(client, "eins, zwölf 🐤", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "eins, zwölf 🐤" and all("\ufffd" not in text for text in texts)
    assert chunks[0].choices[0].delta.role == "assistant"
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes[-1] == "stop" and set(finishes[:-1]) == {None}
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens == len("eins, zwölf 🐤".encode())
    assert len({chunk.id for chunk in chunks}) == 1


def test_length_and_stop_texts(client):
    assert ask(client, "abcdef", max_tokens=3).choices[0].finish_reason == "length"
    assert ask(client, "abcdef", max_completion_tokens=3).choices[0].message.content == "abc"
    stopped = ask(client, "one two three", stop=["thr", " t"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("one", "stop")
    streamed = ask(client, "one two three", stop="three", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "one two "


def test_seeds_and_choices(client):
    def texts(**settings):
        return [choice.message.content for choice in ask(client, "?", max_tokens=12, **settings).choices]

    three = texts(seed=7, n=3)
    assert len(set(three)) == 3 and texts(seed=7, n=3) == three
    assert texts(seed=7) == three[:1] and texts(seed=8) != three[:1]
    assert texts() != texts()
    assert len(set(texts(temperature=0, n=2))) == 1
    assert texts(extra_body={"top_k": 1}, seed=1) == texts(extra_body={"top_k": 1}, seed=2)
    assert len({choice.index for choice in ask(client, "?", n=3, max_tokens=2).choices}) == 3
    streamed: dict[int, str] = {}
    for chunk in ask(client, "?", max_tokens=12, seed=7, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[number] for number in range(3)] == three


def test_logprobs(client):
    (choice,) = ask(client, "hé", logprobs=True, top_logprobs=2).choices
    tokens = choice.logprobs.content
    assert [one.bytes for one in tokens] == [[byte] for byte in "hé".encode()]
    assert tokens[0].token == "h" and abs(tokens[0].logprob) < 1e-3
    assert tokens[0].top_logprobs[0].token == "h" and len(tokens[0].top_logprobs) == 2
    parts = list(ask(client, "hé", logprobs=True, stream=True))
    found = [one for part in parts if part.choices[0].logprobs for one in part.choices[0].logprobs.content]
    assert len(found) == 3


def test_completions(client):
    one = client.completions.create(model="echo", prompt="\x02abc\x01", logprobs=1)
    assert (one.choices[0].text, one.choices[0].finish_reason, one.object) == ("abc", "stop", "text_completion")
    assert one.choices[0].logprobs.tokens == ["a", "b", "c"] and one.choices[0].logprobs.text_offset == [0, 1, 2]
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (5, 3)
    several = client.completions.create(model="echo", prompt=["\x02x\x01", "\x02y\x01"], n=2)
    assert [choice.text for choice in several.choices] == ["x", "x", "y", "y"] and several.usage.prompt_tokens == 6
    assert client.completions.create(model="echo", prompt=[2, 65, 66, 1]).choices[0].text == "AB"
    streamed = client.completions.create(model="echo", prompt="\x02abc\x01", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abc"


def test_old_turns_are_left_out_where_that_is_asked_for(client):
    long = [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y" * 900}] * 2
    messages = [{"role": "system", "content": "s"}, *long, {"role": "user", "content": "last"}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=messages)
    assert refused.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(model="echo", messages=messages, extra_body={"truncation": "auto"})
    assert answer.choices[0].message.content == "last" and answer.usage.prompt_tokens < 100


def test_an_endless_prompt_is_not_read_to_its_end(client):
    for call in (
        lambda: ask(client, "x" * 500_000),
        lambda: ask(client, "x" * 500_000, extra_body={"truncation": "auto"}),
        lambda: client.completions.create(model="echo", prompt="x" * 500_000),
    ):
        with pytest.raises(openai.BadRequestError, match="more than 32,768 tokens") as refused:
            call()
        assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", "text"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"n": 9}, "n", "at most 8"),
        ({"max_tokens": 1001}, "max_tokens", "at most 1,000"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"seed": 2**70}, "seed", ""),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 1}, "frequency_penalty", "not supported"),
        ({"heat": 1}, "heat", "not permitted"),
        ({"model": "gpt-9"}, "model", "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said(echo, body, param, says):
    whole = {"messages": [{"role": "user", "content": "x"}], **body}
    answer = httpx.post(f"{echo.url}/v1/chat/completions", json=whole)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and error["param"] == param and says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b'{"messages": NaN}', b"\xff\xfe", b'{"prompt": "\\ud800"}']
)
def test_bodies_that_are_none(echo, content):
    for path in ("chat/completions", "completions"):
        answer = httpx.post(
            f"{echo.url}/v1/{path}", content=content, headers={"content-type": "application/json"}, timeout=30
        )
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error", answer.text
    forged = httpx.post(f"{echo.url}/v1/completions", content=b'{"prompt": "x"}')  # what a form could send
    assert forged.status_code == 400


def test_other_paths_and_methods(echo):
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("GET", "/../x", 404)):
        answer = httpx.request(method, echo.url + path)
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


def test_health_and_metrics(echo):
    assert httpx.get(f"{echo.url}/health").json() == {"status": "ok"}
    text = httpx.get(f"{echo.url}/metrics").text
    assert "automodel_requests_active 0" in text and "# TYPE automodel_request_seconds histogram" in text
    assert "automodel_connections" in text
