"""The folder of a run: documents that stay, a report, a manifest; ``.dedup`` while the run is under way."""

from __future__ import annotations

import re
from pathlib import Path

from automodel_cli.corpus.dedup.work import WORK_FILES, WORK_NAME, WorkFolder
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME
from automodel_cli.corpus.shuffle.document_files import names_of
from automodel_cli.corpus.shuffle.document_folder import REPORT_NAMES, DocumentsOutput
from automodel_cli.files import ANY_TEMPORARY


class DedupOutput(DocumentsOutput):
    """Names and state of a run's files. An interrupted run is continued from ``.dedup``."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.work = WorkFolder(folder / WORK_NAME)

    def written_names(self) -> re.Pattern[str]:
        fixed = "|".join(map(re.escape, (MANIFEST_NAME, *REPORT_NAMES)))
        return re.compile(rf"{names_of(self.name).pattern}|({fixed}){ANY_TEMPORARY}")

    def hidden(self) -> list[tuple[Path, re.Pattern[str]]]:
        return [*super().hidden(), (self.work.folder, WORK_FILES)]

    @property
    def holds_a_shuffle(self) -> bool:
        """Whether an interrupted shuffle left something here."""
        return super().has_begun

    @property
    def has_begun(self) -> bool:
        return self.holds_a_shuffle or (self.work.folder.is_dir() and any(self.work.folder.iterdir()))

    def mark(self) -> None:
        self._mark_in(self.work.folder)
