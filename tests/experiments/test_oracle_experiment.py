"""How much matching could gain: every copy of the support set prompts every query slice."""

import pandas as pd
import pytest

from experiments.oracle_matching import WAYS, main, summary
from tests.test_run import small_root

__all__ = ["small_root"]  # a fixture


def test_no_matcher_exceeds_the_best_copy_and_all_agree_on_one(small_root, tmp_path, capsys):
    scans = [f"dataset.root={small_root}", "dataset=phantom", "protocol.fold=0", "organs=[LK]"]
    for count in (1, 3):
        where = tmp_path / str(count)
        main([*scans, f"results_dir={where}", f"support_set.count={count}"])
        measured = pd.read_csv(where / "oracle_matching.csv")
        assert len(measured) and measured["best"].between(0, 1).all()
        for way in WAYS:
            assert way == "all" or (measured[way] <= measured["best"] + 1e-9).all()
            assert count > 1 or (measured[way] == measured["best"]).all()
        assert str(where / "oracle_matching.csv") in capsys.readouterr().out.replace("\n", "")
    assert (measured["best"] > measured["random"]).any()  # the copies do not answer alike


def test_the_table_weighs_organs_alike_and_counts_gain_from_the_original():
    rows = [("liver", 0.5, 0.6, -1.0), ("liver", 0.7, 0.8, -0.5), ("LK", 0.2, 0.9, 0.0)]
    measured = pd.DataFrame(rows, columns=["organ", "original", "ssim", "ssim_rho"])
    original, ssim = summary(measured.assign(best=measured["ssim"])).to_dict("records")[:2]
    assert original["Dice"] == pytest.approx(40) and original["gain"] == 0
    assert ssim["Dice"] == pytest.approx(80) and ssim["gain"] == pytest.approx(40)
    assert ssim["rho"] == pytest.approx(-0.5)
