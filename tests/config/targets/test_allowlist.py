import pytest

from automodel_cli.config.targets.allowlist import NotAllowed, Trust, allow, split_file_target, untrusted_code
from automodel_cli.config.targets.instantiate import check_target
from automodel_cli.config.targets.roles import ROLES, role_of_argument, role_of_section
from automodel_cli.config.targets.target import Target


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("model", "transformers.AutoModelForCausalLM.from_config"),
        ("model", "transformers.AutoModelForCausalLM.from_pretrained"),
        ("model", "transformers.GPT2LMHeadModel.from_config"),
        ("model", "transformers.LlamaForCausalLM"),
        ("model", "transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel.from_pretrained"),
        ("hf_config", "transformers.GPT2Config"),
        ("hf_config", "transformers.AutoConfig.from_pretrained"),
        ("tokenizer", "transformers.AutoTokenizer.from_pretrained"),
        ("optimizer", "torch.optim.AdamW"),
        ("optimizer", "torch.optim.adamw.AdamW"),
        ("optimizer", "transformers.Adafactor"),
        ("loss_fn", "torch.nn.CrossEntropyLoss"),
        ("collate_fn", "torch.utils.data.default_collate"),
    ],
)
def test_foreign_names_that_may_be_looked_at(role, name):
    assert allow(name, ROLES[role], Trust()).origin == "foreign"


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("model", "transformers.pipeline"),
        ("model", "transformers.AutoModelForCausalLM.register"),
        ("model", "transformers.GPT2LMHeadModel.from_pretrained.__func__"),
        ("model", "transformers.models.gpt2.modeling_gpt2.os.system"),
        ("optimizer", "torch.optim.AdamW.__init__"),
        ("optimizer", "torch.optim.AdamW.step"),
        ("optimizer", "torch.optim._adamw.AdamW"),
        ("loss_fn", "torch.nn.functional.cross_entropy"),
        ("dataset", "torch.utils.data.TensorDataset"),
        ("dataset", "datasets.load_dataset"),
        ("nested", "transformers.BitsAndBytesConfig"),
        ("nested", "automodel_cli.models.gpt2.build_gpt2_model"),
        ("model", "automodel_cli.models.gpt2.GPT2"),
        ("model", "not a name"),
        ("model", "a..b"),
        ("model", ".a"),
        ("model", "os"),
        ("model", ""),
        ("model", "path/file.py"),
        ("model", "path/file.py:"),
        ("model", "http://x/y.py:z"),
    ],
)
def test_names_that_may_not(role, name):
    with pytest.raises(NotAllowed):
        allow(name, ROLES[role], Trust())


def test_a_refusal_says_what_would_help():
    with pytest.raises(NotAllowed, match="add --trust my_models"):
        allow("my_models.Net", ROLES["model"], Trust())
    with pytest.raises(NotAllowed, match=r"add --trust torch\.hub\.load"):
        allow("torch.hub.load", ROLES["model"], Trust())
    with pytest.raises(NotAllowed, match=r"did you mean automodel_cli\.models\.gpt2\.build_gpt2_model"):
        allow("automodel_cli.models.gpt2.build_gpt_model", ROLES["model"], Trust())
    with pytest.raises(NotAllowed, match="is an optimizer, expected a loss"):
        allow("torch.optim.AdamW", ROLES["loss_fn"], Trust())


def test_trust_covers_a_module_and_what_is_in_it_and_nothing_else():
    trust = Trust(["my_models", "pkg.sub"])
    for name in ("my_models.Net", "my_models.inner.Net", "pkg.sub.f"):
        assert allow(name, ROLES["model"], trust).origin == "user"
    for name in ("my_models2.Net", "my_modelsx", "pkg.other.f", "pkg.f", "os.system"):
        with pytest.raises(NotAllowed):
            allow(name, ROLES["model"], trust)


def test_trust_does_not_allow_private_names():
    with pytest.raises(NotAllowed):
        allow("my_models.Net.__init__.__globals__", ROLES["model"], Trust(["my_models"]))


