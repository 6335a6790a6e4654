"""Weights & Biases, optional: the same records as ``metrics.jsonl``, sent to a W&B run.

The W&B run's id is kept in ``wandb_run.json`` of the run folder, so a resumed run continues the same W&B run.
The configuration is passed with secrets masked. Steps are sent as a metric of their own (``step``), not as
W&B's internal counter: that one only grows, and would drop what a run resumed from an older checkpoint says.

``wandb`` is imported only when a run asks for it. Whatever goes wrong in it is one warning; training goes on.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from automodel_cli.errors import DataError
from automodel_cli.files import write_json
from automodel_cli.json_files import FileModel, read_model

RUN_NAME = "wandb_run.json"
REDACTED = "<redacted>"
DEFAULT_PROJECT = "automodel"

_SECRET_KEY = re.compile(r"(key|token|secret|password)$", re.IGNORECASE)
# Keys that end like a secret and hold none: special tokens, column names, the name of a metric.
_HARMLESS_KEY = re.compile(
    r"^((bos|eos|eot|pad|unk|sep|cls|mask|image|audio|decoder_start)_token|(text|best_metric|sort|group)_key)$",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(\w+://[^/\s:@]*):[^/\s@]+@")


def redact(value: Any) -> Any:
    """``value`` (nested dicts and lists) with the values of secret-looking keys masked.

    Secret: the key is or ends with key, token, secret or password, in any case (``hf_token``,
    ``WANDB_API_KEY``); not ``bos_token``, ``text_key`` and their like. None and booleans stay: they hold
    none. Passwords inside URLs are masked too.
    """
    if isinstance(value, Mapping):
        return {key: REDACTED if _is_secret(str(key), inner) else redact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return _URL_PASSWORD.sub(rf"\1:{REDACTED}@", value) if isinstance(value, str) else value


def redact_command_line(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with secret-looking values masked: ``--a.key V``, ``--a-key=V``, ``a.key=V``."""
    masked: list[str] = []
    value_follows = False
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        secret = _is_secret(re.split(r"[.-]", key)[-1], value="some") and not value_follows
        if value_follows:
            masked.append(REDACTED)
        else:
            masked.append(f"{key}={REDACTED}" if secret and equals else redact(argument))
        value_follows = secret and not equals and argument.startswith("-")
    return masked


@contextlib.contextmanager
def _command_line_masked() -> Iterator[None]:
    """W&B stores the command line with the run, as it stands when the run starts."""
    kept = sys.argv
    sys.argv = redact_command_line(kept)
    try:
        yield
    finally:
        sys.argv = kept


def _is_secret(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or value == "":
        return False
    return bool(_SECRET_KEY.search(key)) and not _HARMLESS_KEY.match(key)


def init_arguments(settings: Mapping[str, Any], run_folder: Path, run_id: str) -> dict[str, Any]:
    """The ``wandb:`` section as arguments of ``wandb.init``; ``save_dir`` is its ``dir``."""
    ours = ("enable", "resume")  # a resumed run always continues its own W&B run
    given = {key: value for key, value in settings.items() if key not in ours and value not in (None, ())}
    folder = given.pop("save_dir", None)
    defaults = {"project": DEFAULT_PROJECT, "dir": str(folder or run_folder), "resume": "allow"}
    return {**defaults, **given, "id": run_id}


def choose_run_id(settings: Mapping[str, Any], run_folder: Path) -> str:
    """The id in the settings, else the one this run folder used for the same project, else a new one."""
    if settings.get("id"):
        return str(settings["id"])
    stored = _read_stored(run_folder / RUN_NAME)
    if stored is not None and _where(stored.model_dump()) == _where(settings):
        return stored.id
    return secrets.token_hex(4)


def _where(settings: Mapping[str, Any]) -> tuple[str | None, str]:
    return settings.get("entity"), settings.get("project") or DEFAULT_PROJECT


class _StoredRun(FileModel):
    """``wandb_run.json``; the id becomes part of paths and addresses."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    entity: str | None = None
    project: str | None = None


def _read_stored(path: Path) -> _StoredRun | None:
    try:
        return read_model(path, _StoredRun)
    except DataError:  # none yet, or damaged: a new run of W&B
        return None


class WandbLog:
    """A live W&B run; the first failure warns and ends it, training does not notice."""

    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say
        # Every metric is drawn over our own step: see the head of this file.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, prefix: str, record: Mapping[str, Any]) -> None:
        """Send ``record`` under ``prefix/``; text and missing values stay at home."""
        if self._run is None:
            return
        by_source = {f"loss/{name}": loss for name, loss in record.get("loss_by_source", {}).items()}
        numbers = {
            f"{prefix}/{key}": value
            for key, value in {**record, **by_source}.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"
        }
        try:
            self._run.log({"step": record["step"], **numbers})
        except Exception as error:  # any failure of a tracker is a warning, by design
            self._give_up("logging", error)

    def close(self, *, ok: bool = True) -> None:
        """Finish the W&B run (waits for uploads)."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if ok else 1)
            self._run = None
        except Exception as error:  # as above
            self._give_up("finishing", error)

    def _give_up(self, doing: str, error: Exception) -> None:
        self._run = None
        self._say(f"W&B failed while {doing} ({error}); training goes on without it, metrics.jsonl has it all")


def open_wandb(
    settings: Mapping[str, Any] | None,
    run_folder: Path | str,
    *,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> WandbLog | None:
    """Start or continue the W&B run of ``run_folder``; None where it is off or does not start.

    Args:
        settings: the ``wandb:`` section as plain values; unknown keys go to ``wandb.init`` as they are.
        config: the effective configuration; secrets are masked here.
        say: receives one line if W&B cannot be used.
    """
    if settings is None or settings.get("enable") is False:
        return None
    folder = Path(run_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        import wandb  # slow (a second) and optional: only when asked for

        run_id = choose_run_id(settings, folder)
        arguments = init_arguments(settings, folder, run_id)
        Path(arguments["dir"]).mkdir(parents=True, exist_ok=True)
        with _command_line_masked():
            run = wandb.init(config=redact(dict(config)), **arguments)
        log = WandbLog(run, say)
        _store(folder, settings, run_id)
    except Exception as error:  # any failure of a tracker is a warning, by design
        say(f"W&B did not start ({error}); training goes on without it, and metrics.jsonl holds every record")
        return None
    return log


def _store(folder: Path, settings: Mapping[str, Any], run_id: str) -> None:
    entity, project = _where(settings)
    write_json(folder / RUN_NAME, {"id": run_id, "entity": entity, "project": project})
