"""``checkpoint.push_to_hub``: said before it happens, whole when it is there, and no reason for a run to end."""

from __future__ import annotations

import threading

import pytest
import yaml
from tests.checkpoint.hf import hub_server

from automodel_cli.checkpoint.hf import hashes
from automodel_cli.checkpoint.inspect.verify import verify
from automodel_cli.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
FAST = {"compile": {"enabled": False}, "step_scheduler": {"max_steps": 6, "ckpt_every_steps": 2, "val_every_steps": 2}}


@pytest.fixture
def hub(monkeypatch):
    with hub_server.instead_of_the_hub(monkeypatch) as server:
        yield server


def train(tiny_training, push_to_hub, *overrides, **checkpoint):
    recipe = tiny_training.recipe(*overrides, checkpoint={"push_to_hub": push_to_hub, **checkpoint}, **FAST)
    return recipe, recipe.run_train_validation_loop()


def told(recipe, words):
    return [line for line in recipe.said if words in line]


def test_the_last_checkpoint_goes_to_a_private_repository(tiny_training, hub, tmp_path):
    (tiny_training.run / "step_00000001.hub").mkdir(parents=True)  # a killed run left it
    recipe, result = train(tiny_training, "me/tiny")
    assert result.exit_code == 0
    assert f"upload: the last checkpoint, to {hub.address}/me/tiny (private if it is new)" in recipe.said
    made = hub.repositories["me/tiny"]
    assert made.private and made.messages == ["automodel: step_00000006"]
    assert told(recipe, f"uploaded step_00000006 to {hub.address}/me/tiny")
    files = made.branches["main"]
    copy = {path.name: path.read_bytes() for path in (tiny_training.run / "step_00000006" / "hf").iterdir()}
    assert {name: files[name] for name in copy if name != hashes.HASHES} == {
        name: content for name, content in copy.items() if name != hashes.HASHES
    }
    assert b"# me/tiny" in files["README.md"] and str(tmp_path).encode() not in files["README.md"]
    target = tmp_path / "downloaded"
    target.mkdir()
    for name, content in files.items():
        (target / name).write_bytes(content)
    (target / ".gitattributes").unlink()
    checked = verify(target)
    assert checked["ok"] and not checked["not_covered"]
    assert not list(tiny_training.run.glob("*.hub")) and verify(tiny_training.run / "step_00000006")["ok"]
    stored = [path for path in tiny_training.run.rglob("*") if path.is_file()]
    assert not any(hub_server.TOKEN.encode() in path.read_bytes() for path in stored)
    assert not told(recipe, hub_server.TOKEN)


def test_each_best_one_whatever_retention_deletes(tiny_training, hub):
    recipe, _ = train(tiny_training, {"repo_id": "tiny", "every": "best", "private": False}, keep_last=1)
    messages = hub.repositories["me/tiny"].messages
    assert messages[-1] == "automodel: step_00000006" and not hub.repositories["me/tiny"].private
    assert told(recipe, "each best checkpoint so far, to") and "<your account>/tiny" in "".join(recipe.said)
    assert (tiny_training.run / "step_00000006" / "hf").is_dir()


def test_uploads_slower_than_saves_leave_some_out_but_never_the_newest(tiny_training, hub):
    """The first upload hangs until training is over."""
    over = threading.Event()
    hub.before = lambda request: over.wait(60) if "repos/create" in request else None
    recipe = tiny_training.recipe(checkpoint={"push_to_hub": {"repo_id": "me/tiny", "every": "all"}}, **FAST)
    say = recipe.run.reporter.say

    def listening(line):
        say(line)
        if line == "waiting for the upload":
            over.set()

    object.__setattr__(recipe.run.reporter, "say", listening)
    assert recipe.run_train_validation_loop().exit_code == 0
    assert hub.repositories["me/tiny"].messages == ["automodel: step_00000002", "automodel: step_00000006"]
    assert told(recipe, "step_00000004 is not uploaded: uploads are slower than saves")


@pytest.mark.parametrize("status", [403, 0])
def test_a_failed_upload_stops_nothing(tiny_training, hub, status):
    hub.failing["/api/"] = status
    recipe, result = train(tiny_training, "me/tiny")
    assert result.exit_code == 0 and result.step == 6
    (line,) = told(recipe, "warning: step_00000006 was not uploaded to me/tiny: ")
    assert f"automodel export hf {tiny_training.run}/step_00000006 OUT --push-to-hub me/tiny --private" in line
    assert "\n" not in line and hub_server.TOKEN not in line


