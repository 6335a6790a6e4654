import math
import os
import re

import pytest
import yaml

from automodel_cli.config.targets.target import LocatedDict
from automodel_cli.config.yaml_tree import (
    expand_environment,
    parse_document,
    parse_value,
    place_of,
    placeholders,
    read_file,
    resolve_scalar,
)
from automodel_cli.errors import ConfigError


def load(text):
    root, problems = parse_document(text, "cfg.yaml")
    assert problems == []
    return root


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("6E-5", 6e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("+1.5e+3", 1500.0),
        ("12", 12),
        ("-7", -7),
        ("524_288", 524288),
        ("010", 10),
        ("0o17", 15),
        ("0xFF", 255),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("none", None),
        ("None", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1.2.3", "1.2.3"),
        ("_1", "_1"),
        ("nones", "nones"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_number():
    assert math.isnan(resolve_scalar(".nan"))


def test_pyyaml_reads_the_same_exponent_as_text():
    """The reason for our own scalar rules."""
    assert yaml.safe_load("lr: 3e-4") == {"lr": "3e-4"}
    assert load("lr: 3e-4") == {"lr": 3e-4}


def test_quotes_keep_text_but_none_is_null():
    assert load("a: '12'\nb: \"3e-4\"\nc: 'none'\nd: 'true'") == {
        "a": "12",
        "b": "3e-4",
        "c": None,
        "d": "true",
    }


def test_structures_agree_with_pyyaml_where_the_versions_agree():
    text = """
a: {x: 1, y: [1, 2.5, text]}
b:
  - p: 1
    q: "two words"
  - [3, 4]
c: |
  several
  lines
d: >-
  folded
  text
e: &anchor {k: v}
f: *anchor
g: {<<: *anchor, k2: v2}
"""
    assert load(text) == yaml.safe_load(text)


def test_every_key_knows_its_line():
    root, _ = parse_document("a: 1\nb:\n  c: 2\n  d:\n    - e: 3\n    - 4\n", "x/cfg.yaml")
    assert place_of(root, ("a",)) == "x/cfg.yaml:1"
    assert place_of(root, ("b", "c")) == "x/cfg.yaml:3"
    assert place_of(root, ("b", "d", 0, "e")) == "x/cfg.yaml:5"
    assert place_of(root, ("b", "d", 1)) == "x/cfg.yaml:6"
    assert place_of(root, ("b", "missing", "deep")) == "x/cfg.yaml:2"
    assert isinstance(root["b"], LocatedDict)
    assert root["b"].written["c"].where == "x/cfg.yaml:3"


def test_duplicate_keys_are_a_problem_that_names_both_lines():
    _, problems = parse_document("a: 1\nb: 2\na: 3\n", "cfg.yaml")
    assert [str(problem) for problem in problems] == ["cfg.yaml:3: a: given twice, first at cfg.yaml:1"]


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: !!python/object/new:os.system [true]",
        "a: !custom 3",
        "a: !!timestamp 2024-01-01",
        "a: !!set {x, y}",
    ],
)
def test_tags_that_build_objects_are_refused(text):
    _, problems = parse_document(text, "cfg.yaml")
    assert len(problems) == 1
    assert "not allowed" in problems[0].text
    assert problems[0].where == "cfg.yaml:1"


def test_plain_tags_are_understood():
    assert load("a: !!str 3\nb: !!int '4'\nc: !!float 5\n") == {"a": "3", "b": 4, "c": 5}


def test_environment(monkeypatch):
    monkeypatch.setenv("AM_NAME", "value")
    monkeypatch.delenv("AM_MISSING", raising=False)
    assert expand_environment("x/${AM_NAME}/y") == "x/value/y"
    assert expand_environment("$AM_NAME.bin") == "value.bin"
    assert expand_environment("${AM_MISSING,a,b}") == "a,b"
    assert expand_environment("${AM_MISSING,}") == ""
    assert expand_environment("${oc.env:AM_NAME}") == "value"
    assert expand_environment("costs $5 and 100$") == "costs $5 and 100$"
    assert expand_environment("$${AM_NAME}") == "${AM_NAME}"
    with pytest.raises(ValueError, match="AM_MISSING is not set"):
        expand_environment("${AM_MISSING}")
    with pytest.raises(ValueError, match="references to keys"):
        expand_environment("${model.n_embd}")


def test_environment_values_are_typed_and_remembered(monkeypatch):
    monkeypatch.setenv("AM_STEPS", "100")
    root, problems = parse_document("a: ${AM_STEPS}\nb: '${AM_STEPS}'\nc: [x, '$AM_STEPS']\n", "cfg.yaml")
    assert problems == []
    assert root == {"a": 100, "b": "100", "c": ["x", "100"]}
    found = placeholders(root)
    assert found == {("a",): "${AM_STEPS}", ("b",): "${AM_STEPS}", ("c", 1): "$AM_STEPS"}
    assert (found[("a",)].quoted, found[("b",)].quoted) == (False, True)


def test_missing_environment_is_a_problem_with_its_place(monkeypatch):
    monkeypatch.delenv("AM_MISSING", raising=False)
    _, problems = parse_document("a: 1\nb: ${AM_MISSING}\n", "cfg.yaml")
    assert problems[0].where == "cfg.yaml:2"
    assert "AM_MISSING" in problems[0].text


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\t- x", "a: *nowhere", "a: 'open"])
def test_bad_yaml_names_the_line(text):
    with pytest.raises(ConfigError, match=r"cfg\.yaml:\d+: not valid YAML"):
        parse_document(text, "cfg.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2", "just text", "42"])
