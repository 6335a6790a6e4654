"""Token files in tasks: what it costs against a run in one process, and memory of a process by input size.

    python benchmarks/token_job.py [--mb 100] [--times 10] [--data FILE.parquet]

Text as in ``tokenise.py``, in one file of JSON lines. For each size one process makes the corpus as
``automodel preprocess nanogpt --num-workers 1`` does, and another one all tasks of the job, one after the other; so
the CPU seconds (of the whole process) compare, and the peak memory is that of any process that does some of the tasks.
The files must be equal. GPT-2's vocabulary must be cached or reachable (TIKTOKEN_CACHE_DIR).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenise import texts

RUN = """
import json, resource, sys, time
from pathlib import Path
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.recipes.preprocess import nanogpt
how, data, out = sys.argv[1:]
cfg = PreprocessNanogptConfig(dataset=data, output_dir=out, tokenizer="gpt2", num_workers=1, val_fraction=0.01)
seconds = {}
began = time.perf_counter()
if how == "here":
    nanogpt.run(cfg, progress=lambda event: None, say=lambda line: None)
else:
    Path(out).mkdir()
    job = nanogpt.open_job(cfg)
    job.begin()
    for stage in job.stages:
        before = time.process_time()
        for task in range(job.tasks(stage)):
            job.run_task(stage, task, lambda report: None)
        seconds[stage] = round(time.process_time() - before, 2)
    job.finish()
usage = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": usage.ru_utime + usage.ru_stime,
                  "peak_mib": int(peak) / 1024, "stages": seconds}))
"""


def write_rows(path: Path, documents: list[str], megabytes: int) -> None:
    """Rows of the documents, over and over, each time with another number before them."""
    written, turn = 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < megabytes * 1_000_000:
            for document in documents:
                written += out.write(json.dumps({"text": f"{turn} {document}"}, ensure_ascii=False) + "\n")
                if written >= megabytes * 1_000_000:
                    break
            turn += 1


def measured(how: str, data: Path, out: Path) -> dict:
    """One process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, how, str(data), str(out)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    documents = texts(arguments.data)
    for megabytes in (arguments.mb, arguments.mb * arguments.times):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder / "rows.jsonl", documents, megabytes)
            found = {how: measured(how, folder / "rows.jsonl", folder / how) for how in ("here", "tasks")}
            for path in (folder / "here").rglob("*.bin"):
                assert path.read_bytes() == (folder / "tasks" / path.name).read_bytes(), path.name
            for how, figures in found.items():
                stages = f", by stage {figures['stages']}" if figures["stages"] else ""
                print(
                    f"{megabytes:>6,} MB {how:>5}: {figures['wall_s']:.1f} s, {figures['cpu_s']:.1f} s of CPU{stages}, "
                    f"peak {figures['peak_mib']:,.0f} MiB"
                )
            print(
                f"          CPU of the job / CPU of one process: {found['tasks']['cpu_s'] / found['here']['cpu_s']:.3f}"
            )
            shutil.rmtree(folder / "tasks")


if __name__ == "__main__":
    main()
