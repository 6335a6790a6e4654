"""preprocess dedup, whole: what stays against brute force, equal bytes however it is run, killed anywhere, refusals."""

import contextlib
import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.corpus.dedup.planted import clusters_of, jaccard, planted, word_sets

from automodel_cli.config.schema.dedup import DedupConfig
from automodel_cli.config.schema.preprocess import VerifyConfig
from automodel_cli.corpus.dedup import clusters, copies, near, plan, reading, work, writing
from automodel_cli.corpus.dedup.job import DedupResult
from automodel_cli.corpus.formats.verify_report import VerifyReport
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import hash_file
from automodel_cli.recipes.preprocess import dedup, verify

TEXTS = planted(200)


def write(folder: Path, texts: list[str] = TEXTS) -> Path:
    """Three files of rows with other columns, blank and bad lines."""
    folder.mkdir(parents=True)
    rows = [json.dumps({"id": k, "text": text}) for k, text in enumerate(texts)]
    for name, some in (("a", rows[:100]), ("b", rows[100:101]), ("c", rows[101:])):
        (folder / f"{name}.jsonl").write_text("\n".join([*some[:5], "", "not a row", *some[5:]]))
    return folder


def run(dataset: Path | str, out: Path | str, said: list[str] | None = None, **options: Any) -> DedupResult:
    cfg = DedupConfig(dataset=str(dataset), output_dir=str(out), **{"num_workers": 0, **options})
    return dedup.run(cfg, progress=lambda event: None, say=(said if said is not None else []).append)


def kept(out: Path) -> list[int]:
    files = sorted(out.glob("*.jsonl"))
    return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]


