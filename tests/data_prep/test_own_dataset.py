"""A dataset of one's own: from files as they lie to a run, with a YAML of four lines."""

import json
import re
import zipfile
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data_prep.cli import load_source
from data_prep.cli import main as prepare_main
from data_prep.own_dataset import without_yaml
from data_prep.prepare import prepare
from data_prep.verify import main as verify_main
from fsmis.cli import CONF_DIR
from fsmis.data.dataset import Dataset
from fsmis.data.nifti import read_volume, write_mask, write_volume
from fsmis.errors import UserError
from fsmis.files import counted

SPACING = (6.0, 1.4, 1.1)  # z, y, x


def write_pair(image_path: Path, label_path: Path, axes: str = "LAS", size=(6, 40, 52)) -> None:
    """A bright organ on the patient's right and a dim one on the left, stored along some axes."""
    rows, columns = size[1:]
    y, x = np.mgrid[:rows, :columns]
    label = np.zeros(size, np.uint8)
    label[1:5, (y - rows * 0.6) ** 2 + (x - columns * 0.3) ** 2 < (rows * 0.16) ** 2] = 1
    label[2:4, (y - rows * 0.4) ** 2 + (x - columns * 0.7) ** 2 < (rows * 0.12) ** 2] = 2
    noise = np.random.default_rng(len(str(image_path))).normal(0, 8, size)
    image = (200 + 300 * (label == 1) - 120 * (label == 2) + noise).astype(np.float32)
    affine = np.diag([-SPACING[2], SPACING[1], SPACING[0], 1.0])
    affine[:3, 3] = 30, -20, 7
    for path, pixels in ((image_path, image), (label_path, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = nib.Nifti1Image(pixels.T, affine)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
        )
        nib.save(stored.as_reoriented(turn), path)


def prepared(raw: Path, out: Path):
    return prepare(load_source("folder"), raw, out, 1, lambda scan_id, outcome: None)


def composed(root: Path, *overrides: str) -> Dataset:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return instantiate(compose("config", [f"dataset.root={root}", *overrides]).dataset)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three scans whose ids are text, each of another size."""
    root = tmp_path / "my scans"
    for name, size in (("pat10", (6, 40, 52)), ("pat2", (5, 48, 44)), ("Zoë 3", (6, 36, 60))):
        write_pair(root / f"image_{name}.nii.gz", root / f"label_{name}.nii.gz", size=size)
    return root


# ids


def test_ids_are_any_name_of_a_file(own):
    dataset = composed(own, "dataset=own", "dataset.name=mine", "+dataset.organs={a:1,b:2}")
    assert dataset.scan_ids == ["Zoë 3", "pat2", "pat10"]
    assert dataset.fold_starts == [0, 1, 2, 3]  # one for each scan, as there are fewer than five
    assert dataset.load("pat2").label.shape == (5, 48, 44)


def test_numbers_stay_numbers(tmp_path):
    for name in ("0010", "9", "pat1"):
        write_pair(tmp_path / f"image_{name}.nii.gz", tmp_path / f"label_{name}.nii.gz")
    dataset = composed(tmp_path, "dataset=own", "dataset.name=mine", "+dataset.organs={a:1,b:2}")
    assert dataset.scan_ids == ["pat1", "9", "10"]


@pytest.mark.parametrize("name", ["a;b", "..", "-x", "x" * 101, "a*", "."])
def test_ids_that_are_no_names_are_refused(tmp_path, name):
    (tmp_path / f"image_{name}.nii.gz").touch()
    with pytest.raises(Exception) as caught:
        composed(tmp_path, "dataset=own", "dataset.name=mine", "+dataset.organs={a:1}")
    cause = caught.value.__cause__
    assert isinstance(cause, UserError) and "it names files" in str(cause)
    assert "\n" not in str(cause)


@given(st.lists(st.integers(0, 10**6).map(str), unique=True))
def test_numbers_are_counted(numbers):
    assert sorted(numbers, key=counted) == sorted(numbers, key=int)


@given(st.lists(st.text("ab019_-é٣²", min_size=1), unique=True))
def test_any_names_have_one_order(names):
    assert len({tuple(counted(name)) for name in names}) == len(names)
    sorted(names, key=counted)  # keys of any two names compare


# verify


def test_verify_prints_the_yaml_that_runs(own, tmp_path, capsys):
    verify_main([str(own)])
    out = capsys.readouterr().out
    assert "3 scans, nothing wrong" in out
    yaml = out[out.index("defaults: [own]") :].split("\n\n")[0]
    assert yaml.splitlines()[:3] == ["defaults: [own]", "name: my_scans", f"root: {own}"]
    assert yaml.splitlines()[3].startswith("organs: {organ_1: 1, organ_2: 2}")


def test_four_lines_are_a_dataset(own, tmp_path):
    copy = tmp_path / "with_mine"
    copy.mkdir()
    for path in CONF_DIR.iterdir():
        if path.name != "dataset":
            (copy / path.name).symlink_to(path)
    (copy / "dataset").mkdir()
    for path in (CONF_DIR / "dataset").iterdir():
        (copy / "dataset" / path.name).symlink_to(path)
    verify_main([str(own), "--yaml", str(copy / "dataset" / "mine.yaml")])
    assert len((copy / "dataset" / "mine.yaml").read_text().splitlines()) == 4
    with initialize_config_dir(str(copy), version_base="1.3"):
        dataset = instantiate(compose("config", ["dataset=mine"]).dataset)
    assert (dataset.name, dataset.root) == ("mine", own)
    assert dataset.organs == {"organ_1": 1, "organ_2": 2}


def test_a_yaml_is_not_overwritten(own, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(SystemExit) as exit_:
        verify_main([str(own), "--yaml", str(tmp_path / "mine.yaml")])
    assert exit_.value.code == 2 and "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_verify_says_what_is_wrong(own, capsys):
    image, _, affine = read_volume(own / "image_pat2.nii.gz")
    label, _, _ = read_volume(own / "label_pat2.nii.gz")
    write_mask(own / "label_pat2.nii.gz", np.flip(label, 2), affine)
    image, _, affine = read_volume(own / "image_pat10.nii.gz")
    write_volume(own / "image_pat10.nii.gz", image[:-1], affine)
    write_volume(own / "image_Zoë 3.nii.gz", np.zeros((6, 36, 60), np.float32), affine)
    with pytest.raises(SystemExit) as exit_:
        verify_main([str(own)])
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1 and len(lines) == 3
    assert "columns flipped" in lines[1] and "shape" in lines[2] and "every voxel is 0" in lines[0]


def test_a_dataset_without_organs_is_refused(own):
    with pytest.raises(Exception, match=r"dataset\.organs of mine: none"):
        composed(own, "dataset=own", "dataset.name=mine", "+dataset.organs={}")


# folder


@pytest.mark.parametrize(
    ("image", "label", "ids"),
    [
        ("image_{}.nii.gz", "label_{}.nii.gz", ["a", "b"]),
        ("images/image_{}.nii", "labels/label_{}.nii.gz", ["01", "2"]),
        ("imagesTr/liver_{}.nii.gz", "labelsTr/liver_{}.nii.gz", ["0", "1"]),
        ("imagesTr/case_{}_0000.nii.gz", "labelsTr/case_{}.nii.gz", ["003", "004"]),
        ("imagesTr/amos_{}.nii.gz", "labelsTr/amos_{}.nii.gz", ["0001", "0002"]),
        ("imagesTr/image_{}.nii.gz", "labelsTr/image_{}.nii.gz", ["1", "2"]),
    ],
)
def test_common_names(tmp_path, image, label, ids):
    raw = tmp_path / "raw"
    for scan in ids:
        write_pair(raw / image.format(scan), raw / label.format(scan))
    (raw / "._image_a.nii.gz").write_bytes(b"\0")
    if "Tr" in image:
        write_pair(raw / "imagesTs" / "test_0000.nii.gz", tmp_path / "elsewhere.nii.gz")
        (raw / "imagesTr" / "case_003_0001.nii.gz").write_bytes(b"another channel")
        if "_0000" not in image:
            (raw / "imagesTr" / "case_003_0001.nii.gz").unlink()
    outcome = prepared(raw, tmp_path / "out")
    assert len(outcome.prepared) == 2 and not outcome.failed
    assert (
        len(
            composed(
                tmp_path / "out", "dataset=own", "dataset.name=m", "+dataset.organs={a: 1, b: 2}"
            ).scan_ids
        )
        == 2
    )
    assert prepared(raw, tmp_path / "out").prepared == []  # kept


def test_linked_folders_are_followed_once(tmp_path):
    disk, raw = tmp_path / "disk", tmp_path / "raw"
    write_pair(disk / "imagesTr" / "a.nii.gz", disk / "labelsTr" / "a.nii.gz")
    raw.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (raw / name).symlink_to(disk / name)
    (disk / "imagesTr" / "around").symlink_to(raw)
    outcome = prepared(raw, tmp_path / "out")
    assert outcome.prepared == ["a"], outcome.failed


@pytest.mark.parametrize("axes", ["LAS", "RPS", "PIR", "SRA", "ILP"])
def test_any_orientation_becomes_that_of_prepared_scans(tmp_path, axes):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_pair(raw / "image_a.nii.gz", raw / "label_a.nii.gz", axes)
    outcome = prepared(raw, out)
    assert outcome.prepared == ["a"], outcome.failed
    image, spacing, affine = read_volume(out / "image_a.nii.gz")
    label, _, _ = read_volume(out / "label_a.nii.gz")
    pixel = 40 * 1.4 / 256 if 40 * 1.4 > 52 * 1.1 else 52 * 1.1 / 256  # the larger field of view
    assert spacing == pytest.approx((6.0, pixel, pixel), abs=1e-4)
    assert image.shape == (6, 256, 256) and nib.aff2axcodes(affine) == ("L", "A", "S")
    raw_label = nib.load(raw / "label_a.nii.gz")
    for value in (1, 2):  # the organ stays where it is in the patient, in mm, and as large
        before = np.argwhere(np.asarray(raw_label.dataobj) == value)
        after = np.argwhere(np.transpose(label) == value)
        centres = [
            nib.affines.apply_affine(a, points.mean(axis=0))
            for a, points in ((raw_label.affine, before), (affine, after))
        ]
        np.testing.assert_allclose(*centres, atol=0.5)
        volumes = len(before) * np.prod(SPACING), len(after) * np.prod(spacing)
        assert volumes[1] == pytest.approx(volumes[0], rel=0.05)


def test_spacing_and_size_are_settings(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_pair(raw / "image_a.nii.gz", raw / "label_a.nii.gz", size=(6, 100, 120))
    source = load_source("folder")
    source.settings.update(spacing=[3.0, 1.0, 1.0], size=96, window=[100, 400])
    prepare(source, raw, out, 1, lambda scan_id, outcome: None)
    image, spacing, _ = read_volume(out / "image_a.nii.gz")
    assert image.shape == (12, 96, 96) and spacing == pytest.approx((3, 1, 1))
    assert (image.min(), image.max()) == (0, 255)
    entry = json.loads((out / "manifest.json").read_text())["scans"]["a"]
    assert entry["losses"] == []


def test_a_bad_scan_is_named_and_stops_no_other(tmp_path, capsys):
    raw = tmp_path / "raw"
    for scan in ("good", "alone", "empty", "shifted"):
        write_pair(raw / f"image_{scan}.nii.gz", raw / f"label_{scan}.nii.gz")
    (raw / "label_alone.nii.gz").unlink()
    label, _, affine = read_volume(raw / "label_empty.nii.gz")
    write_mask(raw / "label_empty.nii.gz", label * 0, affine)
    write_mask(raw / "label_shifted.nii.gz", label, affine + np.eye(4)[:, [3, 0, 1, 2]])
    with pytest.raises(SystemExit) as exit_:
        prepare_main(
            "folder", ["--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]
        )
    told = capsys.readouterr()
    assert exit_.value.code == 1 and "1 scans prepared" in told.out
    lines = sorted(told.err.splitlines())
    assert [line.split()[1] for line in lines] == ["alone", "empty", "shifted"]
    assert "not there" in lines[0] and "label something" in lines[1] and "affine" in lines[2]


def test_the_raw_scans_are_never_replaced(own):
    before = {path: path.read_bytes() for path in own.iterdir()}
    for out in (own, own / "prepared"):
        with pytest.raises(UserError, match="lies in --raw"):
            prepared(own, out)
    assert {path: path.read_bytes() for path in own.iterdir()} == before


def test_losses_are_told_each_time(own, tmp_path):
    label, _, affine = read_volume(own / "label_pat2.nii.gz")
    label = np.array(label)
    label[0, 20, 21] = 3
    write_mask(own / "label_pat2.nii.gz", label, affine)
    coarse = load_source("folder")
    coarse.settings["spacing"] = [6.0, 6.0, 6.0]
    told = {"pat2": ["label 3 is too small for the prepared grid; choose a finer spacing"]}
    for _ in range(2):  # prepared, then kept
        assert prepare(coarse, own, tmp_path / "out", 1, lambda *_: None).losses == told
    narrow = load_source("folder")
    narrow.settings["size"], narrow.settings["spacing"] = 24, [6.0, 1.1, 1.4]
    losses = prepare(narrow, own, tmp_path / "narrow", 1, lambda *_: None).losses["pat2"]
    assert any(re.fullmatch(r"\d+ % of label 1 lies outside .* larger size .*", x) for x in losses)


def test_a_prepared_scan_that_was_removed_hides_no_reason(own, tmp_path):
    prepared(own, tmp_path / "out")
    for path in (own / "image_pat10.nii.gz", own / "label_pat10.nii.gz"):
        path.unlink()
        (tmp_path / "out" / path.name).unlink()
    (own / "image_pat2.nii.gz").write_bytes(b"torn")
    assert set(prepared(own, tmp_path / "out").failed) == {"pat2"}


def test_oblique_scans_may_differ_by_some_degrees(own, capsys):
    for degrees, path in zip((30, 45, 60), sorted(own.glob("image_*")), strict=False):
        tilt = np.eye(4)
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        tilt[:3, :3] = [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
        for part in (path, path.with_name(path.name.replace("image", "label"))):
            stored = nib.load(part)
            nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), tilt @ stored.affine), part)
    verify_main([str(own)])
    assert "nothing wrong" in capsys.readouterr().out


def test_scans_that_lie_otherwise_than_most_are_told(own, capsys):
    write_pair(own / "image_pat2.nii.gz", own / "label_pat2.nii.gz", axes="RPS", size=(5, 48, 44))
    with pytest.raises(SystemExit):
        verify_main([str(own)])
    assert "scan pat2: its axes are RPS, those of most LAS" in capsys.readouterr().err


def test_a_folder_named_by_a_number_has_a_name(own):
    assert without_yaml(own.rename(own.with_name("2024"))).name == "scans_2024"


def test_a_folder_without_pairs_and_a_zip(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no image_<id>"):
        prepared(tmp_path / "none", tmp_path / "out")
    write_pair(tmp_path / "raw" / "image_a.nii.gz", tmp_path / "raw" / "label_a.nii.gz")
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for path in (tmp_path / "raw").iterdir():
            archive.write(path, f"deep/{path.name}")
    assert prepared(tmp_path / "raw.zip", tmp_path / "out").prepared == ["a"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["dataset"] == "own"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("orientation", "coronal"),
        ("spacing", [1, 1]),
        ("spacing", [5, 0, 1]),
        ("window", [3, 3]),
        ("size", 0),
        ("clip_percentile", 0),
    ],
)
def test_bad_settings_are_named(setting, value):
    source = load_source("folder")
    common = {"dataset": "own", "scan_ids": [], "max_unpacked_gb": 1}
    with pytest.raises(UserError, match=f"{setting}="):
        type(source)(**{**source.settings, **common, setting: value})


def test_from_a_folder_to_scores(tmp_path, monkeypatch, ask, ask_run):
    """Prepared, verified and run by the commands that are printed, as a user would."""
    raw, out = tmp_path / "raw", tmp_path / "scans"
    for scan in ("pat1", "pat2"):
        write_pair(raw / f"image_{scan}.nii.gz", raw / f"label_{scan}.nii.gz", "RPI")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepared = ask(partial(prepare_main, "folder"), "--raw", raw, "--out", out, "--workers", "1")
    assert prepared.returncode == 0, prepared.stderr
    verified = ask(verify_main, out)
    assert verified.returncode == 0 and "defaults: [own]" in verified.stdout, verified.stderr
    organs = "+dataset.organs={bright: 1, dim: 2}"
    run = ["method=copy_mask", "dataset=own", "dataset.name=mine", f"dataset.root={out}", organs]
    done = ask_run(*run, f"results_dir={tmp_path / 'runs'}", "protocol.n_parts=1")
    assert done.returncode == 0, done.stderr
    scores = next((tmp_path / "runs").rglob("scores.csv")).read_text()
    assert "pat1" in scores and "dim" in scores


@pytest.mark.parametrize("name", ["study #2", "a: b", "${home}", 'say "x"', "plain"])
def test_the_yaml_of_a_folder_of_any_name_leads_to_it(tmp_path, name):
    root = tmp_path / name
    for scan in ("1", "2"):
        write_pair(root / f"image_{scan}.nii.gz", root / f"label_{scan}.nii.gz")
    path = tmp_path / "conf" / "dataset" / "st.yaml"
    verify_main([str(root), "--yaml", str(path)])
    assert OmegaConf.load(path).root == str(root)
