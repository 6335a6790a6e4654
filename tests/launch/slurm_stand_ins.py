"""Stand-ins for sbatch, squeue and scancel, which keep what they are told in files of the current folder."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Gives numbers and keeps a copy of each batch file, as Slurm does; from the number in the file `refuse` on it refuses.
SBATCH = """\
#!/bin/sh
echo "$@" >> submitted.txt
number=$(wc -l < submitted.txt)
if [ -e refuse ] && [ "$number" -ge "$(cat refuse)" ]; then
    echo "sbatch: error: invalid partition specified: fast" >&2; exit 1
fi
for file; do :; done
mkdir -p jobs && cp "$file" "jobs/$number"
echo "$number;cluster"
"""
SQUEUE = "#!/bin/sh\ncat queue 2>/dev/null || true\n"
SCANCEL = '#!/bin/sh\necho "$@" > cancelled\n'


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs in ``folder``, found first; jobs import what the tests do."""
    folder.mkdir()
    for name, body in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL}.items():
        (folder / name).write_text(body)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))


def run_jobs(lost: str = "", call: Callable[[list[str]], object] | None = None) -> str:
    """Run all that was submitted, job by job and element by element, but the ``lost`` ones (``sums.1``); their output.

    ``call`` is given the words after the program instead, in this process. Whatever becomes of a job, the next one
    runs, as with ``afterany``.
    """
    said = []
    for path in sorted(Path("jobs").iterdir(), key=lambda path: int(path.name)):
        text = path.read_text()
        path.unlink()
        array, stage = re.search(r"--array=0-(\d+)", text), re.search(r"STAGE=(\w+)", text)
        assert stage is not None
        count = int(array[1]) + 1 if array else 0
        for task in map(str, range(count)) if array else [""]:
            if f"{stage[1]}.{task}" in lost.split():
                continue
            ids = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": str(count)} if array else {}
            if call is not None:
                with pytest.MonkeyPatch.context() as patch:
                    for name, value in {"AUTOMODEL_PREPROCESS_STAGE": stage[1], **ids}.items():
                        patch.setenv(name, value)
                    call(shlex.split(text.splitlines()[-1])[5:])  # exec PYTHON -P -m MODULE
                continue
            done = subprocess.run(["bash", "-c", text], env={**os.environ, **ids}, capture_output=True, text=True)
            said.append(done.stdout + done.stderr)
    return "".join(said)