def test_files_are_known_by_what_they_are_not_by_spelling(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def f(): ...")
    (tmp_path / "other.py").write_text("def f(): ...")
    (tmp_path / "link.py").symlink_to(tmp_path / "other.py")
    monkeypatch.chdir(tmp_path)
    trust = Trust(["mine.py"])
    for written in (
        "mine.py:f",
        "./mine.py:f",
        f"{tmp_path}/mine.py:f",
        f"{tmp_path}/../{tmp_path.name}/mine.py:f",
    ):
        assert allow(written, ROLES["model"], trust).origin == "user"
    for written in ("other.py:f", "link.py:f"):
        with pytest.raises(NotAllowed, match="code that would run"):
            allow(written, ROLES["model"], trust)
    with pytest.raises(NotAllowed, match="there is no file"):
        allow("absent.py:f", ROLES["model"], trust)
    assert allow("link.py:f", ROLES["model"], Trust(["other.py:f"])).origin == "user"


def test_file_targets_split_at_the_last_part():
    assert split_file_target("a/b.py:C") == ("a/b.py", "C")
    assert split_file_target("/x:y/b.py:C.method") == ("/x:y/b.py", "C.method")
    assert split_file_target("a.b.C") is None
    assert split_file_target("a/b.txt:C") is None


# ----------------------------------------------------------------------------- arguments that are code


def guarded(trust=(), **arguments):
    target = Target("transformers.AutoModelForCausalLM.from_pretrained", arguments)
    return [".".join(path) for path, _ in untrusted_code(target, Trust(trust))]


NAME = {"pretrained_model_name_or_path": "owner/model"}


def test_remote_code_needs_trust():
    asked = {**NAME, "trust_remote_code": True}
    assert guarded(**asked) == ["trust_remote_code"]
    assert guarded(["owner/model"], **asked) == []
    assert guarded(["owner/other"], **asked) == ["trust_remote_code"]
    assert guarded(**NAME, trust_remote_code=False) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "owner/kernel"),
        ("attn_implementation", "owner/kernel@v1:fn"),
        ("attn_implementation", {"text": "owner/kernel"}),
        ("_attn_implementation", "owner/kernel"),
        ("experts_implementation", "owner/kernel"),
        ("allow_all_kernels", True),
        ("use_kernels", True),
        ("kernel_config", {"RMSNorm": "owner/kernel"}),
        ("auto_map", {"AutoModelForCausalLM": "evil.Model"}),
        ("weights_only", False),
        ("code_revision", "main"),
    ],
)
def test_other_arguments_that_make_libraries_run_code(key, value):
    assert guarded(**NAME, **{key: value}) == [key]
    assert guarded(**NAME, config={key: value}) == [f"config.{key}"]
    assert guarded(**NAME, deep=[{"deeper": {key: value}}]) == [f"deep.0.deeper.{key}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("attn_implementation", "sdpa"), ("attn_implementation", "flash_attention_2"), ("weights_only", True)],
)
def test_their_harmless_values_pass(key, value):
    assert guarded(**NAME, **{key: value}) == []


def test_trust_in_one_repository_is_none_in_another():
    nested = Target(
        "transformers.AutoConfig.from_pretrained",
        {"pretrained_model_name_or_path": "owner/other", "trust_remote_code": True},
    )
    outer = Target(
        "transformers.AutoModelForCausalLM.from_pretrained",
        {**NAME, "trust_remote_code": True, "config": nested},
    )
    assert [problem.key for problem in check_target(outer, "model", trust=["owner/model"], imports=False).problems] == [
        "model.trust_remote_code",
        "model.config.trust_remote_code",
    ]
    assert check_target(outer, "model", trust=["owner/model", "owner/other"], imports=False).problems == []


def test_remote_code_of_a_nested_source():
    nested = Target("transformers.AutoConfig.from_pretrained", NAME)
    outer = Target("transformers.AutoModelForCausalLM.from_config", {"trust_remote_code": True, "config": nested})
    assert [problem.key for problem in check_target(outer, "model", imports=False).problems] == [
        "model.trust_remote_code"
    ]
    assert check_target(outer, "model", trust=["owner/model"], imports=False).problems == []


def test_roles_of_places():
    assert role_of_section("validation_dataset_code").name == "dataset"
    assert role_of_section("rng") is None
    assert role_of_argument("config").name == "hf_config"
    assert role_of_argument("worker_init_fn").name == "collate_fn"
    assert role_of_argument("anything").name == "nested"
