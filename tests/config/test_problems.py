import pytest

from automodel_cli.config.problems import Problem, did_you_mean, nearest, raise_problems
from automodel_cli.errors import ConfigError


def test_no_problem_is_no_error():
    raise_problems([])


def test_one_problem_is_one_line():
    with pytest.raises(ConfigError) as caught:
        raise_problems([Problem("cfg.yaml:3", "a.b", "unknown key")], hint="look")
    assert (caught.value.message, caught.value.hint) == ("cfg.yaml:3: a.b: unknown key", "look")


def test_several_are_listed_in_order_and_once():
    problems = [
        Problem("command line", "z", "wrong"),
        Problem("cfg.yaml:10", "b", "wrong"),
        Problem("cfg.yaml:9", "a", "wrong"),
        Problem("cfg.yaml:9", "a", "wrong"),
        Problem("", "", "general"),
    ]
    with pytest.raises(ConfigError) as caught:
        raise_problems(problems)
    assert caught.value.message.splitlines() == [
        "4 problems:",
        "  cfg.yaml:9: a: wrong",
        "  cfg.yaml:10: b: wrong",
        "  command line: z: wrong",
        "  general",
    ]


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("globl_batch_size", ["global_batch_size", "local_batch_size"], "global_batch_size"),
        ("MaxSteps", ["max_steps"], "max_steps"),
        ("max-steps", ["max_steps"], "max_steps"),
        ("MAX_STEPS", ["max_steps"], "max_steps"),
        ("max", ["max_norm", "foo"], "max_norm"),
        ("max", ["max_norm", "max_steps"], None),
        ("zzz", ["max_steps"], None),
        ("x", [], None),
    ],
)
def test_the_nearest_name(name, known, expected):
    assert nearest(name, known) == expected
    assert did_you_mean(name, known) == (f", did you mean {expected}?" if expected else "")
