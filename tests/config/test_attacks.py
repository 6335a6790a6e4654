"""No configuration runs code that nobody trusted by name. Success is a canary that is not there.

Every payload goes the whole way a run would go: load (phase 1), the foreign check (phase 2), and building each open
section. Controls show that the canary works: the same payloads do run where they are called directly or trusted.
"""

import importlib.util
import json
import marshal
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tests.config.payloads import INSIDE_LIBRARIES, PAYLOADS, Payload

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import built_arguments, check_foreign, instantiate
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import AutomodelError, ConfigError

EVIL = "from pathlib import Path\nPath('CANARY').touch()\ndef run(*a, **k): Path('CANARY').touch()\nclass Evil: ...\n"
INNOCENT = "import os\nfrom os import system\ndef f(): ...\ndef evil_lookalike(): ...\n"
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8, "vocab_size": 8}


class Bomb:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A current folder full of traps; the path of the file that they all create."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("AM_EVIL", "os.system")
    path = tmp_path / "canary"
    for name, text in {"evil_module.py": EVIL, "innocent.py": INNOCENT, "hubconf.py": EVIL}.items():
        Path(name).write_text(text.replace("CANARY", str(path)))
    Path("innocent_link.py").symlink_to("evil_module.py")
    Path("evil_package").mkdir()
    Path("evil_package/__init__.py").write_text(EVIL.replace("CANARY", str(path)))
    Path("evil_package/inner.py").write_text(EVIL.replace("CANARY", str(path)))
    make_hub_folder(Path("evil_hub"), path)
    make_pickle_folder(Path("evil_pickle"), path)
    Path("evil_kernel").mkdir()
    Path("evil_kernel/config.json").write_text(json.dumps({**GPT2, "attn_implementation": "evil/kernel"}))
    torch.save(Bomb(path), "evil.pkl")
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("evil_module", "evil_package", "innocent") or name.startswith("automodel_user_"):
            del sys.modules[name]


def make_hub_folder(folder: Path, canary: Path) -> None:
    """A model whose configuration points at code of its own."""
    folder.mkdir()
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Net", "AutoTokenizer": "evil.Tok"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}))
    (folder / "evil.py").write_text(EVIL.replace("CANARY", str(canary)))


