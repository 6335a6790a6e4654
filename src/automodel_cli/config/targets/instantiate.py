"""Open sections: checking targets in two phases, and building what they name.

Phase 1 imports nothing that a file names: spelling, admission, trust, arguments of our own targets and of trusted
files. Phase 2 imports torch and transformers and looks at the objects themselves. Only `instantiate` calls anything.
Nested targets are built first, depth first.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_cli import transformers_calls
from automodel_cli.config.other_names import suggestion
from automodel_cli.config.problems import Problem, raise_problems
from automodel_cli.config.targets import signatures, transformers_signatures
from automodel_cli.config.targets.allowlist import (
    Allowed,
    NotAllowed,
    Trust,
    allow,
    sources_of,
    split_file_target,
    translate,
    unsupported_arguments,
    untrusted_code,
)
from automodel_cli.config.targets.resolution import resolve
from automodel_cli.config.targets.roles import ROLES, Role, is_function_key, role_of_argument
from automodel_cli.config.targets.signatures import NUMBER, CallSignature, Parameter
from automodel_cli.config.targets.target import REDACTED, TARGET_KEY, Target, describe_value, is_secret
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.text import named_error

if TYPE_CHECKING:
    from automodel_cli.config.schema.pretrain import PretrainConfig


@dataclass(frozen=True)
class _Place:
    """Where a target stands: its role, the dotted key, and what the user trusts."""

    role: Role
    key: str
    trust: Trust

    def allow(self, target: Target) -> Allowed:
        """What the target's name stands for here."""
        return allow(target.name, self.role, self.trust)

    def below(self, argument: str) -> _Place:
        """The place of a target that is (in) an argument of this one."""
        return _Place(role_of_argument(argument), f"{self.key}.{argument}", self.trust)


@dataclass(frozen=True)
class Checked:
    """What is known of a target: its arguments by their present names and with their types, and what is wrong."""

    problems: list[Problem]
    arguments: dict[str, Any] = field(default_factory=dict)
    signature: CallSignature | None = None
    function: Callable[..., Any] | None = None
    """The object itself, once it was imported."""
    is_complete: bool = True
    """Whether importing what it names could add nothing: every argument is known, and there is no nested target."""


def check_target(
    target: Target, role: str, *, key: str | None = None, trust: Sequence[str] = (), imports: bool = True
) -> Checked:
    """Check a target and its nested ones: with ``imports`` what they name is imported too; nothing is called."""
    return _check(target, _Place(ROLES[role], key or role, Trust(trust)), imports=imports)


def check_foreign(config: PretrainConfig, *, trust: Sequence[str] = ()) -> None:
    """Phase 2 for a whole configuration: import what it names and check that it exists, is allowed, and fits.

    After it the arguments of each section have the types that the callable takes (``amsgrad: no`` is false), also for
    those who only read the section.

    Raises:
        ConfigError: all problems together.
    """
    checked = [
        (target, check_target(target, role, key=key, trust=trust)) for key, role, target in config.open_sections()
    ]
    raise_problems([problem for _, found in checked for problem in found.problems])
    for target, found in checked:
        plain = {key: value for key, value in found.arguments.items() if isinstance(value, (bool, int, float))}
        target.arguments.update({key: plain[key] for key in target.arguments if key in plain})


def _check(target: Target, place: _Place, *, imports: bool) -> Checked:
    found: list[tuple[tuple[str, ...], str]] = []
    try:
        allowed = place.allow(target)
        found += untrusted_code(target, place.trust) if allowed.origin != "user" else ()
        callee, signature, function = _open_callable(allowed, target, place, imports=imports)
    except NotAllowed as error:
        return Checked(_located(target, place, [*found, ((TARGET_KEY,), str(error))]))
    found += [((name,), text) for name, text in unsupported_arguments(target)]
    arguments, _ = translate(target, place.role)
    nested = list(_nested(target, arguments))
    if place.role.name != "collate_fn":  # functions are named, not called
        arguments, wrong = _checked(arguments, callee, signature, place.role)
        found += [((name,), text) for name, text in wrong]
        if allowed.origin == "ours" and not found and not nested:
            texts = _refused(place.role.ours[allowed.name], arguments)
            found += [((), text.removeprefix(f"{place.key} ")) for text in texts]
    problems = _located(target, place, found)
    for name, inner in nested:
        problems += _check(inner, place.below(name), imports=imports).problems
    is_complete = signature is not None and not nested
    return Checked(list(dict.fromkeys(problems)), arguments, signature, function, is_complete)


def _located(target: Target, place: _Place, found: list[tuple[tuple[str, ...], str]]) -> list[Problem]:
    return [
        Problem(_where(target, path[0]) if path else target.where, ".".join((place.key, *path)), text)
        for path, text in found
    ]


