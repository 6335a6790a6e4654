"""Runs as one HTML file. No torch, no server."""

from __future__ import annotations

from pathlib import Path

from automodel_cli import __version__
from automodel_cli.assembly.run_plan import plan_of
from automodel_cli.config.schema.watching import ReportConfig
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import write_text
from automodel_cli.plain_text import command_line
from automodel_cli.serving.watch.printing import draw_pdf, draw_png, find_browser
from automodel_cli.serving.watch.report import report_html
from automodel_cli.serving.watch.runs import RunSet
from automodel_cli.text import plural

DEFAULT_NAME = "report.html"
_NAMED = 4  # runs, in the title


def run(cfg: ReportConfig) -> list[Path]:
    """Write the report of ``cfg.runs``; returns the paths of it, and of what was drawn of it.

    Raises:
        ConfigError: an output's name has another ending, or there is no browser to draw with.
        DataError: there is no run there, or there are too many for a file.
        AutomodelError: the browser could not draw.
    """
    folders = [Path(one) for one in cfg.runs]
    output = Path(cfg.output) if cfg.output is not None else folders[0] / DEFAULT_NAME
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"a report is a web page, and {output} does not end with .html", "name it report.html, say")
    drawn = [(draw, path) for draw, path in ((draw_png, _of("png", cfg.png)), (draw_pdf, _of("pdf", cfg.pdf))) if path]
    browser = find_browser() if drawn else ""
    runs = RunSet(folders, plan_of)
    runs.find()
    if not len(runs):
        raise DataError(f"there is no run in {', '.join(cfg.runs)}", "name run folders, or a folder with runs in it")
    followed = [one.read_all() for one in runs]
    names = ", ".join(one.name for one in followed[:_NAMED])
    names += f" and {len(followed) - _NAMED} more" if len(followed) > _NAMED else ""
    page = report_html(
        followed,
        title=cfg.title or names,
        made=f"A report of {plural(len(followed), 'run')}" + (f", {runs.left_out} left out" if runs.left_out else ""),
        foot=f"{command_line(['automodel', 'report', *cfg.runs])} (automodel {__version__})",
    )
    write_text(output, page)
    for draw, path in drawn:
        draw(browser, output, path)
    return [output, *(path for _, path in drawn)]


def _of(kind: str, name: str | None) -> Path | None:
    if name is not None and not name.lower().endswith(f".{kind}"):
        raise ConfigError(f"--{kind} writes a .{kind}, and {name} is none", f"name it report.{kind}, say")
    return None if name is None else Path(name)
