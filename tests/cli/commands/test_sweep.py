"""``automodel sweep``: from points on the command line to tables, JSON and pictures, and what is said of mistakes."""

from __future__ import annotations

import csv
import json

import pytest
from tests.scaling.surfaces import HOFFMANN, surface

from automodel_cli.cli import app
from automodel_cli.scaling.results import FORMAT, ResultRow, append_row

QUICK = ("--bootstrap", "20")


def write_csv(path, points, columns=("params", "tokens", "loss", "flops")):
    with path.open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["budget" if name == "flops" else name for name in columns])
        table.writerows(zip(*(getattr(points, name) for name in columns), strict=True))
    return str(path)


def write_sweep(folder):
    folder.mkdir()
    depths = {8: 5e7, 10: 9e7, 12: 1.3e8, 14: 2e8, 16: 3e8}
    for budget in (1e18, 3e18, 1e19):
        for depth, size in depths.items():
            tokens = int(budget / (8 * size))
            row = ResultRow(
                format=FORMAT, id=f"d{depth}_{budget:g}", status="finished", budget=budget, depth=depth,
                params_scaling=int(size), params_total=int(2 * size), flops_per_token=8 * size, tokens=tokens,
                val_loss=float(HOFFMANN.loss(size, tokens)), compute_s=budget / 1e14, step_s=size / 1e9,
            )  # fmt: skip
            append_row(folder, row)
    append_row(folder, ResultRow(format=FORMAT, id="d20", status="failed", error="out of memory"))
    return str(folder)


def test_tables(tmp_path, capsys):
    source = write_csv(tmp_path / "points.csv", surface(noise=0.001))
    assert app.run(["sweep", "fit", source, "--budget", "1e21", "--predict", "124e6:2.5e9", *QUICK]) == 0
    page = capsys.readouterr().out
    for words in (
        "28 points, 4 budgets, compute C = 6 N D",
        "alpha",
        "N_opt ~ C^a",
        "isoFLOP parabolas",
        "90% interval",
    ):
        assert words in page
    assert "1e+21" in page and "124M" in page and "interval of a run" in page
    assert "back-test: the law of the budgets up to 1e+19 FLOPs, and the runs of 3e+19" in page


def test_json_recovers_the_surface(tmp_path, capsys):
    source = write_csv(tmp_path / "points.csv", surface())
    assert app.run(["sweep", "fit", source, "--json", "--budget", "1e20", "--budget", "1e21", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["law"]["alpha"]["value"] == pytest.approx(0.34, abs=1e-4)
    assert found["law"]["beta"]["value"] == pytest.approx(0.28, abs=1e-4)
    assert set(found["law"]["E"]) == {"value", "low", "high"}
    assert [one["budget"] for one in found["optima"]] == [1e20, 1e21]
    optimum = found["optima"][0]
    assert 6 * optimum["params"]["value"] * optimum["tokens"]["value"] == pytest.approx(1e20)
    assert [one["flag"] for one in found["parabolas"]] == ["ok"] * 4
    assert found["back_test"]["runs"] == 7 and found["back_test"]["off"]["value"] == pytest.approx(0, abs=1e-6)


def test_json_has_no_nan(tmp_path, capsys):
    """Without groups of equal compute there are no parabolas; their exponent is null."""
    source = write_csv(tmp_path / "points.csv", surface(budgets=(1e18, 2e18, 4e18, 8e18, 1.6e19, 3.2e19), sizes=1))
    points = surface(sizes=6)
    points.flops[:] = points.flops * [1.1**k for k in range(len(points))]
    source = write_csv(tmp_path / "points.csv", points)
    assert app.run(["sweep", "fit", source, "--json", *QUICK]) == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    found = json.loads(text)
    assert found["parabolas"] == [] and found["back_test"] is None
    assert found["exponents"]["a_of_parabolas"]["value"] is None
    assert any("no parabolas" in note for note in found["notes"])


def test_a_sweep_has_depths(tmp_path, capsys):
    source = write_sweep(tmp_path / "sweep")
    assert app.run(["sweep", "fit", source, "--json", "--budget", "3e18", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == 15 and found["cost"]["factor"] == pytest.approx(8, rel=1e-3)
    assert found["optima"][0]["depth"] in range(6, 14)
    assert "1 run left out: failed" in found["notes"]
    assert app.run(["sweep", "fit", source, "--params", "total", *QUICK]) == 0
    assert "C = 4 N" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params,loss\n1,2\n", ["no column tokens", "params, loss"]),
        ("params,tokens,loss\n1e8,2e9,high\n", ["line 2: loss is 'high'"]),
        ("params,tokens,loss\n1e8,2e9,3\n", ["1 point with", "at least 6"]),
        (
            "params,tokens,loss,budget\n" + "".join(f"{n}e8,{9 - n}e9,3,1e18\n" for n in range(1, 8)),
            ["one budget"],
        ),
    ],
)
def test_mistakes(tmp_path, capsys, text, words):
    (tmp_path / "points.csv").write_text(text)
    assert app.run(["sweep", "fit", str(tmp_path / "points.csv")]) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "much"], "--budget"),
        (["--budget", "-1"], "--budget"),
        (["--predict", "124e6"], "PARAMS:TOKENS"),
        (["--level", "90"], "--level"),
        (["--params", "all"], "--params"),
    ],
)
def test_wrong_options(capsys, arguments, words):
    assert app.run(["sweep", "fit", "points.csv", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_group_help(capsys):
    assert app.run(["sweep", "--help"]) == 0
    page = capsys.readouterr().out
    assert "fit" in page and "plot" in page


# -------------------------------------------------------------------------------------------- pictures


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    source = write_sweep(tmp_path / "sweep")
    assert app.run(["sweep", "plot", source, *QUICK]) == 0
    assert (tmp_path / "sweep/scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out
    with (tmp_path / "sweep/scaling_points.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    kinds = [row["kind"] for row in rows]
    assert (kinds.count("run"), kinds.count("vertex"), kinds.count("law")) == (15, 3, 40)
    assert app.run(["sweep", "fit", str(tmp_path / "sweep/scaling_points.csv"), "--where", "kind=run", *QUICK]) == 0


def test_svg_says_what_it_shows(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    source = write_sweep(tmp_path / "sweep")
    arguments = ["--budget", "1e20", "--title", "tiny <models>", "-o", str(tmp_path / "a.svg"), *QUICK]
    assert app.run(["sweep", "plot", source, *arguments]) == 0
    text = (tmp_path / "a.svg").read_text()
    for words in ("IsoFLOP curves", "1e18 FLOPs", "Best size against compute", "Training time against size"):
        assert words in text
    assert "tiny &lt;models&gt;" in text


def test_unknown_ending(tmp_path, capsys):
    source = write_csv(tmp_path / "points.csv", surface())
    assert app.run(["sweep", "plot", source, "-o", "x.jpeg2000", *QUICK]) == 2
    assert "ends with" in capsys.readouterr().err


def test_the_points_are_not_replaced_by_what_is_drawn_of_them(tmp_path, capsys):
    source = tmp_path / "a_points.csv"
    write_csv(source, surface())
    before = source.read_bytes()
    assert app.run(["sweep", "plot", str(source), "-o", str(tmp_path / "a.png"), *QUICK]) == 2
    assert "would replace" in capsys.readouterr().err and source.read_bytes() == before
