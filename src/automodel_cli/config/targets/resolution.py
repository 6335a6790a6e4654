"""Resolution of an allowed name to the object itself: the only place in this room that imports what a file names.

Phase 2. The object has to prove that it is what its name promised: where it is really defined and what it derives
from are checked, not how the file spelled it. A trusted module is imported with the current folder importable; a
trusted file is executed once, however often it is named.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from automodel_cli.config.problems import did_you_mean
from automodel_cli.config.targets.allowlist import Allowed, NotAllowed, Trust, split_file_target
from automodel_cli.config.targets.roles import ClassRule, Role
from automodel_cli.plain_text import for_shell
from automodel_cli.text import named_error

_FILES: dict[Path, ModuleType] = {}
_SOURCES: set[tuple[Path, str]] = set()


def resolve(allowed: Allowed, role: Role, trust: Trust) -> Callable[..., Any]:
    """The callable of an allowed name.

    Raises:
        NotAllowed: it cannot be imported, does not exist, or is not what the place takes.
    """
    if allowed.origin == "ours":
        return _known(allowed.name)
    if allowed.origin == "foreign":
        return _foreign(allowed.name, role)
    if parts := split_file_target(allowed.name):
        module = load_file(Path(parts[0]))
        found = _attribute(module, parts[1], allowed.name)
        return _check_user_object(found, allowed.name, module.__name__, trust)
    module, rest = _import_longest(allowed.name, with_cwd=True)
    found = _attribute(module, ".".join(rest), allowed.name)
    return _check_user_object(found, allowed.name, module.__name__, trust)


def _known(name: str) -> Callable[..., Any]:
    """What lies at a dotted name that is written in this program, not in a file."""
    module_name, _, attribute = name.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError):
        raise NotAllowed(f"{attribute} is not part of this version yet") from None
    return found


# ---------------------------------------------------------------------------------------------- foreign


def _foreign(name: str, role: Role) -> Callable[..., Any]:
    module, rest = _import_longest(name, with_cwd=False)
    if name in role.functions:
        return _callable(_attribute(module, ".".join(rest), name), name)
    method = rest.pop() if len(rest) > 1 else None
    owner = _attribute(module, ".".join(rest), name)
    rule = _rule_for(owner, role)
    if rule is None or (method is None and not rule.constructor) or (method and method not in rule.methods):
        raise NotAllowed(f"{name} is not {role.kind}")
    return _callable(owner if method is None else _class_method(owner, method, name), name)


def _rule_for(owner: Any, role: Role) -> ClassRule | None:
    """The rule that allows a class, judged by where it is defined and what it derives from."""
    if not isinstance(owner, type):
        return None
    for rule in role.rules:
        home = owner.__module__
        if home == rule.module or home.startswith(rule.module.rstrip(".") + "."):
            base: type = _known(rule.base) if rule.base else object  # type: ignore[assignment]
            if issubclass(owner, base) and (not rule.named or re.fullmatch(rule.named, owner.__name__)):
                return rule
    return None


def _class_method(owner: Any, method: str, name: str) -> Any:
    # transformers' concrete classes have only `_from_config`; the documented name is `from_config`
    if method == "from_config" and not hasattr(owner, method):
        method = "_from_config"
    return _attribute(owner, method, name)


# ------------------------------------------------------------------------------------------ user's code


def load_file(path: Path) -> ModuleType:
    """Execute a trusted file once; later calls give the same module, so its classes stay the same objects.

    Raises:
        NotAllowed: the file failed while it ran; the text says how and where.
    """
    real = path.resolve()
    if real in _FILES:
        return _FILES[real]
    digest = hashlib.blake2b(str(real).encode(), digest_size=4).hexdigest()
    name = f"automodel_user_{real.stem}_{digest}"
    module = ModuleType(name)
    module.__file__ = str(real)
    sys.modules[name] = module  # before it runs: pickling and dataclasses look a class's module up
    try:
        # The text that was trusted, not what lies beside it in __pycache__.
        exec(compile(real.read_bytes(), str(real), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise NotAllowed(f"{path} failed while it was loaded: {_what_failed(error, real)}") from error
    _FILES[real] = module
    return module


def _check_user_object(found: Any, name: str, module_name: str, trust: Trust) -> Callable[..., Any]:
    """Trust in a module is no trust in what it happens to import: the object has to come from trusted code."""
    owner = getattr(found, "__self__", None) if isinstance(getattr(found, "__self__", None), type) else found
    home = getattr(owner, "__module__", None) or type(owner).__module__
    real_name = f"{home}.{getattr(owner, '__qualname__', type(owner).__qualname__)}"
    if home == module_name or trust.lists(name) or trust.allows_name(real_name):
        return _callable(found, name)
    raise NotAllowed(f"{name} is really {real_name}; if you trust that, add --trust {for_shell(real_name)}")


def _callable(found: Any, name: str) -> Callable[..., Any]:
    if not callable(found):
        raise NotAllowed(f"{name} is a {type(found).__name__}, not something that can be called")
    result: Callable[..., Any] = found
    return result


# ---------------------------------------------------------------------------------------------- imports


def _import_longest(name: str, *, with_cwd: bool) -> tuple[ModuleType, list[str]]:
    """Import the longest prefix of a dotted name that is a module; the rest is left as attributes."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            return _import(module_name, with_cwd=with_cwd), parts[length:]
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise NotAllowed(f"{module_name} cannot be imported: {_what_failed(error)}") from error
        except Exception as error:
            raise NotAllowed(f"{module_name} failed while it was imported: {_what_failed(error)}") from error
    raise NotAllowed(f"there is no module {parts[0]}; looked in the current folder and in what is installed")


