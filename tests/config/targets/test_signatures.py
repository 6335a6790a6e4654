import inspect
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from automodel_cli.config.explain import describe_type
from automodel_cli.config.targets.signatures import check_arguments, from_callable, from_source

SOURCE = textwrap.dedent("""
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import Any, Literal, Optional
    Mode = Literal["a", "b"]

    def function(n: int, *, x: float = 1.0, flag: bool = False, name: str | None = None, mode: Mode = "a",
                 sizes: list[int] = (), pair: tuple[float, float] = (0, 1), where: str | Path = ".",
                 either: bool | Literal["auto"] = "auto", tensor: float | Tensor = 0.0, what: Foo = None,
                 call: Callable[[int], int] | None = None, plain=3, quoted: "int | None" = None,
                 optional: Optional[int] = None, table: dict[str, int] | None = None) -> None: ...

    def takes_any(a: int, **more: Any): ...

    class Plain:
        def __init__(self, a: int, b: str = "x"): ...
        @classmethod
        def make(cls, c: int): ...

    class Child(Plain): ...
    class Foreign(SomethingElse): ...
    class Empty: ...

    @dataclass(frozen=True)
    class Data:
        a: int
        b: float = 2.0
""")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    return path


def check(signature, supplied=(), **arguments):
    converted, problems = check_arguments(
        signature, arguments, callee="function", supplied=supplied, opaque=lambda value: False
    )
    return converted, [f"{problem.name}: {problem.text}" for problem in problems]


def test_right_arguments_pass_and_are_converted(source):
    signature = from_source(source, "function")
    converted, problems = check(
        signature, n=3, x=1, flag=True, name=None, mode="b", sizes=[1, 2], pair=[0.9, 1], either="auto",
        tensor=2, what={"any": "thing"}, call="x", plain=object, quoted=None, optional=4, table={"a": 1},
    )  # fmt: skip
    assert problems == []
    assert converted["x"] == 1.0
    assert converted["pair"] == (0.9, 1.0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "n: is missing: function needs it"),
        ({"n": "wide"}, "n: expected a whole number, found the text 'wide'"),
        ({"n": True}, "n: expected a whole number, found true"),
        ({"n": 1.5}, "n: expected a whole number, found 1.5"),
        ({"n": None}, "n: expected a whole number, found null"),
        ({"n": 1, "x": "fast"}, "x: expected a number, found the text 'fast'"),
        ({"n": 1, "flag": "perhaps"}, "flag: expected true or false, found the text 'perhaps'"),
        ({"n": 1, "mode": "c"}, "mode: expected a or b, found the text 'c'"),
        ({"n": 1, "sizes": 3}, "sizes: expected a list of a whole number, found 3"),
        ({"n": 1, "either": "never"}, "either: expected true, false or auto, found the text 'never'"),
        ({"n": 1, "tensor": "x"}, "tensor: expected a number, found the text 'x'"),
        ({"n": 1, "quoted": "x"}, "quoted: expected a whole number or null, found the text 'x'"),
        ({"n": 1, "table": 3}, "table: expected a mapping or null, found 3"),
        ({"n": 1, "flags": True}, "flags: function takes no such argument, did you mean flag?"),
    ],
)
def test_wrong_arguments_are_explained(source, arguments, problem):
    assert check(from_source(source, "function"), **arguments)[1] == [problem]


def test_a_callable_that_takes_anything_is_checked_where_it_can_be(source):
    signature = from_source(source, "takes_any")
    assert check(signature, a=1, anything="goes")[1] == []
    assert check(signature, a="x")[1] == ["a: expected a whole number, found the text 'x'"]


def test_supplied_arguments_are_not_for_files(source):
    signature = from_source(source, "Plain")
    assert check(signature, supplied=("a",))[1] == []
    assert check(signature, supplied=("a",), a=1)[1] == ["a: is supplied by the run; leave it out"]


def test_classes(source):
    assert list(from_source(source, "Plain").parameters) == ["a", "b"]
    assert list(from_source(source, "Child").parameters) == ["a", "b"]
    assert list(from_source(source, "Plain.make").parameters) == ["c"]
    assert list(from_source(source, "Data").parameters) == ["a", "b"]
    assert from_source(source, "Data").parameters["a"].required
    assert from_source(source, "Empty").parameters == {}
    assert from_source(source, "Foreign") is None
    assert from_source(source, "absent") is None


def test_a_changed_file_is_read_again(source):
    assert list(from_source(source, "Plain").parameters) == ["a", "b"]
    source.write_text("class Plain:\n    def __init__(self, z): ...\n")
    assert list(from_source(source, "Plain").parameters) == ["z"]


def live(
    n: int,
    *,
    x: float = 1.0,
    name: str | None = None,
    mode: Literal["a", "b"] = "a",
    sizes: Sequence[int] = (),
    optional: Optional[int] = None,  # noqa: UP045
    lies: int = None,  # type: ignore[assignment]  # noqa: RUF013
    call: Callable[..., Any] | None = None,
    **more: Any,
) -> None: ...


def test_live_callables_are_read_like_sources():
    from_object = from_callable(live)
    from_text = from_source(Path(__file__), "live")
    assert from_object.open and from_text.open
    assert list(from_object.parameters) == list(from_text.parameters)
    for name, parameter in from_object.parameters.items():
        other = from_text.parameters[name]
        assert describe_type(parameter.annotation) == describe_type(other.annotation), name
        assert parameter.required == other.required
    assert check(from_object, n=1, lies=None)[1] == []


def test_signatures_agree_with_inspect():
    """Reading source must find what Python itself finds."""
    ours = from_source(Path(inspect.getfile(check_arguments)), "check_arguments")
    assert list(ours.parameters) == list(inspect.signature(check_arguments).parameters)


def test_a_builtin_without_a_signature():
    assert from_callable(dict.fromkeys) is None or from_callable(dict.fromkeys).parameters is not None
