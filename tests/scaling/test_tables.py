"""How a table is read: columns by name, units, conditions; and what is wrong with one, said with its row."""

import gzip
import json

import numpy as np
import pytest

from lmjax.cli import main
from lmjax.scaling.table import Selection, grouped, read_table
from tests.scaling.isoflop_tables import isoflop_table

HEADER = "params,tokens,loss"


def rows(**changes) -> list[str]:
    """Thirteen runs as rows of CSV; `changes` are those of a row by number."""
    table = isoflop_table()
    lines = [f"{n:.6g},{d:.6g},{loss:.6g}" for n, d, loss in zip(table.params, table.tokens, table.loss, strict=True)]
    lines = lines[::5]
    for number, line in changes.items():
        lines[int(number.removeprefix("row"))] = line
    return lines


def written(tmp_path, lines, header=HEADER, name="runs.csv"):
    (tmp_path / name).write_text("\n".join([header, *lines]) + "\n")
    return tmp_path / name


def fails(capsys, *arguments) -> str:
    assert main(["fit", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


def test_columns_are_found_by_common_names_whatever_their_case(tmp_path):
    header = "Parameters,D,Training FLOPs,Final Loss,Params (no embed)"
    found = read_table(written(tmp_path, ["1e8,2e9,1.3e18,3.1,8e7", "2e8,2e9,2.5e18,3.0,1.8e8"], header))
    assert found.params.tolist() == [1e8, 2e8] and found.flops.tolist() == [1.3e18, 2.5e18]
    assert found.loss.tolist() == [3.1, 3.0] and found.tokens.tolist() == [2e9, 2e9]
    assert found.columns["params_other"] == "Params (no embed)"
    assert "params 'Parameters', tokens 'D', flops 'Training FLOPs', loss 'Final Loss'" in found.notes[0]


def test_a_sweeps_own_rows_need_no_flag(tmp_path):
    names = ("name", "parameters", "parameters_without_embeddings", "tokens", "flops_6nd", "flops", "loss")
    lines = [
        json.dumps(dict(zip(names, (f"run{n}", n, n // 2, 20 * n, 120 * n**2, 130 * n**2, 3.0), strict=True)))
        for n in (2000, 4000)
    ]
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines) + "\n")
    found = read_table(tmp_path / "sweep.jsonl")
    assert {role: found.columns[role] for role in ("params", "tokens", "flops", "loss", "params_other")} == {
        "params": "parameters",
        "tokens": "tokens",
        "flops": "flops",
        "loss": "loss",
        "params_other": "parameters_without_embeddings",
    }
    assert found.convention == "N is the column 'parameters', with embeddings; C = 6 N D"
    assert found.extra["params_other"].tolist() == [1000, 2000]


def test_a_sweeps_runs_that_failed_diverged_or_ran_again_are_left_out_and_said(tmp_path, capsys):
    def line(name, status, loss):
        return json.dumps({"name": name, "status": status, "parameters": 1e7, "tokens": 1e9, "loss": loss}) + "\n"

    path = tmp_path / "table.jsonl"
    path.write_text(
        line("a", "failed", None) + line("b", "diverged", 9.5) + line("c", "done", 3.0) + line("a", "done", 3.1)
    )
    found = read_table(path)
    assert found.loss.tolist() == [3.1, 3.0] and found.places == ("line 4", "line 3")
    assert found.notes[:2] == (
        "rows that a later one of the same name replaces: 1",
        "not done and left out, 1 of 3: b (diverged)",
    )
    path.write_text(line("b", "diverged", 9.5))
    assert "no run of the sweep is done; run the sweep's command again" in fails(capsys, path)


def test_units_in_cells_and_in_the_header_are_powers_of_ten(tmp_path):
    found = read_table(written(tmp_path, ["1.2B,300M,3.5", "70M,1.4T,2.9"]))
    assert found.params.tolist() == [1.2e9, 7e7] and found.tokens.tolist() == [3e8, 1.4e12]
    assert "params: units are read as powers of ten (K, M, B or G, T), as in '1.2B'" in found.notes
    header = read_table(written(tmp_path, ["1.2,300,3.5"], "Model Size (B),tokens (M),loss"))
    assert header.params.tolist() == [1.2e9] and header.tokens.tolist() == [3e8]


def test_sizes_in_millions_without_a_unit_are_refused(tmp_path, capsys):
    said = fails(capsys, written(tmp_path, ["1.2,2e9,3.5", "7,2e9,3.1"]))
    assert "column 'params': its largest value is 7; expected a number of params, not of millions or billions" in said
    assert "write the unit in the cells (7B) or in the header (params (B))" in said


@pytest.mark.parametrize("name", ["runs.json", "runs.jsonl", "runs.parquet", "runs.csv.gz"])
def test_every_format_gives_the_same_table(tmp_path, name):
    plain = written(tmp_path, rows())
    expected = read_table(plain)
    records = [
        {"params": n, "tokens": d, "loss": v}
        for n, d, v in zip(expected.params, expected.tokens, expected.loss, strict=True)
    ]
    path = tmp_path / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        path.write_text(json.dumps(records) if name == "runs.json" else "\n".join(map(json.dumps, records)))
    found = read_table(path)
    for field in ("params", "tokens", "flops", "loss", "budget"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_conditions_choose_rows_and_a_value_that_no_row_has_is_an_error(tmp_path, capsys):
    lines = [f"{line},{corpus}" for line, corpus in zip(rows(), 7 * ["dclm", "Comma"], strict=False)]
    path = written(tmp_path, lines, f"{HEADER},corpus")
    assert len(read_table(path, Selection(where=("corpus=comma",)))) == 6
    assert len(read_table(path, Selection(where=("corpus!=comma", "params>1B")))) == sum(
        float(line.split(",")[0]) > 1e9 for line in lines[::2]
    )
    said = fails(capsys, path, "--where", "corpus=pile")
    assert "--where 'corpus=pile': no row fits; the column holds 'dclm', 'Comma'; name one of these" in said
    assert "has no column 'size'; its columns are 'params', 'tokens', 'loss', 'corpus'" in fails(
        capsys, path, "--where", "size>1"
    )
    assert "expected COLUMN=VALUE, or one of != < <= > >=" in fails(capsys, path, "--where", "corpus")


def test_runs_of_about_equal_flops_are_one_budget_and_a_dense_row_of_them_is_several():
    found = grouped(np.array([1.05e18, 9.8e17, 3e18, 1e18, 3.1e18]))
    assert len(np.unique(found)) == 2 and found[0] == found[1] == found[3] and found[2] == found[4]
    dense = grouped(np.geomspace(1e18, 1e21, 300))
    assert max(np.ptp(np.log(np.geomspace(1e18, 1e21, 300)[dense == budget])) for budget in np.unique(dense)) <= 0.25


def test_rows_of_one_size_and_token_count_are_all_used_or_the_best_and_said(tmp_path):
    path = written(tmp_path, ["1e8,2e9,3.3", "1e8,2e9,3.1", "2e8,2e9,3.0"])
    everything, best = (read_table(path, Selection(duplicates=which)) for which in ("all", "best"))
    assert everything.loss.tolist() == [3.3, 3.1, 3.0] and best.loss.tolist() == [3.1, 3.0]
    assert everything.notes[-1].startswith("1 row repeats the (N, D) of another: all are used")
    assert best.notes[-1] == "1 row repeats the (N, D) of another: the best of each is used"
    assert best.places == ("line 3", "line 4")


def test_too_few_points_and_equal_sizes(tmp_path, capsys):
    assert "too few points: 4 runs, expected at least 6" in fails(capsys, written(tmp_path, rows()[:4]))
    same = [f"1e8,{line.split(',', 1)[1]}" for line in rows()]
    assert "equal sizes: the runs have 1 different number of parameters; expected at least 3" in fails(
        capsys, written(tmp_path, same)
    )
    said = fails(capsys, written(tmp_path, rows()), "--method", "isoflop")
    assert "too few points: 0 budgets have at least 4 runs of three different sizes, expected 2" in said
    said = fails(capsys, written(tmp_path, rows()[:2]), "--method", "all")
    assert "no method fits this table: chinchilla: too few points" in said and "kaplan: L(N) is not fitted" in said


@pytest.mark.parametrize(("loss", "shown"), [("0", "0"), ("-2.5", "-2.5"), ("", "nan"), ("NaN", "nan"), ("inf", "inf")])
def test_a_loss_that_is_not_above_0_is_named_with_its_row_or_left_out(tmp_path, capsys, loss, shown):
    path = written(tmp_path, rows(row3=f"1e9,2e10,{loss}"))
    said = fails(capsys, path)
    assert f"{path}:5: loss = {shown}: 1 of 13 rows have no finite loss and sizes above 0" in said
    assert "fix them, or leave them out by --skip-bad" in said
    table = read_table(path, Selection(skip_bad=True))
    assert len(table) == 12 and "line 5" not in table.places and any(f"{path}:5" in note for note in table.notes)


def test_text_in_a_column_of_numbers_is_named(tmp_path, capsys):
    path = written(tmp_path, rows(row3="1e9,2e10,diverged"))
    assert f"{path}:5: loss = 'diverged': expected a number, without separators; fix the row" in fails(capsys, path)
    path = written(tmp_path, rows(row3='"1,200,000",2e10,3.0'))
    assert f"{path}:5: params = '1,200,000': expected a number, or one with a unit K, M, B, G or T" in fails(
        capsys, path
    )


def test_missing_columns_are_listed(tmp_path, capsys):
    path = written(tmp_path, ["1e8,2e9,3.1"], "width,tokens,loss")
    said = fails(capsys, path)
    assert "no column of params is known by its name; its columns are 'width', 'tokens', 'loss'; name one by" in said
    assert "--loss-column 'bpb'" in fails(capsys, path, "--params-column", "width", "--loss-column", "bpb")
    path = written(tmp_path, ["1e8,3.1"], "params,loss")
    assert "(and no column of flops): no column of tokens is known" in fails(capsys, path)


def test_empty_torn_and_binary_files(tmp_path, capsys):
    cases = {
        "empty.csv": (b"", "it holds no row; expected one row a run"),
        "header.csv": (b"params,tokens,loss\n", "it holds no row; expected one row a run"),
        "empty.jsonl": (b"", "it holds no row"),
        "torn.json": (b'[{"params": 1e8, "tok', "expected a list of JSON objects"),
        "binary.csv": (bytes(range(256)) * 9, "binary.csv"),
        "binary.jsonl": (b"\x80\x81\n" * 9, "byte 0x80 is not UTF-8"),
        "binary.parquet": (b"\x00\xff" * 99, "cannot be read as Parquet"),
        "runs.txt": (b"1 2 3", "expected a table that ends in .jsonl, .json, .csv, .parquet"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert words in fails(capsys, tmp_path / name), name
    assert "absent.csv" in fails(capsys, tmp_path / "absent.csv")
    assert "expected a table that ends in" in fails(capsys, tmp_path)


def test_a_torn_last_line_is_left_out_and_said_and_a_torn_one_before_it_is_an_error(tmp_path, capsys):
    line = json.dumps({"params": 1e8, "tokens": 2e9, "loss": 3.1})
    path = tmp_path / "sweep.jsonl"
    path.write_text(f"{line}\n{line[:20]}")
    table = read_table(path)
    assert len(table) == 1 and table.notes[0] == f"{path}:2: the last line is torn and left out"
    path.write_text(f"{line}\n{line[:20]}\n{line}\n")
    assert f"{path}:2: malformed JSON" in fails(capsys, path)


def test_options_out_of_their_range(tmp_path, capsys):
    path = written(tmp_path, rows())
    for options, words in (
        (["--bootstrap", "-1"], "--bootstrap -1: expected 0 to 100,000 samples"),
        (["--seed", "-1"], "--seed -1: expected a number of at least 0"),
        (["--asymmetry", "0.5"], "--asymmetry 0.5: expected 1 (symmetric) to 1000"),
        (["--drop-highest-loss", "13"], "--drop-highest-loss 13: expected 0 to 12, the table has 13 rows"),
        (["--drop-highest-loss", "-1"], "--drop-highest-loss -1: expected 0 to 12"),
    ):
        assert words in fails(capsys, path, *options)


def test_a_loss_that_rises_with_size_is_no_fit(tmp_path, capsys):
    lines = [
        f"{n:g},{d:g},{2 + (n / 1e8) ** 0.2 + (1e9 / d) ** 0.3:.6f}" for n in (1e8, 2e8, 4e8) for d in (1e9, 2e9, 4e9)
    ]
    assert "so the loss does not fall with N; check the columns" in fails(capsys, written(tmp_path, lines))


def test_an_answer_that_is_not_finite_is_null_in_json():
    from lmjax.scaling.result import finite

    assert finite({"a": [1.5, float("nan")], "b": (float("inf"), {"c": "inf", "d": 3})}) == {
        "a": [1.5, None],
        "b": [None, {"c": "inf", "d": 3}],
    }
