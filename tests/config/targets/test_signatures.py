import importlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from automodel_cli.config.targets.roles import ROLES
from automodel_cli.config.targets.signatures import (
    check_arguments,
    declared,
    from_callable,
    names_in_source,
)

SOURCE = textwrap.dedent("""
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import Any, Literal, Optional
    Mode = Literal["a", "b"]
    class Tensor: ...

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
    class Empty: ...

    @dataclass(frozen=True)
    class Data:
        a: int
        b: float = 2.0
""")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_text(SOURCE + "class Foreign(SomethingElse): ...\n")
    return path


@pytest.fixture
def code(monkeypatch) -> types.ModuleType:
    """The same, imported; ``Foo``, ``Path`` and ``Callable`` are names that do not exist."""
    module = types.ModuleType("code_of_this_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(SOURCE.replace("@dataclass", "__name__ = 'code_of_this_test'\n@dataclass"), vars(module))
    return module


def check(signature, supplied=(), **arguments):
    converted, problems = check_arguments(
        signature, arguments, callee="function", supplied=supplied, opaque=lambda value: False
    )
    return converted, [f"{name}: {text}" for name, text in problems]


def test_right_arguments_pass_and_are_converted(code):
    signature = from_callable(code.function)
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
def test_wrong_arguments_are_explained(code, arguments, problem):
    assert check(from_callable(code.function), **arguments)[1] == [problem]


def test_a_callable_that_takes_anything_is_checked_where_it_can_be(code):
    signature = from_callable(code.takes_any)
    assert check(signature, a=1, anything="goes")[1] == []
    assert check(signature, a="x")[1] == ["a: expected a whole number, found the text 'x'"]


def test_supplied_arguments_are_not_for_files(code):
    signature = from_callable(code.Plain)
    assert check(signature, supplied=("a",))[1] == []
    assert check(signature, supplied=("a",), a=1)[1] == ["a: is supplied by the run; leave it out"]


def test_names_of_classes_in_a_file_that_is_not_imported(source):
    assert list(names_in_source(source, "Plain").parameters) == ["a", "b"]
    assert list(names_in_source(source, "Child").parameters) == ["a", "b"]
    assert list(names_in_source(source, "Plain.make").parameters) == ["c"]
    assert list(names_in_source(source, "Data").parameters) == ["a", "b"]
    assert names_in_source(source, "Data").parameters["a"].required
    assert names_in_source(source, "Empty").parameters == {}
    assert names_in_source(source, "Foreign") is None
    assert names_in_source(source, "absent") is None


def test_a_changed_file_is_read_again(source):
    assert list(names_in_source(source, "Plain").parameters) == ["a", "b"]
    source.write_text("class Plain:\n    def __init__(self, z): ...\n")
    assert list(names_in_source(source, "Plain").parameters) == ["z"]


def test_names_in_a_file_are_those_of_the_object(source, code):
    for name in ("function", "takes_any", "Plain", "Child", "Data"):
        named, read = names_in_source(source, name), from_callable(getattr(code, name))
        assert named.open == read.open
        assert {one.name: one.required for one in named.parameters.values()} == {
            one.name: one.required for one in read.parameters.values()
        }
    assert check(names_in_source(source, "function"), n="any type")[1] == []


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


def test_of_live_callables_unusual_annotations_are_understood():
    signature = from_callable(live)
    assert signature.open
    assert check(signature, n=1, lies=None, sizes=[1], optional=None, call=print)[1] == []
    assert check(signature, n=1, lies="x")[1] == ["lies: expected a whole number or null, found the text 'x'"]


OURS = [(target, schema) for role in ROLES.values() for target, schema in role.ours.items() if schema]


@pytest.mark.parametrize(("target", "schema"), OURS)
def test_our_targets_take_what_is_declared_for_them(target, schema):
    module, _, name = target.rpartition(".")
    function = inspect.signature(getattr(importlib.import_module(module), name))
    parameters = [one for one in function.parameters.values() if one.kind is not one.VAR_KEYWORD]
    shown = declared(schema).parameters
    assert [one.name for one in parameters] == list(shown)
    for parameter in parameters:
        assert (parameter.default is parameter.empty) == shown[parameter.name].required


def test_what_is_declared_has_the_texts_of_its_docstring():
    meaning = declared("automodel_cli.models.gpt2_config.GPT2Config").parameters["n_layer"].meaning
    assert meaning == "width, depth, attention heads."


def test_a_builtin_without_a_signature():
    assert from_callable(dict.fromkeys) is None or from_callable(dict.fromkeys).parameters is not None
