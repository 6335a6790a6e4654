"""The files of a run folder beside its steps, and whether they are what was written: no manifest lists them.

    config.yaml                opens with HEAD and closes with "# xxh3:<hash of all above>"; comments, to YAML
    LATEST, BEST               carry a hash of what they say (``layout``)
    branch.json                a manifest: it carries a hash of itself (``lineage``)
    metrics.jsonl, metrics.superseded.jsonl
                               each line carries a hash of itself (``metrics.log``)

Whatever else lies there (results, plots, traces) is nobody's to check, and is named as such.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from automodel_cli import files
from automodel_cli.checkpoint import layout, lineage
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.json_files import read_bytes
from automodel_cli.metrics.log_file import METRICS_NAME, SUPERSEDED_NAME, check_lines

CONFIG_NAME = "config.yaml"
HEAD = "# effective configuration; the last line is a hash of all above it\n"
_SEAL = re.compile(rb"# (xxh3:[0-9a-f]{16})\n")
_SEAL_BYTES = len("# xxh3:0123456789abcdef\n")
_SHOWN_LINES = 5
Verdict = tuple[list[str], list[str]]  # problems, and what no hash covers


def seal_config(text: str) -> str:
    """``text`` (YAML) with a head and a hash around it."""
    body = HEAD + text
    return f"{body}# {files.hash_bytes(body.encode())}\n"


def refuse_foreign_config(run: Path) -> None:
    """Check that no ``config.yaml`` of somebody's own would be replaced by that of a run.

    Raises:
        CheckpointError: there is one, and nothing of an earlier run beside it.
    """
    path = run / CONFIG_NAME
    known = any((run / name).exists() for name in ("LATEST", METRICS_NAME)) or layout.list_steps(run)
    if path.is_file() and not known and not path.read_bytes().startswith(HEAD.encode()):
        raise CheckpointError(
            f"{path} was not written by a run, which would replace it with its own",
            "name another folder: checkpoint.checkpoint_dir",
        )


def verify_run(run: Path) -> dict[str, Any]:
    """Check the files of a run folder that are not part of a step; keys as ``verify`` has them."""
    verdicts = {path: _verdict(path) for path in sorted(run.iterdir()) if _belongs_to_run(path)}
    covered = [path for path, (_, missing) in verdicts.items() if not missing]
    problems = [line for trouble, _ in verdicts.values() for line in trouble]
    return {
        "path": str(run),
        "ok": not problems,
        "files": len(covered),
        "bytes_hashed": sum(layout.size_of(path) or 0 for path in covered),
        "tensors_scanned": 0,
        "problems": problems,
        "nonfinite": [],
        "not_covered": [line for _, missing in verdicts.values() for line in missing],
    }


def _belongs_to_run(path: Path) -> bool:
    return layout.step_of(path.name.partition(".")[0]) is None and path.name != layout.LOCK_NAME


def _verdict(path: Path) -> Verdict:
    checks = {CONFIG_NAME: _config, lineage.NAME: _branch, **dict.fromkeys((METRICS_NAME, SUPERSEDED_NAME), _metrics)}
    check = (checks | dict.fromkeys(layout.POINTERS, _pointer)).get(path.name)
    try:
        return ([], [path.name]) if check is None else check(path)
    except AutomodelError as error:
        return [error.message], []


def _config(path: Path) -> Verdict:
    content = read_bytes(path, CheckpointError)
    body, last = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    found = _SEAL.fullmatch(last)
    if found is None and not content.startswith(HEAD.encode()):
        return [], [f"{path.name} (written by an earlier version, or by hand)"]
    if found is None or found[1].decode() != files.hash_bytes(body):
        return [f"{path} was changed: it does not match the hash in its last line"], []
    return [], []


def _branch(path: Path) -> Verdict:
    lineage.read(path.parent)
    return [], []


def _pointer(path: Path) -> Verdict:
    name = layout.read_pointer(path.parent, path.name)
    if name is None:  # gone meanwhile
        return [], []
    if not layout.is_complete(path.parent / name):
        return [f"{path} names {name}, which is not a complete checkpoint here"], []
    sealed = len(read_bytes(path, CheckpointError).split()) > 1
    return [], [] if sealed else [f"{path.name} (a bare name, without a hash)"]


def _metrics(path: Path) -> Verdict:
    found = check_lines(path)
    problems = []
    if found.damaged:
        shown = ", ".join(map(str, found.damaged[:_SHOWN_LINES]))
        shown += ", ..." * (len(found.damaged) > _SHOWN_LINES)
        problems = [f"{path} was changed: line {shown} of {found.lines:,} does not match the hash it carries"]
    missing = f"{path.name}: its first {found.without_hash:,} lines (written by an earlier version)"
    torn = f"{path.name}: its last line, which a killed run did not finish"
    return problems, [missing] * bool(found.without_hash) + [torn] * found.torn
