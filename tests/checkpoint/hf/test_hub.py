"""Uploads: a folder arrives whole, and whatever goes wrong is told in two lines, without the token."""

from __future__ import annotations

import pytest
from huggingface_hub import constants
from tests.checkpoint.hf import hub_server
from tests.checkpoint.hf.hub_server import TOKEN, Repository

from automodel_cli.checkpoint.hf import hub as hf_hub
from automodel_cli.checkpoint.hf.hub import Destination, HubError


@pytest.fixture
def hub(monkeypatch):
    with hub_server.instead_of_the_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "out put"
    made.mkdir()
    for name, content in {"config.json": b"{}", "model.safetensors": bytes(200_000), "README.md": b"# Card\n"}.items():
        (made / name).write_bytes(content)
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_arrives_whole(hub, folder):
    address = hf_hub.push(folder, Destination("me/gpt"), message="step 7")
    assert address == f"{hub.address}/me/gpt"
    made = hub.repositories["me/gpt"]
    assert made.branches["main"] == {".gitattributes": b"", **contents(folder)}
    assert made.messages == ["step 7"] and not made.private


def test_a_second_upload_leaves_no_weights_of_the_first(hub, folder):
    before = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    hub.repositories["me/gpt"] = Repository(branches={"main": dict(before)})
    hf_hub.push(folder, Destination("me/gpt"), message="again")
    assert hub.repositories["me/gpt"].branches["main"] == {"notes.md": b"mine", **contents(folder)}


def test_a_branch_and_a_name_without_an_account(hub, folder):
    assert hf_hub.push(folder, Destination("gpt", private=True, revision="step-7"), message="m").endswith("/me/gpt")
    made = hub.repositories["me/gpt"]
    assert made.private and made.branches["step-7"].keys() > contents(folder).keys()
    assert made.branches["main"].keys() == {".gitattributes"}
    hf_hub.push(folder, Destination("gpt", private=True, revision="step-7"), message="m")  # both are there now


def test_what_was_to_be_private_does_not_go_where_all_can_see_it(hub, folder):
    hub.repositories["me/gpt"] = Repository(private=False)
    with pytest.raises(HubError, match="is public, and this upload was to be private"):
        hf_hub.push(folder, Destination("me/gpt", private=True), message="m")
    assert hub.repositories["me/gpt"].messages == []


@pytest.mark.parametrize(
    ("failing", "words", "hint"),
    [
        ({"repos/create": 401}, "the Hub knows no such token (401)", "hf auth login"),
        ({"repos/create": 403, "GET /api/models": 403}, "may not write there (403)", "right to write"),
        ({"/commit/": 409}, "at the same time (409)", "look at it"),
        ({"repos/create": 500}, "the Hub failed (500)", "wait"),
        ({"/commit/": 503}, "the Hub failed (503)", "wait"),
        ({"/commit/": 404}, "the Hub answered 404", "name and branch"),
        ({"repos/create": 0}, "did not take it (", "network"),
        ({"PUT /objects": 0}, "did not take it (", "network"),
        ({"PUT /objects": 403}, "may not write there (403)", "right to write"),
    ],
)
def test_what_goes_wrong_is_told_in_two_lines(hub, folder, failing, words, hint):
    hub.failing.update(failing)
    with pytest.raises(HubError) as caught:
        hf_hub.push(folder, Destination("me/gpt", private=True, revision="v1"), message="m")
    message, advice = caught.value.message, caught.value.hint
    assert words in message and hint in advice
    assert f"hf upload me/gpt '{folder}' . --revision v1 --private" in advice
    assert "\n" not in message + advice and TOKEN not in message + advice and len(message) < 450
    assert not any(made.messages for made in hub.repositories.values())


def test_a_signed_address_is_told_without_its_signature(hub, folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Client error '400 Bad Request' for url 'https://cdn.example/x?X-Sig=abc&Expires=1'\nmore")

    monkeypatch.setattr(hf_hub.huggingface_hub.HfApi, "upload_folder", refuse)
    with pytest.raises(HubError, match=r"for url 'https://cdn\.example/x\?\.\.\.'\)"):
        hf_hub.push(folder, Destination("me/gpt"), message="m")


def test_somebody_elses_account_is_refused(hub, folder):
    with pytest.raises(HubError, match="403"):
        hf_hub.push(folder, Destination("them/gpt"), message="m")
    assert not hub.repositories and not hub.objects


def test_no_server_at_all(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 did not take it .*refused"):
        hf_hub.push(folder, Destination("me/gpt"), message="m")


def test_what_is_known_without_a_network(hub, monkeypatch, tmp_path):
    assert hf_hub.why_not_now() is None
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "hf auth login" in hf_hub.why_not_now()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hf_hub.why_not_now() == "HF_HUB_OFFLINE is set"


def test_where_it_goes_is_said_with_the_address(hub):
    assert Destination("me/gpt").describe() == f"{hub.address}/me/gpt (public if it is new)"
    described = Destination("gpt", private=True, revision="v1").describe()
    assert described == f"{hub.address}/<your account>/gpt (private if it is new, branch v1)"