def make_pickle_folder(folder: Path, canary: Path) -> None:
    """A GPT-2 whose weights are a pickle that runs a command."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2))
    torch.save({"transformer.wte.weight": Bomb(canary)}, folder / "pytorch_model.bin")


def filled(value, canary: Path):
    """The payload with real paths in it."""
    if isinstance(value, str):
        here = str(canary.parent)
        return value.replace("CANARY", str(canary)).replace("CWDNAME", canary.parent.name).replace("CWD", here)
    if isinstance(value, dict):
        return {key: filled(item, canary) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(filled(item, canary) for item in value)
    return value


def as_yaml(payload: Payload) -> str:
    if payload.yaml:
        return payload.yaml
    sections = {
        "model": {
            "_target_": "automodel_cli.models.gpt2.build_gpt2_model",
            "n_layer": 1,
            "n_head": 1,
            "n_embd": 8,
        },
        "dataset": {
            "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
            "file_pattern": "x",
            "seq_len": 8,
        },
        payload.section: {"_target_": payload.name, **payload.arguments},
    }
    return yaml.safe_dump(sections, sort_keys=False)


def attempt(payload: Payload, canary: Path) -> None:
    """Go as far as a run would; what is refused raises."""
    payload = filled_payload(payload, canary)
    Path("cfg.yaml").write_text(payload.yaml, encoding="utf-8")
    cfg = load_config(PretrainConfig, "cfg.yaml", payload.overrides, trust=payload.trust)
    check_foreign(cfg, trust=payload.trust)
    for key, role, target in cfg.open_sections():
        if role == "dataloader":
            built_arguments(target, role, trust=payload.trust, key=key)
        elif not (role == "dataset" and target.name.startswith("automodel_cli")):
            inject = {"params": [torch.nn.Parameter(torch.zeros(1))]} if role == "optimizer" else {}
            instantiate(target, role, inject=inject, trust=payload.trust, key=key)


def filled_payload(payload: Payload, canary: Path) -> Payload:
    payload = replace(payload, yaml=as_yaml(payload))
    return replace(
        payload,
        yaml=filled(payload.yaml, canary),
        overrides=filled(payload.overrides, canary),
        name=payload.name,
    )


def label(payload: Payload) -> str:
    return f"{payload.section}:{payload.name}" if payload.name else (payload.overrides or (payload.yaml[-40:],))[0][:40]


@pytest.mark.parametrize("payload", PAYLOADS, ids=label)
def test_the_canary_does_not_run(payload, canary):
    with pytest.raises(AutomodelError) as caught:
        attempt(payload, canary)
    assert not canary.exists()
    assert isinstance(caught.value, ConfigError)
    assert "evil_module" not in sys.modules
    assert "evil_package" not in sys.modules


def test_there_are_enough_payloads():
    assert len(PAYLOADS) >= 100
    inside = {payload.name for payload in INSIDE_LIBRARIES}
    assert len(inside) >= 40
    assert {name.split(".")[0] for name in inside} == {"torch", "transformers", "datasets", "numpy"}


# ----------------------------------------------------------------------------------------- controls


def test_the_callables_inside_libraries_are_live(canary):
    """They exist and do run code: a list of trusted packages would have let them through."""
    from torch.utils.benchmark import Timer
    from torch.utils.collect_env import run

    run(f"touch {canary}")
    assert canary.exists()
    canary.unlink()
    Timer(f"open({str(canary)!r}, 'w').close()").timeit(1)
    assert canary.exists()
    canary.unlink()
    torch.hub.load(".", "run", source="local")
    assert canary.exists()
    canary.unlink()
    torch.load("evil.pkl", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    ("payload", "trust"),
    [
        (Payload("os.system", "model", {"command": "touch CANARY"}), "os.system"),
        (
            Payload("torch.utils.collect_env.run", "model", {"command": "touch CANARY"}),
            "torch.utils.collect_env.run",
        ),
        (Payload("evil_module.run", "model"), "evil_module"),
        (Payload("evil_module.py:run", "model"), "evil_module.py"),
        (Payload("evil_package.inner.run", "model"), "evil_package"),
        (
            Payload(
                "transformers.AutoModelForCausalLM.from_pretrained",
                "model",
                {"pretrained_model_name_or_path": "evil_hub", "trust_remote_code": True},
            ),
            "evil_hub",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_same_payloads_run_where_they_are_trusted(payload, trust, canary):
    try:
        attempt(replace(payload, trust=(trust,)), canary)
    except ConfigError as error:
        assert "add --trust" not in error.message  # evil.Net is no model: it ran and was then found wanting
    assert canary.exists()


def plant_pyc(source: Path, canary: Path) -> None:
    """A compiled file in ``__pycache__`` that says it belongs to ``source``, of no hash that anybody checks."""
    code = compile(f"open({str(canary)!r}, 'w').close()\ndef run(*a, **k): ...\nclass Evil: ...\n", "x", "exec")
    cached = Path(importlib.util.cache_from_source(str(source)))
    cached.parent.mkdir(exist_ok=True)
    flags = (1).to_bytes(4, "little")  # hash-based, unchecked
    cached.write_bytes(importlib.util.MAGIC_NUMBER + flags + bytes(8) + marshal.dumps(code))


@pytest.mark.parametrize(
    ("name", "trust"),
    [
        ("innocent.py:Net", "innocent.py"),
        ("innocent.Net", "innocent"),
        ("innocent_package.inner.Net", "innocent_package"),
    ],
)
def test_what_is_trusted_is_the_text_that_was_read(name, trust, canary):
    """A compiled file beside it is not: it may hold anything."""
    text = "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    Path("innocent_package").mkdir()
    Path("innocent_package/__init__.py").write_text("")
    for source in (Path("innocent.py"), Path("innocent_package/inner.py")):
        source.write_text(text)
        plant_pyc(source.absolute(), canary)
    plant_pyc(Path("innocent_package/__init__.py").absolute(), canary)
    try:
        built = instantiate(Target(name), "model", trust=[trust])
    finally:
        for module in [module for module in sys.modules if module.startswith("innocent")]:
            del sys.modules[module]
    assert type(built).__name__ == "Net"
    assert not canary.exists()


def test_a_target_built_in_python_gets_no_trust_either(canary):
    with pytest.raises(ConfigError):
        instantiate(Target("os.system", {"command": f"touch {canary}"}), "model")
    assert not canary.exists()
