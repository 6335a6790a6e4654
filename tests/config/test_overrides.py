import pytest

from automodel_cli.config.overrides import apply_override, parse_overrides
from automodel_cli.config.yaml_tree import parse_document


def merged(text, *tokens):
    root, _ = parse_document(text, "cfg.yaml")
    overrides, problems = parse_overrides(tokens)
    problems += [problem for override in overrides if (problem := apply_override(root, override))]
    return root, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["--a.b", "2"], {"a": {"b": 2}}),
        (["--a.b=2"], {"a": {"b": 2}}),
        (["a.b=2"], {"a": {"b": 2}}),
        (["a=2"], {"a": 2}),
        (["--a.b"], {"a": {"b": True}}),
        (["--a.b", "--a.c", "x"], {"a": {"b": True, "c": "x"}}),
        (["--a.b", "-1"], {"a": {"b": -1}}),
        (["--a.b", "null"], {"a": {"b": None}}),
        (["--a.b", "none"], {"a": {"b": None}}),
        (["--a.b", "3e-4"], {"a": {"b": 3e-4}}),
        (["--a.b", "[1, 2]"], {"a": {"b": [1, 2]}}),
        (["--a.b="], {"a": {"b": None}}),
        (["a.b=x=y"], {"a": {"b": "x=y"}}),
        (["--a.b", "1", "--a.b", "2"], {"a": {"b": 2}}),
        (["--", "a.b=2"], {"a": {"b": 2}}),
        (["--a.b.c.d", "1"], {"a": {"b": {"c": {"d": 1}}}}),
    ],
)
def test_forms(tokens, expected):
    found, problems = merged("", *tokens)
    assert problems == []
    assert found == expected


def test_an_override_replaces_only_its_own_key():
    found, problems = merged("a: {b: 1, c: 2}\nd: 3", "--a.b", "9")
    assert problems == []
    assert found == {"a": {"b": 9, "c": 2}, "d": 3}


def test_lists_are_reached_by_index():
    text = "a: [10, 20, {x: 1}]"
    assert merged(text, "--a.0", "5")[0] == {"a": [5, 20, {"x": 1}]}
    assert merged(text, "--a.2.x", "5")[0] == {"a": [10, 20, {"x": 5}]}
    assert merged(text, "a.3=7")[0] == {"a": [10, 20, {"x": 1}, 7]}


def test_a_bad_index_is_a_problem():
    assert merged("a: [1, 2]", "--a.5", "x")[1] == [
        "command line: a.5: expected an index from 0 to 1 (2 appends), found 5"
    ]
    assert "found key" in merged("a: [1, 2]", "--a.key", "x")[1][0]


def test_a_path_through_a_value_is_a_problem_and_changes_nothing():
    found, problems = merged("a: {b: 3}", "--a.b.c", "1")
    assert found == {"a": {"b": 3}}
    assert problems == ["command line: a.b.c: a.b is a single value and has no key c"]


def test_null_sections_become_mappings():
    assert merged("wandb: null", "--wandb.project", "p")[0] == {"wandb": {"project": "p"}}


@pytest.mark.parametrize("token", ["stray", "-x", "7", "path/to.yaml", "--", "---", "--a..b", "--1a", "=3", "a b=c"])
def test_no_token_is_dropped(token):
    overrides, problems = parse_overrides(["--k.v", "1", token])
    if token == "--":
        assert problems == []
        return
    taken_as_value = any(token in str(override.value) for override in overrides)
    assert len(problems) == 1 or taken_as_value
    assert not problems or token in str(problems[0])


def test_all_stray_tokens_are_reported():
    _, problems = parse_overrides(["one", "a.b=1", "two", "-z"])
    assert len(problems) == 3


def test_environment_in_overrides(monkeypatch):
    monkeypatch.setenv("AM_RUN", "r7")
    assert merged("", "--wandb.name", "${AM_RUN}")[0] == {"wandb": {"name": "r7"}}
    monkeypatch.delenv("AM_RUN")
    assert "AM_RUN is not set" in merged("", "--wandb.name", "${AM_RUN}")[1][0]