def test_saves_in_the_background_and_a_disk_without_hard_links(tiny_training, hub, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr("automodel_cli.checkpoint.newest_first.os.link", no_links)
    train(tiny_training, {"repo_id": "me/tiny", "every": "all"}, is_async=True)
    made = hub.repositories["me/tiny"]
    assert made.messages[-1] == "automodel: step_00000006" and "model.safetensors" in made.branches["main"]


def test_a_card_that_cannot_be_made_stops_nothing(tiny_training, hub, monkeypatch):
    monkeypatch.setattr("automodel_cli.assembly.hub.uploads.model_card", lambda *_, **__: 1 / 0)
    recipe, result = train(tiny_training, "me/tiny")
    assert result.exit_code == 0 and told(recipe, "was not uploaded to me/tiny: ZeroDivisionError")


def test_a_run_that_is_told_to_stop_does_not_wait_for_the_network(tiny_training, hub):
    over = threading.Event()
    hub.before = lambda request: over.wait(60)
    recipe = tiny_training.recipe(checkpoint={"push_to_hub": {"repo_id": "me/tiny", "every": "all"}}, **FAST)
    say = recipe.run.reporter.say

    def listening(line):
        say(line)
        if line.startswith("saved ") and "step_00000002" in line:
            recipe.run.stop.heard(True)

    object.__setattr__(recipe.run.reporter, "say", listening)
    result = recipe.run_train_validation_loop()
    over.set()
    for thread in threading.enumerate():  # it would go on into the next test
        if thread.name == "upload":
            thread.join(60)
    assert result.exit_code == 75
    (line,) = told(recipe, "warning: the upload of step_00000003 is not waited for")  # saved on the way out
    assert f"automodel export hf {tiny_training.run}/step_00000003 OUT --push-to-hub me/tiny --private" in line


def test_no_token_is_said_before_the_run(tiny_training, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    recipe = tiny_training.recipe(checkpoint={"push_to_hub": "me/tiny"}, **FAST)
    assert told(recipe, "note: checkpoint.push_to_hub will upload nothing: there is no token")
    assert not hub.requests


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("../x", "expected NAME or ACCOUNT/NAME"),
        ("https://evil.example/x", "expected NAME or ACCOUNT/NAME"),
        (True, "found true"),
        ({"repo_id": "me/x", "token": "hf_x"}, "token"),
        ({"repo_id": "me/x", "every": "5"}, "last"),
        ({"repo_id": "me/x", "revision": "a/../b"}, "branch"),
    ],
)
def test_what_names_no_place_is_refused(tiny_training, settings, words):
    with pytest.raises(ConfigError, match="push_to_hub") as caught:
        tiny_training.recipe(checkpoint={"push_to_hub": settings})
    assert words in str(caught.value)


@pytest.mark.parametrize("settings", ["me/${HF_TOKEN}", {"repo_id": "me/x", "revision": "${HF_TOKEN}"}])
def test_no_secret_becomes_a_name_that_others_see(tiny_training, hub, settings):
    with pytest.raises(ConfigError, match=r"push_to_hub.*takes no environment variables") as caught:
        tiny_training.recipe(checkpoint={"push_to_hub": settings})
    assert hub_server.TOKEN not in str(caught.value)


def test_no_checkpoints_nothing_to_upload(tiny_training):
    with pytest.raises(ConfigError, match="enabled: false makes none"):
        tiny_training.recipe(checkpoint={"push_to_hub": "me/x", "enabled": False})


def test_a_model_without_such_a_format_is_refused_at_the_start(tiny_training, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    vocab_size = 64\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Embedding(64, 4), torch.nn.Linear(4, 64)\n"
        "    def forward(self, ids):\n"
        "        return self.b(self.a(ids))\n"
    )
    with pytest.raises(ConfigError, match="push_to_hub"):
        tiny_training.recipe(model={"_target_": f"{file}:Mine"}, checkpoint={"push_to_hub": "me/x"}, trust=(str(file),))


def test_names_are_those_that_the_hub_takes():
    """Compared with the library's own check."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id
    from pydantic import ValidationError

    from automodel_cli.config.schema.run_sections import PushToHubConfig

    names = (
        "a a/b A-b_c.d/e.f- .a a. a- -a a--b a..b a.git a/b.git a/b/c /a a/ a b é é/b a/b\n "
        + "x" * 96
        + " "
        + "x" * 97
    )
    for name in [*names.split(" "), "", "a b", "a/b\n"]:
        verdicts = []
        for check in (validate_repo_id, lambda name: PushToHubConfig(repo_id=name)):
            try:
                check(name)
                verdicts.append(True)
            except (HFValidationError, ValidationError):
                verdicts.append(False)
        theirs, ours = verdicts
        assert ours == theirs or (theirs and not name.isascii()), name


def test_the_settings_come_back_as_they_were(tiny_training):
    recipe = tiny_training.recipe("--checkpoint.push_to_hub", "me/x")
    from automodel_cli.config.load import to_yaml

    written = yaml.safe_load(to_yaml(recipe.run.cfg))["checkpoint"]["push_to_hub"]
    assert written == {"repo_id": "me/x", "private": True, "every": "last", "revision": None, "license": None}