def everything(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small input is cut into many parts and partitions."""
    monkeypatch.setattr(plan, "_LEAST_PART", 20_000)
    monkeypatch.setattr(plan, "_PARTS", 1000)
    monkeypatch.setattr(plan, "_FEW_PARTITIONS", 3)


def first_of_equals(texts: list[str]) -> list[int]:
    firsts: dict[str, int] = {}
    return [k for k, text in enumerate(texts) if firsts.setdefault(text, k) == k]


def first_of_alike(texts: list[str], threshold: float) -> list[int]:
    sets = word_sets(texts)
    pairs = [(a, b) for b in range(len(texts)) for a in range(b) if jaccard(sets[a], sets[b]) >= threshold]
    return [k for k, first in enumerate(clusters_of(len(texts), pairs)) if first == k]


# ------------------------------------------------------------------------------------------- what stays


def test_copies_are_left_out_and_the_first_stays(tmp_path, small_parts):
    result = run(write(tmp_path / "in"), tmp_path / "out")
    assert kept(tmp_path / "out") == first_of_equals(TEXTS)
    manifest = result.manifest
    assert manifest.documents == len(first_of_equals(TEXTS)) == len(TEXTS) - manifest.duplicates
    assert manifest.bad_rows == 3
    assert result.bad_rows == [
        f"{name}.jsonl:{line}: malformed JSON" for name, line in zip("abc", (7, 3, 7), strict=True)
    ]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_near_duplicates_are_those_of_all_pairs(tmp_path, small_parts, threshold):
    options = {"near": threshold, "verify": "exact", "recall": 0.9999, "hashes": 256}
    run(write(tmp_path / "in"), tmp_path / "out", **options)
    assert kept(tmp_path / "out") == first_of_alike(TEXTS, threshold)


def test_signatures_decide_nearly_as_the_exact_similarity_does(tmp_path):
    run(write(tmp_path / "in"), tmp_path / "out", near=0.7, hashes=512)
    found, exact = set(kept(tmp_path / "out")), set(first_of_alike(TEXTS, 0.7))
    assert len(found ^ exact) <= 0.03 * len(TEXTS)


def test_rows_stay_as_they_are(tmp_path):
    folder = write(tmp_path / "in")
    rows = (folder / "a.jsonl").read_bytes().splitlines(keepends=True)
    run(folder, tmp_path / "out")
    assert (tmp_path / "out" / "in.chunk.00000.jsonl").read_bytes().startswith(b"".join(rows[:5]))


def test_a_document_that_a_filter_leaves_out_is_no_first_one(tmp_path):
    texts = ["one two three", "one two three", "# # # one two three", *["four words are here"] * 2]
    result = run(write(tmp_path / "in", texts), tmp_path / "out", min_words=4, near=0.9)
    assert kept(tmp_path / "out") == [3]
    assert result.report.left_out == {"min_words": 3}
    assert result.report.samples["min_words"][2] == {"source": "a.jsonl", "text": "# # # one two three", "found": "3"}
    assert result.manifest.left_out == {"min_words": 3} and result.manifest.duplicates == 1


def test_a_limit_that_contradicts_the_preset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"min_words \(200,000\) is more than max_words \(100,000\)"):
        run(write(tmp_path / "in"), tmp_path / "out", filters="gopher", min_words=200_000)
    assert not (tmp_path / "out").exists()


class _Stop(Exception):
    pass


@pytest.fixture
def url(object_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return object_server.bucket("unique")


def stop(*_: Any) -> None:
    raise _Stop


def test_an_output_in_object_storage_is_that_of_a_disk(tmp_path, object_server, url):
    folder = write(tmp_path / "in")
    options = {"near": 0.8, "min_words": 3, "chunk_size": 20_000}
    made, there = run(folder, tmp_path / "local", **options), run(folder, f"{url}/a/run", **options)
    assert there.folder == f"{url}/a/run" and there.manifest.body() == made.manifest.body()
    expected = {f"a/run/{name}": data for name, data in everything(tmp_path / "local").items()}
    assert object_server.objects("unique") == expected and len(expected) > 4
    report = verify.run(VerifyConfig(path=f"{url}/a/run"), progress=lambda *_: None)
    assert not report.problems and report.hashed == len(expected) - 1
    said = []
    assert run(folder, f"{url}/a/run", said, **options).already_complete
    assert f"{url}/a/run/manifest.json is already there: nothing to do" in said
    with pytest.raises(ConfigError, match=f"{url}/a/run holds documents made in another way"):
        run(folder, f"{url}/a/run")
    run(folder, f"{url}/a/run", overwrite=True)
    run(folder, tmp_path / "exact")
    expected = {f"a/run/{name}": data for name, data in everything(tmp_path / "exact").items()}
    assert object_server.objects("unique") == expected


@pytest.mark.parametrize("is_lost", [False, True])
def test_an_interrupted_run_to_a_url_goes_on_here_and_begins_anew_elsewhere(
    tmp_path, object_server, url, monkeypatch, small_parts, is_lost
):
    folder = write(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr("automodel_cli.corpus.dedup.job.find_clusters", stop)
        with pytest.raises(_Stop):
            run(folder, f"{url}/run", near=0.8)
    assert set(object_server.objects("unique")) == {"run/.upload.json"}
    said: list[str] = []
    if is_lost:
        (tmp_path / "cache").rename(tmp_path / "lost")
    else:
        with pytest.raises(ConfigError, match=f"{url}/run holds an interrupted run made in another way: "):
            run(folder, f"{url}/run")
        monkeypatch.setattr("automodel_cli.corpus.dedup.job.read_part", stop)  # done, and not done again
    assert run(folder, f"{url}/run", said, near=0.8).continued is not is_lost
    assert (f"continuing the interrupted run in {url}/run" in said) is not is_lost
    monkeypatch.undo()
    run(folder, tmp_path / "local", near=0.8)
    expected = {f"run/{name}": data for name, data in everything(tmp_path / "local").items()}
    assert object_server.objects("unique") == expected


def test_what_others_made_at_a_url_stays(tmp_path, object_server, url):
    folder = write(tmp_path / "in")
    object_server.client().put_object(Bucket="unique", Key="run/in.chunk.00000.jsonl", Body=b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=f"{url}/run holds in.chunk.00000.jsonl but no manifest"):
            run(folder, f"{url}/run", overwrite=overwrite)
    assert object_server.objects("unique") == {"run/in.chunk.00000.jsonl": b"somebody's"}
    with pytest.raises(ConfigError, match="lies in the output folder"):
        run(f"{url}/run/*.jsonl", f"{url}/run")


def test_an_interrupted_run_of_another_command_at_a_url(tmp_path, object_server, url):
    state = {"format": "automodel-upload/1", "token": "x", "journal": "{}", "files": {}, "open": {}}
    object_server.client().put_object(Bucket="unique", Key="run/.upload.json", Body=json.dumps(state).encode())
    with pytest.raises(ConfigError, match=f"{url}/run holds the interrupted run of another command"):
        run(write(tmp_path / "in"), f"{url}/run", overwrite=True)


def test_filters_alone(tmp_path):
    result = run(write(tmp_path / "in"), tmp_path / "out", exact=False, min_words=50)
    assert kept(tmp_path / "out") == [k for k, text in enumerate(TEXTS) if len(text.split()) >= 50]
    assert result.manifest.duplicates == 0


def test_languages(tmp_path):
    texts = [
        "The weather is nice today, and we are going to walk in the park with the children.",
        "Wir gehen heute bei schönem Wetter mit unseren Kindern durch den Park spazieren.",
        "Le temps est beau aujourd'hui, et nous allons nous promener dans le parc avec les enfants.",
    ]
    result = run(write(tmp_path / "in", texts), tmp_path / "out", languages="en,fr")
    assert kept(tmp_path / "out") == [0, 2]
    assert result.report.samples["languages"][0]["found"].startswith("de ")
    assert result.manifest.options["filters"]["py3langid"]
    with pytest.raises(ConfigError, match="klingon is not one of py3langid's languages"):
        run(tmp_path / "in", tmp_path / "other", languages="klingon")


# ------------------------------------------------------------------------------------------ equal bytes


@pytest.mark.parametrize("options", [{}, {"near": 0.8}, {"near": 0.6, "verify": "exact", "min_words": 30}])
def test_equal_bytes_however_the_work_is_cut(tmp_path, monkeypatch, options):
    folder = write(tmp_path / "in", TEXTS[60:120])
    options = {**options, "chunk_size": 8000}
    run(folder, tmp_path / "whole", **options)
    expected = everything(tmp_path / "whole")
    assert len(expected) > 4
    for number, (part_bytes, partitions, sort_bytes) in enumerate(
        [(3000, 1, 80), (20_000, 7, 40_000), (1, 3, 9_000_000)]
    ):
        monkeypatch.setattr(plan, "_LEAST_PART", part_bytes)
        monkeypatch.setattr(plan, "_PARTS", 10_000)
        monkeypatch.setattr(plan, "_FEW_PARTITIONS", partitions)
        for module in (near, copies):
            monkeypatch.setattr(module, "SORT_BYTES", {"near": sort_bytes, "exact": sort_bytes})
        monkeypatch.setattr(near, "_BLOCK_BYTES", 5000)
        monkeypatch.setattr(clusters, "_AT_ONCE", 40)
        run(folder, tmp_path / f"cut{number}", **options)
        assert everything(tmp_path / f"cut{number}") == expected


def test_equal_bytes_in_two_processes(tmp_path, small_parts):
    folder = write(tmp_path / "in")
    run(folder, tmp_path / "one", near=0.8)
    run(folder, tmp_path / "two", near=0.8, num_workers=2)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


@pytest.mark.parametrize("kind", ["gz", "parquet", "txt"])
def test_other_files_give_the_same_documents(tmp_path, small_parts, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    if kind == "gz":
        rows = "".join(json.dumps({"id": k, "text": text}) + "\n" for k, text in enumerate(TEXTS))
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    elif kind == "parquet":
        table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
        pq.write_table(table, folder / "a.parquet", row_group_size=20)
    else:
        for k, text in enumerate(TEXTS):
            (folder / f"{k:04d}.txt").write_text(text)
    result = run(folder, tmp_path / "out", near=0.8, keep_columns=["id"] if kind == "parquet" else None)
    run(write(tmp_path / "plain"), tmp_path / "expected", near=0.8)
    if kind == "txt":
        files = sorted((tmp_path / "out").glob("*.jsonl"))
        texts = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
        assert texts == [TEXTS[k] for k in kept(tmp_path / "expected")]
        assert result.report.sources["0000.txt"] == {"documents": 1, "kept": 1, "copies": 0, "near": 0, "left_out": 0}
    else:
        assert kept(tmp_path / "out") == kept(tmp_path / "expected")


def test_text_in_object_storage_gives_the_same_documents(tmp_path, object_server):
    folder = write(tmp_path / "in", TEXTS[60:120])
    url, client = object_server.bucket("dedup"), object_server.client()
    for path in folder.iterdir():
        client.put_object(Bucket="dedup", Key=f"in/{path.name}", Body=path.read_bytes())
    run(folder, tmp_path / "local", near=0.8, min_words=30)
    run(f"{url}/in", tmp_path / "remote", near=0.8, min_words=30)
    local, remote = everything(tmp_path / "local"), everything(tmp_path / "remote")
    assert {**local, "manifest.json": b""} == {**remote, "manifest.json": b""}


def test_chunks_are_filled_in_order(tmp_path, small_parts):
    result = run(write(tmp_path / "in"), tmp_path / "out", chunk_size=10_000)
    sizes = [file.bytes for file in result.manifest.files]
    assert len(sizes) > 4 and max(sizes) <= 10_000
    assert sum(file.documents for file in result.manifest.files) == result.manifest.documents
    run(tmp_path / "in", tmp_path / "one")
    joined = b"".join((tmp_path / "out" / file.name).read_bytes() for file in result.manifest.files)
    assert joined == (tmp_path / "one" / "in.chunk.00000.jsonl").read_bytes()
    for a, b in zip(result.manifest.files, result.manifest.files[1:], strict=False):
        first = (tmp_path / "out" / b.name).read_bytes().splitlines(keepends=True)[0]
        assert a.bytes + len(first) > 10_000


def test_a_document_longer_than_a_chunk_has_one_of_its_own(tmp_path):
    result = run(write(tmp_path / "in"), tmp_path / "out", chunk_size=100)
    assert all(file.documents == 1 or file.bytes <= 100 for file in result.manifest.files)
    assert kept(tmp_path / "out") == first_of_equals(TEXTS)


# -------------------------------------------------------------------------------------- killed anywhere


class Killed(BaseException):
    """Not an Exception: nothing of ours may catch it."""


def test_killed_at_any_file_the_same_command_goes_on(tmp_path, monkeypatch, small_parts):
    folder, out = write(tmp_path / "in", TEXTS[:110]), tmp_path / "out"
    options = {"near": 0.8, "verify": "exact", "chunk_size": 20_000, "min_words": 10}
    run(folder, tmp_path / "whole", **options)
    expected = everything(tmp_path / "whole")
    count, die_at = 0, None
    real = work.published

    @contextlib.contextmanager
    def published(path):
        nonlocal count
        count += 1
        number = count
        with real(path) as handle:
            yield handle
            if number == die_at:  # all is written, it has no name yet; the temporary stays, as after SIGKILL
                handle.flush()
                shutil.copy(handle.name, f"{handle.name}.copy")
                raise Killed
        if number == -(die_at or 0):  # just after it has its name
            raise Killed

    for module in (reading, copies, near, clusters, writing):
        monkeypatch.setattr(module, "published", published)
    run(folder, out, **options)
    total = count
    assert everything(out) == expected and total > 30
    rng = random.Random(0)
    for case in sorted(rng.sample(range(1, total + 1), 6)):
        for sign in (1, -1):
            shutil.rmtree(out)
            count, die_at = 0, sign * case
            with pytest.raises(Killed):
                run(folder, out, **options)
            for left in out.rglob("*.copy"):
                left.rename(left.with_suffix(""))
            done, count, die_at = count, 0, None
            result = run(folder, out, **options)
            assert result.continued and count <= total - done + 12, "finished tasks are done again"
            assert everything(out) == expected


def test_killed_while_it_finishes(tmp_path, monkeypatch):
    folder, out = write(tmp_path / "in"), tmp_path / "out"
    options = {"near": 0.8, "chunk_size": 20_000}
    run(folder, tmp_path / "whole", **options)
    expected = everything(tmp_path / "whole")
    from automodel_cli.corpus.dedup import job

    for name in ("write_json", "write_text", "page", "size_and_hash"):
        shutil.rmtree(out, ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(job, name, lambda *args: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                run(folder, out, **options)
        assert run(folder, out, **options).continued
        assert everything(out) == expected


# --------------------------------------------------------------------------------- folders and refusals


def test_a_finished_run_is_left_alone(tmp_path):
    folder, out = write(tmp_path / "in"), tmp_path / "out"
    run(folder, out, near=0.8)
    before, said = everything(out), []
    assert run(folder, out, said, near=0.8, memory=10**9).already_complete
    assert everything(out) == before and "nothing to do" in said[-1]
    with pytest.raises(ConfigError, match=r"made in another way: near .* -> None"):
        run(folder, out)
    assert run(folder, out, overwrite=True).manifest.options["near"] is None


def test_a_process_that_comes_late_begins_nothing(tmp_path):
    folder, out = write(tmp_path / "in"), tmp_path / "out"
    cfg = DedupConfig(dataset=str(folder), output_dir=str(out), near=0.8)
    early = dedup.open_job(cfg)
    run(folder, out, near=0.8)
    before = everything(out)
    for job in (early, dedup.open_job(cfg)):
        job.begin()
        assert [job.tasks(stage) for stage in job.stages] == [0] * 6
    assert everything(out) == before and not (out / ".dedup").exists()


def test_an_interrupted_run_of_other_options_is_refused(tmp_path, monkeypatch):
    folder, out = write(tmp_path / "in"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(near, "alike_in_buckets", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(folder, out, near=0.8)
    with pytest.raises(ConfigError, match="interrupted run made in another way: near"):
        run(folder, out, near=0.9)
    run(folder, out, near=0.9, overwrite=True)
    assert not (out / ".dedup").exists()


def test_what_others_made_is_not_touched(tmp_path):
    folder, out = write(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds report.html but no manifest of ours"):
        run(folder, out)
    (out / "report.html").unlink()
    (out / ".dedup").mkdir()
    (out / ".dedup" / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="holds notes"):
        run(folder, out, overwrite=True)
    assert (out / ".dedup" / "notes").read_text() == "mine"


def test_an_input_in_the_output_is_refused(tmp_path):
    folder = write(tmp_path / "in")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        run(folder, folder)
    with pytest.raises(ConfigError, match="the next run would read it"):
        run(folder, folder / "out")


def test_nothing_left_is_said_and_leaves_nothing(tmp_path):
    folder = write(tmp_path / "in")
    with pytest.raises(DataError, match=r"the filters leave out all"):
        run(folder, tmp_path / "out", min_words=10_000)
    assert not everything(tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(DataError, match=r"^\S+ holds no documents"):
        run(tmp_path / "bad", tmp_path / "out2")
    with pytest.raises(DataError, match="there is no file or folder"):
        run(tmp_path / "missing", tmp_path / "out3")


def test_strict_stops_at_a_bad_row(tmp_path):
    with pytest.raises(DataError, match=r"bad row a.jsonl, row 7 from byte 0 on: malformed JSON"):
        run(write(tmp_path / "in"), tmp_path / "out", strict=True)


def test_a_source_that_changes_is_noticed(tmp_path, monkeypatch):
    folder = write(tmp_path / "in")
    real = clusters.find_clusters

    def change(*args):
        real(*args)
        (folder / "a.jsonl").write_text("\n".join((folder / "a.jsonl").read_text().splitlines()[:-3]))

    from automodel_cli.corpus.dedup import job

    monkeypatch.setattr(job, "find_clusters", change)
    with pytest.raises(AutomodelError, match=r"changed while it was read|became shorter"):
        run(folder, tmp_path / "out")


def test_too_little_disk_is_said_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "free_bytes", lambda folder: 1000)
    with pytest.raises(AutomodelError, match=r"this needs about .* are free"):
        run(write(tmp_path / "in"), tmp_path / "out", near=0.8)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path):
    said: list[str] = []
    result = run(write(tmp_path / "in"), tmp_path / "out", said, near=0.8, dry_run=True)
    assert result.manifest is None and not (tmp_path / "out").exists()
    assert any("18 bands of 7" in line for line in said)
    assert any("temporary files" in line and "memory for each process" in line for line in said)
    assert said[-1] == "would run 1 process"
    run(tmp_path / "in", tmp_path / "out", elsewhere := [], dry_run=True, runner="slurm")
    assert elsewhere and not any("would run" in line for line in elsewhere)


# ------------------------------------------------------------------------------------------- the report


def test_the_report_counts_everything_once(tmp_path, small_parts):
    result = run(write(tmp_path / "in"), tmp_path / "out", near=0.7, min_words=40)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    left_out = sum(report["left_out"].values())
    assert report["documents"] == len(TEXTS)
    assert report["kept"] + report["copies"] + report["near"] + left_out == len(TEXTS)
    for name in ("documents", "kept", "copies", "near"):
        assert sum(source[name] for source in report["sources"].values()) == report[name]
    assert sum(source["left_out"] for source in report["sources"].values()) == left_out
    assert sum((size - 1) * count for size, count in report["cluster_sizes"]) == report["copies"] + report["near"]
    assert sum(report["similarities"]) == report["near"]
    largest = report["largest"][0]
    assert largest["size"] == report["cluster_sizes"][-1][0]
    assert largest["documents"][0]["similarity"] is None and largest["documents"][1]["similarity"] > 0.3
    assert result.report.body() == json.loads(json.dumps(report), parse_int=int) | {
        "cluster_sizes": [tuple(pair) for pair in report["cluster_sizes"]]
    }


def test_verify_checks_the_documents_and_the_report(tmp_path):
    run(write(tmp_path / "in"), tmp_path / "out")

    def problems() -> VerifyReport:
        return verify.run(VerifyConfig(path=str(tmp_path / "out")), progress=lambda *args: None)

    assert not problems().problems
    page = tmp_path / "out" / "report.html"
    page.write_bytes(page.read_bytes()[:-1] + b" ")
    assert problems().problems
    assert hash_file(page)
