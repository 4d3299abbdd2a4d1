from __future__ import annotations

from helpers import tiny_encoder


def test_table_has_a_cell_for_each_number_of_labels_under_a_header_of_as_many(call, module, data, tmp_path, capsys):
    words = [str(tiny_encoder(tmp_path / "models")), "--data", f"a={data}", "--draws", "1"]
    call(*words, "--counts", "8", "100", "--strengths", "0.01")
    header, rule, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert header == "| blocks, C | 8 labels | 30 labels |"
    assert rule == "|---|---|---|"
    assert [row.split(" | ")[0] for row in rows][:2] == ["| 1, 0.01", "| 1, zones, 0.01"]
    assert {row.count("|") for row in rows} == {4}
    assert len(rows) == 2 * len(module.CHOICES)
