"""The search for the support's scale, measured on supports of other sizes."""

import pandas as pd

from experiments.scale_search import FACTORS, main, summary
from tests.test_run import small_root

__all__ = ["small_root"]  # a fixture


def test_every_factor_is_measured_with_and_without(small_root, tmp_path, capsys):
    scans = [f"dataset.root={small_root}", "dataset=phantom", "protocol.fold=0", "organs=[LK]"]
    main([*scans, f"results_dir={tmp_path}", "method.scale.slices=1", "method.scale.scales=[0.5]"])
    measured = pd.read_csv(tmp_path / "scale_search.csv")
    assert set(measured["factor"]) == set(FACTORS) and set(measured["found"]) <= {0.5, 1.0}
    kept = measured[measured["found"] == 1]
    assert (kept["as_it_is"] == kept["searched"]).all()
    assert "as it is" in capsys.readouterr().out


def test_the_table_counts_scans_whose_scale_was_changed():
    rows = [
        (2.0, 0.5, "LK", 0.1, 0.9, "a"),
        (2.0, 0.5, "RK", 0.3, 0.7, "a"),
        (2.0, 1.0, "LK", 0.6, 0.6, "b"),
    ]
    columns = ["factor", "found", "organ", "as_it_is", "searched", "query_scan"]
    (row,) = summary(pd.DataFrame(rows, columns=columns)).to_dict("records")
    assert row["changed"] == 1 and row["scans"] == 2
    assert round(row["as it is"], 6) == round(100 / 3, 6)
