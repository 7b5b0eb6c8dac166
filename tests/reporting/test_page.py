"""The page of a report: opened in a browser as a person would, without a network."""

import itertools
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fsmis.reporting import comparison
from fsmis.reporting import page_plots as plots
from fsmis.reporting.page import cases
from fsmis.reporting.page_tables import NO_DISTANCE, NO_DISTANCE_NOTE, Table, results
from fsmis.reporting.runs import best_first, read_runs, tabulate
from fsmis.reporting.tables import MEASURES, POOLED
from fsmis.runs.records import Cell, RunFolder
from fsmis.tools.compare import main as compare
from fsmis.tools.report import main
from tests.runs.test_records import row
from tests.tools.test_report import CELLS, write_run

HOSTILE = "<b>\"&'</b><script>document.title='taken over'</script>$x$"
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1300, "height": 900}


def write_results(folder: Path) -> Path:
    """A sweep with overlays and loss curves, a partial run, a failed scan, a run without scores."""
    for matcher in ("ssim", HOSTILE):
        for count in (1, 8, 32):
            name = f"amp/{len(matcher)}-{count}"
            settings = {"matcher": matcher, "support_set.count": count}
            dice = count / 100 - (matcher == HOSTILE) / 500
            write_run(folder / name, "augment_match_prompt", dice, CELLS, **settings)
    best = RunFolder(folder / "amp/4-32")
    best.write("config.yaml", f"seed: 0\nname: {HOSTILE}\n")
    best.write_json("provenance.json", {"command": "python -m fsmis run figures=all", "git": None})
    for name in ("figures/fold0_scan1.png", "figures/fold1_scan8.png", "training/fold_0.png"):
        path = best.path / name
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((110, 190), 60).resize((1100, 1900)).save(path)
    write_run(folder / "copy/a", "copy_mask", 0.4, CELLS[:1])
    RunFolder(folder / "copy/a").fail(CELLS[1], "failed", "RuntimeError: CUDA out of memory")
    write_run(folder / "registration/a", "registration", 0.5, [])
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of ``write_results``."""
    folder = write_results(tmp_path_factory.mktemp("results"))
    main([str(folder)])
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium; the tests that need one are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install it")
    paths = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    path = next(paths, None)
    if path is None:
        pytest.skip("no browser: install Debian's chromium, or Google Chrome")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page: Path) -> Iterator:
    """The page in a tab; what it asked of a network and wrote to the console must be nothing."""
    tab = browser.new_page()
    tab.set_default_timeout(120_000)  # milliseconds; a machine under load is slow, not wrong
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert [text for text in said if not text.startswith(("data:", page.as_uri()))] == []
    tab.close()


def column(tab, heading: str) -> list[str]:
    """Texts of a column of the first table."""
    table = tab.locator("table").first
    headings = table.locator("thead th").all_inner_texts()
    number = [text.strip() for text in headings].index(heading) + 1
    return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_a_pressed_heading_sorts_and_missing_values_stay_last(opened) -> None:
    mean = opened.locator("table").first.get_by_role("button", name="mean")
    assert len(column(opened, "mean")) == 8
    mean.click()
    falling = ["40.00", "32.00", "31.80", "8.00", "7.80", "1.00", "0.80", "–"]
    assert column(opened, "mean") == falling
    assert column(opened, "method")[0] == "copy_mask"
    mean.press("Enter")
    assert column(opened, "mean") == falling[-2::-1] + falling[-1:]
    heading = opened.locator("th[aria-sort]")
    assert heading.count() == 1 and heading.get_attribute("aria-sort") == "ascending"
    opened.locator("table").first.get_by_role("button", name="method").click()
    assert column(opened, "method")[-1] == "registration"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(opened, scheme: str) -> None:
    opened.set_viewport_size(PHONE)
    opened.emulate_media(color_scheme=scheme)
    for details in opened.locator("summary").all():
        details.click()
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width == PHONE["width"]
    ink, paper = opened.evaluate(
        "[getComputedStyle(document.querySelector('svg text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = (
        ("rgb(28, 33, 38)", "rgb(255, 255, 255)"),
        ("rgb(228, 231, 234)", "rgb(20, 23, 26)"),
    )
    assert (ink, paper) == (light if scheme == "light" else dark)


def test_a_desk_shows_every_column_of_a_sweep(opened) -> None:
    opened.set_viewport_size(DESK)
    table = opened.locator(".scroll").first
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
    first = [text.strip() for text in table.locator("thead th").all_inner_texts()[:3]]
    assert first == ["method", "run", "covered"]  # seen whatever the number of settings


def test_many_settings_share_a_column_and_fit_too(browser, tmp_path: Path) -> None:
    for number in range(8):
        changed = {f"part.long_setting_{k}": (number >> k) & 1 for k in range(3)}
        changed |= {"matcher": f"matcher_{number}", "segmenter": f"sam2_{number}"}
        folder = tmp_path / f"0123456789a{number}"
        write_run(folder, "augment_match_prompt", number / 10, CELLS[: 1 + number % 2], **changed)
    main([str(tmp_path), "--main", "0123456789a1"])
    tab = browser.new_page(viewport=DESK)
    tab.goto((tmp_path / "index.html").as_uri())
    table = tab.locator(".scroll").first
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
    assert "matcher_3, sam2_3, long_setting_0=1, long_setting_1=1, long_setting_2=0" in (
        table.inner_text()
    )
    tab.close()


def test_a_chosen_measure_takes_the_place_of_dice(opened) -> None:
    table = opened.locator("table").first
    assert table.get_by_text("32.00", exact=True).first.is_visible()
    headings = [text.strip() for text in table.locator("thead th:visible").all_inner_texts()]
    opened.get_by_label("IoU %").first.check()
    assert not table.get_by_text("32.00", exact=True).first.is_visible()
    assert table.get_by_text("19.05", exact=True).first.is_visible()  # of a Dice of 32
    opened.get_by_label("ASSD mm").first.check()
    assert table.get_by_text("1.0", exact=True).first.is_visible()
    shown = [text.strip() for text in table.locator("thead th:visible").all_inner_texts()]
    expected = [name for name in headings if name != POOLED]  # which is a Dice
    assert [name for name in shown if name != NO_DISTANCE] == expected != shown


def write_organs(folder: Path, dice: dict[str, float], hd95_mm: float = 1.0) -> None:
    """A run of these organs, all of it done."""
    write_run(folder, folder.name, 0, [])
    run = RunFolder(folder)
    plan = run.plan()
    run.write_plan(plan | {"organs": list(dice)})
    for cell in plan["cells"]:
        rows = [row(cell, organ, value) | {"hd95_mm": hd95_mm} for organ, value in dice.items()]
        run.finish(cell, rows)
    run.rebuild()


def results_of(folder: Path) -> Table:
    runs = read_runs(folder)
    frame, settings, _ = tabulate(runs)
    nothing = pd.DataFrame(columns=["difference", "pairs", "p", "p_holm"], dtype=float)
    tested = comparison.Tested(dict.fromkeys(MEASURES, nothing), {})
    return results(frame, settings, runs, dict.fromkeys(frame.index, "run"), tested)["chaos_mri"]


def marked(table: Table, measure: str) -> dict[str, list[str]]:
    """Texts of each column of a measure, with a star at the best."""
    return {
        column.heading: [row[place].text + "*" * row[place].best for row in table.rows]
        for place, column in enumerate(table.columns)
        if column.measure == measure
    }


def test_every_organ_has_a_column_and_means_of_other_organs_are_not_ranked(tmp_path: Path) -> None:
    write_organs(tmp_path / "a", {"liver": 0.9})
    write_organs(tmp_path / "b", {"liver": 0.8, "RK": 0.6})
    write_organs(tmp_path / "c", {"liver": 0.7, "RK": 0.5})
    found = marked(results_of(tmp_path), "dice")
    assert found["liver"] == ["90.00*", "80.00", "70.00"]
    assert found["RK"] == ["–", "60.00*", "50.00"]
    assert found["mean"] == ["90.00", "70.00*", "60.00"]
    main([str(tmp_path)])
    assert "<h3>chaos_mri: RK</h3>" in (tmp_path / "index.html").read_text()


def test_a_setting_may_be_called_like_a_column(tmp_path: Path) -> None:
    for low in (0.2, 0.3):
        write_run(tmp_path / str(low), "thr", low, CELLS, low=low, liver=low)
    _, settings, _ = tabulate(read_runs(tmp_path))
    assert settings == ["method.low", "method.liver"]
    main([str(tmp_path)])
    compare([str(tmp_path)])
    named = (tmp_path / "compare.md").read_text()
    assert "low=0.2, liver=0.2" in named and "low=0.3, liver=0.3" in named


def test_cases_are_of_the_run_of_the_most_organs(tmp_path: Path) -> None:
    write_organs(tmp_path / "thr" / "thr", {"liver": 0.9})
    write_organs(tmp_path / "more" / "thr", {"liver": 0.8, "RK": 0.6})
    runs = read_runs(tmp_path)
    frame, _, _ = tabulate(runs)
    assert [runs[i].plan["organs"] for i in best_first(frame, runs)] == [["liver", "RK"], ["liver"]]
    (shown,) = cases(frame, pd.Series("x", frame.index), runs, 1)
    assert "RK" in str(shown.worst + shown.best) or len(shown.worst) == 1


def test_empty_answers_win_no_distance(tmp_path: Path) -> None:
    write_organs(tmp_path / "a", {"liver": 0.9}, hd95_mm=2.0)
    write_organs(tmp_path / "b", {"liver": 0.8}, hd95_mm=3.0)
    table = results_of(tmp_path)
    assert marked(table, "hd95_mm")["mean"] == ["2.0*", "3.0"]
    assert NO_DISTANCE not in marked(table, "hd95_mm") and NO_DISTANCE_NOTE not in table.notes
    cell = CELLS[0]
    run = RunFolder(tmp_path / "b")
    run.finish(cell, [row(cell, "liver", 0.0)])
    run.rebuild()
    table = results_of(tmp_path)
    found = marked(table, "hd95_mm")
    assert found["mean"] == found["liver"] == ["2.0", "3.0"] and found[NO_DISTANCE] == ["0", "1"]
    assert NO_DISTANCE_NOTE in table.notes and NO_DISTANCE not in marked(table, "dice")
    assert marked(table, "dice")["mean"] == ["90.00*", "40.00"]


def test_pictures_are_not_cropped(opened) -> None:
    opened.set_viewport_size(DESK)
    button = opened.locator("button.picture").first
    sizes = "button => [button.scrollHeight - button.clientHeight, button.clientHeight]"
    beyond, height = button.evaluate(sizes)
    assert beyond == 0 and height == pytest.approx(button.bounding_box()["width"] * 1.9 / 1.1, 0.1)


def test_p_values_are_those_of_the_comparison(page: Path, tmp_path: Path) -> None:
    main([str(page.parent), "--out", str(tmp_path), "--main", "4-32"])
    compare([str(page.parent), "--out", str(tmp_path), "--main", "4-32"])
    rows = pd.read_csv(tmp_path / "compare.csv")
    html = (tmp_path / "index.html").read_text()
    assert "paired difference: mean difference to augment_match_prompt, ssim, count=32" in html
    of_dice = re.findall(r'<td class="number" data-measure="dice" data-value="([^"]*)">', html)
    for column in ("difference", "p_holm"):
        tested = rows[(rows["organ"] == "mean") & rows[column].notna()]
        assert len(tested) == 6  # of 8 runs, the main one and one without scores are none
        written = [float(value) for value in of_dice if value]
        for value in tested[column]:
            assert any(value == pytest.approx(one, abs=1e-6) for one in written)


def test_without_a_main_run_the_page_says_how_to_choose_one(page: Path, capsys) -> None:
    html = page.read_text()
    assert "No test: 6 runs of augment_match_prompt here; choose one of them, --main" in html
    assert "p Holm" not in html.split('id="results"')[1].split("<table")[1]
    with pytest.raises(SystemExit) as stop:
        main([str(page.parent), "--main", "nobody"])
    assert stop.value.code == 2
    assert "--main nobody: no run of such a method or variant" in capsys.readouterr().err


def test_charts_share_their_axis_of_dice(page: Path) -> None:
    html = page.read_text()
    drawn = re.findall(r'<svg role="img" aria-label="chaos_mri: (.*?)".*?</svg>', html, re.DOTALL)
    svgs = re.findall(r"<svg role=.*?</svg>", html, re.DOTALL)
    ticks = {
        name: re.findall(r"<text[^>]*>([\d.]+)</text>", svg.split("matplotlib.axis_2")[0])
        for name, svg in zip(drawn, svgs, strict=True)
    }
    assert {"mean over organs", "liver", "RK"} <= set(ticks)
    assert ticks["mean over organs"] == ticks["liver"] == ticks["RK"] != []


@pytest.mark.parametrize("names", [["short"], ["two, " * 20, "short", "many words " * 20]])
def test_names_touch_neither_boxes_nor_each_other(names: list[str]) -> None:
    figure = Figure(figsize=(plots.WIDTH, plots._height(names)), layout="constrained")
    axis = figure.subplots()
    values = [np.array([10.0, 50, 90])] * len(names)
    plots._boxes(axis, values, names, ends=(0, 100))
    FigureCanvasAgg(figure).draw()
    texts = [text.get_window_extent() for text in axis.texts]
    boxes = [line.get_window_extent() for line in axis.lines if len(line.get_xdata()) == 5]
    assert len(texts) == len(boxes) == len(names)
    for one, other in itertools.combinations([*texts, *boxes], 2):
        assert one.y0 > other.y1 or other.y0 > one.y1


def test_names_are_text_and_never_markup(opened) -> None:
    assert opened.title().startswith("Runs in ")
    assert HOSTILE in opened.locator("table").first.inner_text()
    drawn = opened.locator("svg").first.text_content()
    assert "".join(HOSTILE.split()) in "".join(drawn.split())  # it runs over two lines
    assert opened.locator("b").count() == 0 and opened.locator("script").count() == 1
    assert HOSTILE in opened.locator("pre").first.text_content()


def test_a_run_of_the_table_opens_with_its_settings_and_curves(opened) -> None:
    opened.locator("table").first.get_by_role("link", name="4-32").click()
    details = opened.locator("details[open]")
    assert "augment_match_prompt, ssim, count=32" in details.locator("summary").first.inner_text()
    details.get_by_text("provenance.json").click()
    assert "figures=all" in details.locator("pre").last.inner_text()
    details.get_by_alt_text("Loss curve of fold 0").click()
    picture = opened.locator("dialog[open] img")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 1000
    picture.click()
    assert opened.locator("dialog[open]").count() == 0


def test_a_reader_of_the_screen_can_follow(opened) -> None:
    assert opened.locator("img:not([alt]), img[alt='']").count() == 0
    assert opened.locator("svg:not([role=img][aria-label])").count() == 0
    assert opened.locator("thead th:not([scope=col])").count() == 0
    assert opened.locator("html").get_attribute("lang") == "en"
    identifiers = opened.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(identifiers) == len(set(identifiers))


def test_what_is_missing_is_said(page: Path) -> None:
    html = page.read_text()
    assert "partial: 1/2 scans (1 failed), folds 0 of 2" in html
    assert "scan 8 of fold 1 failed: RuntimeError: CUDA out of memory" in html
    assert "No overlay was drawn: the same command with figures=all draws every scan" in html
    assert "partial: 0/2 scans" in html
    assert "Published numbers on chaos_mri" in html
    assert "SSL-ALPNet" in html


def test_cases_are_the_extremes_of_the_leading_run(page: Path) -> None:
    html = page.read_text()
    shown = re.findall(r"<h3>chaos_mri: (.*)</h3>\n", html.split('id="cases"')[1])
    assert shown[:2] == ["augment_match_prompt, ssim, count=32", "copy_mask (partial)"]
    assert html.count('alt="Overlay of scan') == 2


def test_it_needs_no_other_file_and_its_size_is_bounded(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    drawn = sum(path.stat().st_size for path in page.parent.rglob("fold*.png"))
    assert len(html) < drawn / 2 < 2e6
    main([str(page.parent), "--out", str(page.parent / "small"), "--cases", "0"])
    assert "Overlay of scan" not in (page.parent / "small/index.html").read_text()


def test_charts_are_of_the_best_runs_where_there_are_many(page: Path, tmp_path: Path) -> None:
    main([str(page.parent), "--out", str(tmp_path), "--charted", "2"])
    html = (tmp_path / "index.html").read_text()
    assert "The 2 best of 7 runs" in html
    (means,) = re.findall(r'<svg role="img" aria-label="chaos_mri: mean.*?</svg>', html, re.DOTALL)
    texts = [element.text for element in ElementTree.fromstring(means).iter() if element.text]
    assert any("count=32" in text for text in texts) and not any("count=8" in t for t in texts)
    assert not any("(partial)" in text for text in texts)  # of fewer scans, it leads no others


@pytest.mark.parametrize("option", ["--cases", "--charted"])
def test_bad_sizes_are_one_line(page: Path, option: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(page.parent), option, "-1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {option} -1: choose ")


def test_one_scan_has_no_interval_and_a_damaged_picture_is_left_out(tmp_path: Path) -> None:
    cell = Cell(0, "8", "1")
    write_run(tmp_path / "a", "copy_mask", 0.4, [cell])
    run = RunFolder(tmp_path / "a")
    run.finish(cell, [row(cell, "liver", 0.4)], skipped={"RK": "absent from query scan 1"})
    run.rebuild()
    run.write("figures/fold0_scan1.png", "not a picture")
    main([str(tmp_path)])
    html = (tmp_path / "index.html").read_text()
    assert "not drawn" in html and "scan 1 of fold 0: RK absent from query scan 1" in html
    assert "nan" not in html.split('id="results"')[1].split("</section>")[0].lower()