def _where(target: Target, argument: str) -> str:
    return target.key_where.get(argument, target.where)


def _nested(target: Target, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Target]]:
    """``(argument, target)`` of each target in the arguments, in lists and mappings too; names of functions as well."""
    for name, value in arguments.items():
        if is_function_key(name) and isinstance(value, str):
            yield name, Target(value, where=_where(target, name))
        else:
            yield from ((name, nested) for nested in _targets_in(value))


def _targets_in(value: Any) -> Iterator[Target]:
    if isinstance(value, Target):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            named = is_function_key(str(key)) and isinstance(item, str)
            yield from (Target(item),) if named else _targets_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _targets_in(item)


# ------------------------------------------------------------------------------------------- signatures


def _open_callable(
    allowed: Allowed, target: Target, place: _Place, *, imports: bool
) -> tuple[str, CallSignature | None, Callable[..., Any] | None]:
    """Name, arguments and object of an allowed callable, as far as they are known without or after its import."""
    file_parts = split_file_target(allowed.name)
    name = file_parts[1] if file_parts else allowed.name
    short = name.rpartition(".")[2]
    function = resolve(allowed, place.role, place.trust) if imports else None
    if allowed.origin == "ours":
        return short, signatures.declared(place.role.ours[allowed.name]), function
    if allowed.origin == "foreign":
        fixed = transformers_signatures.fixed_signature(allowed.name, place.role.name)
        if fixed is not None:
            return name, fixed, function
    if function is not None:
        return name, _signature_of(function, target, place.role), function
    if file_parts:
        return short, _file_signature(*file_parts), None
    return name, _optimizer_signature(allowed.name), None


def _signature_of(function: Callable[..., Any], target: Target, role: Role) -> CallSignature | None:
    if role.name == "hf_config" and isinstance(function, type):
        return transformers_signatures.config_signature(function)
    if role.name == "hf_config" and target.name.endswith(".for_model"):
        return transformers_signatures.model_type_signature(target.arguments.get("model_type"))
    return signatures.from_callable(function)


_OPTIMIZER_TYPES: dict[str, Any] = {
    **dict.fromkeys(("lr", "weight_decay", "momentum", "dampening", "lr_decay", "rho"), NUMBER),
    **dict.fromkeys(("amsgrad", "nesterov", "maximize", "capturable", "differentiable"), bool),
    **dict.fromkeys(("foreach", "fused"), bool | None),
    "betas": tuple[NUMBER, NUMBER],
}


def _optimizer_signature(name: str) -> CallSignature | None:
    """Arguments of one of torch's optimizers: names from its source file, as torch takes seconds to import."""
    package, _, kind = name.rpartition(".")
    torch = importlib.util.find_spec("torch") if package == "torch.optim" else None
    path = Path(torch.origin or "").with_name("optim") / f"{kind.lower()}.py" if torch is not None else None
    found = signatures.names_in_source(path, kind) if path is not None and path.is_file() else None
    if found is None:
        return None
    typed = {
        name: replace(parameter, annotation=_OPTIMIZER_TYPES.get(name, Any))
        for name, parameter in found.parameters.items()
    }
    return replace(found, parameters=typed)


def _refused(schema: str, arguments: Mapping[str, Any]) -> list[str]:
    """What the class that declares our own target's arguments says against them together."""
    kind: Any = signatures.declaring(schema) if schema else None
    if not hasattr(kind, "__post_init__"):
        return []
    try:
        kind(**arguments)
    except ConfigError as error:
        return [error.message]
    return []


def _file_signature(path: str, name: str) -> CallSignature | None:
    try:
        return signatures.names_in_source(Path(path), name)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise NotAllowed(f"{path} cannot be read as Python: {error}") from None