def test_a_document_that_is_no_mapping(text):
    with pytest.raises(ConfigError, match="expected keys and values"):
        parse_document(text, "cfg.yaml")


def test_an_empty_document_is_an_empty_mapping():
    assert load("") == {}
    assert load("# only a comment\n") == {}


def test_aliases_cannot_exhaust_memory():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    with pytest.raises(ConfigError, match="too many values"):
        parse_document(bomb, "cfg.yaml")


def test_an_alias_to_itself_is_refused():
    with pytest.raises(ConfigError, match="too many values"):
        parse_document("a: &a [*a]\n", "cfg.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("null", None),
        ("", None),
        ("[1, a, null]", [1, "a", None]),
        ("{_target_: x.Y, lr: 3e-4}", {"_target_": "x.Y", "lr": 3e-4}),
        ("'12'", "12"),
        ("data/*.bin", "data/*.bin"),
        ("*.bin", "*.bin"),
        ("a: b", "a: b"),
        ("x #1", "x #1"),
        ("@home", "@home"),
        ("-1", -1),
    ],
)
def test_values_on_the_command_line(text, value):
    found, _, problems = parse_value(text, "command line")
    assert problems == []
    assert found == value


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_file(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_file(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_file(tmp_path / "binary.yaml")


DEEP = 5_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: " + "[" * DEEP + "]" * DEEP, "cfg.yaml:2: nested deeper than 200 levels"),
        ("a: 1\nb: " + "{a: " * DEEP + "1" + "}" * DEEP, "cfg.yaml:2: nested deeper than 200 levels"),
        ("".join(" " * n + f"k{n}:\n" for n in range(300)), "nested deeper than 200 levels"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 400)),
            "nested deeper than 200",
        ),
    ],
)
def test_nesting_is_limited_before_anything_recurses(text, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_document(text, "cfg.yaml")


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "1" * 5000, "0x" + "f" * 5000, "0." + "1" * 5000, str(2**64)])
def test_numbers_that_nothing_could_take(number):
    _, problems = parse_document(f"a: 1\nb: {number}\n", "cfg.yaml")
    assert [problem.where for problem in problems] == ["cfg.yaml:2"]
    assert "number" in problems[0].text and len(problems[0].text) < 100
    assert parse_value(number, "command line")[2]


def test_a_seed_of_64_bits_is_no_such_number():
    assert parse_document(f"seed: {2**64 - 1}", "cfg.yaml")[1] == []


def test_a_pipe_of_the_users_own_shell_is_read():
    """``-c <(envsubst < run.yaml)``."""
    reading, writing = os.pipe()
    os.write(writing, b"model: 1\n")
    os.close(writing)
    root, problems = read_file(f"/dev/fd/{reading}")
    os.close(reading)
    assert not problems and root == {"model": 1}