class _SourceLoader(SourceFileLoader):
    """Compiles a module's text each time: what lies in ``__pycache__`` may say something else."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the source file as it is."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _finder(folder: Path, package: str) -> Callable[[str], FileFinder]:
    """A path hook for ``folder`` and for the package in it."""
    inside = folder / package
    details = ((_SourceLoader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))

    def hook(path: str) -> FileFinder:
        found = Path(path or ".").absolute()
        if found != folder and found != inside and inside not in found.parents:
            raise ImportError(f"{path} is left to others")
        return FileFinder(path, *details)

    return hook


def _take_sources_of(folder: Path, package: str) -> None:
    if (folder, package) not in _SOURCES:
        _SOURCES.add((folder, package))
        sys.path_hooks.insert(0, _finder(folder, package))
        sys.path_importer_cache.pop(str(folder), None)


def _import(module_name: str, *, with_cwd: bool) -> ModuleType:
    """Import a module; a trusted one may lie in the current folder, which stays importable, but last.

    From there the text is taken that was trusted, never compiled files.
    """
    if not with_cwd:
        return importlib.import_module(module_name)
    here = str(Path.cwd())
    before = list(sys.path)
    sys.path.insert(0, here)
    _take_sources_of(Path(here), module_name.partition(".")[0])
    try:
        importlib.invalidate_caches()
        return importlib.import_module(module_name)
    finally:
        sys.path[:] = [*before, here] if here not in before else before


def _attribute(owner: Any, path: str, name: str) -> Any:
    found = owner
    for part in path.split(".") if path else []:
        try:
            found = getattr(found, part)
        except AttributeError:
            known = [item for item in dir(found) if not item.startswith("_")]
            where = getattr(found, "__name__", type(found).__name__)
            raise NotAllowed(f"{where} has no {part}{did_you_mean(part, known)} (in {name})") from None
        except (ImportError, RuntimeError) as error:  # transformers imports a submodule here
            raise NotAllowed(f"{name} cannot be imported: {_what_failed(error)}") from error
    return found


def _what_failed(error: BaseException, path: Path | None = None) -> str:
    """``ModuleNotFoundError: No module named 'einops' (my_model.py, line 3)``."""
    text = named_error(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    own = [f for f in frames if path is not None and f.filename == str(path)] or frames
    last = own[-1].filename if own else ""
    if not own or Path(last).parent == Path(importlib.__file__).parent or last == __file__:
        return text
    return f"{text} ({Path(last).name}, line {own[-1].lineno})"