def _checked(
    arguments: Mapping[str, Any], callee: str, signature: CallSignature | None, role: Role
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    # without a signature only what the run supplies itself can be judged
    signature = signature or CallSignature({}, open=True)
    of_role = {name: Parameter(name, kind) for name, kind in role.extra.items()}
    converted, problems = signatures.check_arguments(
        CallSignature({**signature.parameters, **of_role}, open=signature.open),
        arguments,
        callee=callee,
        supplied=role.injected,
        opaque=lambda value: any(True for _ in _targets_in(value)),
    )
    faulty = [name for name, _ in problems]
    problems += [
        (name, f"expected {bounds}, found {_each_of(converted[name])}")
        for name, bounds in role.bounds.items()
        if name in converted and name not in faulty and not bounds.hold(converted[name])
    ]
    return converted, problems


def _each_of(value: Any) -> str:
    """A number, or those of a pair, such as betas."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    return " and ".join(map(describe_value, value)) if pair else describe_value(value)


# --------------------------------------------------------------------------------------------- building


def instantiate(
    target: Target,
    role: str,
    *,
    inject: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    key: str | None = None,
) -> Any:
    """Build what a target names, nested targets first.

    Args:
        role: the section's role, which decides what may be called (`roles`).
        inject: arguments from the run. Those of the role's ``injected`` are always passed; others fill in where the
            file says nothing and the callable takes such an argument.
        trust: names and files whose code the user allows.

    Raises:
        ConfigError: the target is not allowed, does not exist, does not fit, or failed when it was called.
    """
    return _build(target, _Place(ROLES[role], key or role, Trust(trust)), dict(inject or {}))


def resolve_function(name: str, role: str, *, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The object that a plain name in a section of this role stands for.

    Raises:
        ConfigError: the name is not allowed or does not exist.
    """
    place = _Place(ROLES[role], role, Trust(trust))
    try:
        return resolve(allow(name, place.role, place.trust), place.role, place.trust)
    except NotAllowed as error:
        raise ConfigError(f"{role}: {error}") from error


def built_arguments(target: Target, role: str, *, trust: Sequence[str] = (), key: str | None = None) -> dict[str, Any]:
    """A target's arguments, checked, under their present names and with nested targets built, without the call.

    Raises:
        ConfigError: as `instantiate`, short of the call.
    """
    return _prepare(target, _Place(ROLES[role], key or role, Trust(trust)), {})[1]


def _build(target: Target, place: _Place, inject: dict[str, Any]) -> Any:
    function, arguments = _prepare(target, place, inject)
    try:
        return _call(function, arguments, target, place)
    except AutomodelError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{target.where or place.key}: {target.name} failed: {named_error(error, 400)}",
            _what_helps(error, arguments, place),
        ) from error


def _prepare(target: Target, place: _Place, inject: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    checked = _check(target, place, imports=True)
    raise_problems(checked.problems)
    arguments = dict(checked.arguments)
    for name, value in inject.items():
        takes = checked.signature is None or name in checked.signature.parameters
        if name in place.role.injected or (takes and name not in arguments):
            arguments[name] = value
    assert checked.function is not None
    return checked.function, {name: _build_nested(name, value, place) for name, value in arguments.items()}


def _build_nested(name: str, value: Any, place: _Place) -> Any:
    if is_function_key(name) and isinstance(value, (str, Target)):
        return _function(value, place.below(name))
    if isinstance(value, Target):
        return _build(value, place.below(name), {})
    if isinstance(value, Mapping):
        return {
            key: _build_nested(key if is_function_key(str(key)) else name, item, place) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_build_nested(name, item, place) for item in value)
    return value


def _function(value: str | Target, place: _Place) -> Callable[..., Any]:
    """A function by name; as a target with arguments, the function with these filled in."""
    target = value if isinstance(value, Target) else Target(value)
    function = resolve(place.allow(target), place.role, place.trust)
    arguments = {name: _build_nested(name, item, place) for name, item in target.arguments.items()}
    return functools.partial(function, **arguments) if arguments else function


def _call(function: Callable[..., Any], arguments: dict[str, Any], target: Target, place: _Place) -> Any:
    owner = getattr(function, "__self__", None)
    home = str(getattr(owner if isinstance(owner, type) else function, "__module__", ""))
    sources = sources_of(target)
    is_trusted = bool(sources) and all(map(place.trust.allows_source, sources))
    try:
        if not home.startswith("transformers."):
            return function(**arguments)
        return transformers_calls.call(function, arguments, role=place.role.name, is_trusted=is_trusted)
    except transformers_calls.FieldErrors as error:
        raise_problems(
            [
                Problem(_where(target, name), f"{place.key}.{name}", f"{text}{suggestion(name, error.known)}")
                for name, text in error.problems.items()
            ]
        )
        raise


def _what_helps(error: Exception, arguments: Mapping[str, Any], place: _Place) -> str:
    if isinstance(error, OSError) and "pretrained_model_name_or_path" in arguments:
        return f"if the Hub cannot be reached, give a folder: --{place.key}.pretrained_model_name_or_path FOLDER"
    return f"it was called with {_shown(arguments)}"


def _shown(arguments: Mapping[str, Any]) -> str:
    """Arguments on one line for an error message, secrets blanked and long values cut."""
    parts = []
    for name, value in arguments.items():
        text = REDACTED if is_secret(name) else repr(value)
        parts.append(f"{name}={text if len(text) <= 60 else text[:57] + '...'}")
    return ", ".join(parts) or "no arguments"
