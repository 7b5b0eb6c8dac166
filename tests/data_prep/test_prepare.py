"""Preparation from raw phantoms: the protocol's numbers, resuming, archives, error messages."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cli import load_source, main
from data_prep.geometry import crop_or_pad
from data_prep.prepare import Outcome, prepare
from data_prep.verify import verify
from fsmis.data.dataset import FILE_NAME
from fsmis.data.nifti import read_volume, write_volume
from fsmis.errors import UserError
from fsmis.tools.phantom import write_raw
from tests.test_run import run_here

DATASETS = {"chaos": "chaos_mri", "synapse": "synapse_ct", "cmr": "cmr"}
SIZE = 64


def quietly(name: str, raw: Path, out: Path, workers: int = 1) -> Outcome:
    return prepare(load_source(name), raw, out, workers, lambda scan_id, outcome: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(path: Path, change) -> None:
    """Write a volume again after ``change(array, affine)``, which returns both."""
    array, _, affine = read_volume(path)
    write_volume(path, *change(np.array(array), affine))


def every_third_slice(array, affine):
    affine[:, 2] *= 3
    return array[::3], affine


@pytest.fixture(scope="module")
def raw_roots(tmp_path_factory) -> dict[str, Path]:
    """Two raw scans of each dataset; read only."""
    roots = {}
    for name in DATASETS:
        roots[name] = tmp_path_factory.mktemp(f"raw ü {name}")
        write_raw(name, roots[name], scans=2, seed=0, size=SIZE)
    for path in roots["synapse"].rglob("*.nii.gz"):
        rewrite(path, every_third_slice)  # a CT has many
    return roots


@pytest.fixture(scope="module")
def prepared_roots(raw_roots, tmp_path_factory) -> dict[str, Path]:
    """The same, prepared; read only."""
    roots = {}
    for name, raw in raw_roots.items():
        roots[name] = tmp_path_factory.mktemp(f"prepared_{name}")
        quietly(name, raw, roots[name])
    return roots


@pytest.fixture
def raw_cmr(raw_roots, tmp_path) -> Path:
    return shutil.copytree(raw_roots["cmr"], tmp_path / "raw")


@pytest.fixture
def raw_synapse(raw_roots, tmp_path) -> Path:
    return shutil.copytree(raw_roots["synapse"], tmp_path / "raw")


def linear(image: sitk.Image, spacing: list[float], size: list[int], outside: float) -> np.ndarray:
    """A plain SimpleITK resampling in the volume's own physical space."""
    resampling = sitk.ResampleImageFilter()
    resampling.SetInterpolator(sitk.sitkLinear)
    resampling.SetOutputOrigin(image.GetOrigin())
    resampling.SetOutputDirection(image.GetDirection())
    resampling.SetOutputSpacing(spacing)
    resampling.SetSize(size)
    resampling.SetDefaultPixelValue(outside)
    return sitk.GetArrayFromImage(resampling.Execute(image))


def centred(array: np.ndarray, outside: float) -> np.ndarray:
    """Rows and columns cut or padded to 256, one axis after the other."""
    for axis in (1, 2):
        middle = array.shape[axis] // 2
        if array.shape[axis] >= 256:
            array = array.take(range(middle - 128, middle + 128), axis)
        else:
            widths = [(0, 0)] * 3
            widths[axis] = (128 - middle, 128 - array.shape[axis] + middle)
            array = np.pad(array, widths, constant_values=outside)
    return array


def check_prepared(folder: Path, scan_id: str, image: np.ndarray, label: np.ndarray) -> None:
    found, _, _ = read_volume(folder / f"image_{scan_id}.nii.gz")
    np.testing.assert_allclose(found, image, rtol=1e-4, atol=1e-2)
    found, _, _ = read_volume(folder / f"label_{scan_id}.nii.gz")
    assert found.shape == label.shape and found.any()
    assert (found != label).mean() < 0.001


def test_cmr_equals_plain_simpleitk(raw_roots, prepared_roots):
    raw = sitk.ReadImage(str(raw_roots["cmr"] / "patient2_C0.nii.gz"), sitk.sitkFloat32)
    ceiling = np.percentile(sitk.GetArrayViewFromImage(raw), 99.5)
    image = sitk.Minimum(raw, float(ceiling))
    spacing = [1.25, 1.25, 7.99]
    old = zip(raw.GetSize(), raw.GetSpacing(), spacing, strict=True)
    size = [int(n * mm / wanted + 1) for n, mm, wanted in old]
    darkest = float(sitk.GetArrayViewFromImage(image).min())
    expected = centred(linear(image, spacing, size, darkest), darkest)

    manual = sitk.ReadImage(str(raw_roots["cmr"] / "patient2_C0_manual.nii.gz"))
    label = np.zeros(size[::-1])
    for value, raw_value in {1: 200, 2: 500, 3: 600}.items():
        organ = sitk.Cast(manual == raw_value, sitk.sitkFloat32)
        label[np.round(linear(organ, spacing, size, 0)) == 1] = value
    check_prepared(prepared_roots["cmr"], "2", expected, centred(label, 0))


def test_synapse_equals_plain_simpleitk(raw_roots, prepared_roots):
    training = raw_roots["synapse"] / "RawData" / "Training"
    raw = sitk.ReadImage(str(training / "img" / "img0002.nii.gz"), sitk.sitkFloat32)
    cut = SIZE * 32 // 512
    image = sitk.IntensityWindowing(raw, -125, 275, 0, 255)[cut:-cut, cut:-cut]
    x, y, z = raw.GetSpacing()
    ratio = (SIZE - 2 * cut) / 256
    spacing, size = [x * ratio, y * ratio, z], [256, 256, raw.GetSize()[2]]

    reference = sitk.ReadImage(str(training / "label" / "label0002.nii.gz"))[cut:-cut, cut:-cut]
    label = np.zeros(size[::-1])
    for value in range(1, 14):
        organ = sitk.Cast(reference == value, sitk.sitkFloat32)
        label[np.round(linear(organ, spacing, size, 0)) == 1] = value
    check_prepared(prepared_roots["synapse"], "2", linear(image, spacing, size, 0), label)


@pytest.mark.parametrize("name", ["synapse", "cmr"])
def test_millimetres_stay_where_they_were(name, raw_roots, prepared_roots):
    """The centre of all organs in the scanner's coordinates, before and after."""
    pattern = {"synapse": "**/label0001.nii.gz", "cmr": "**/patient1_C0_manual.nii.gz"}[name]
    (raw,) = raw_roots[name].glob(pattern)
    centres = []
    for path in (raw, prepared_roots[name] / "label_1.nii.gz"):
        label, _, affine = read_volume(path)
        zyx = np.argwhere(label > 0).mean(axis=0)
        centres.append((affine @ [*zyx[::-1], 1])[:3])
    np.testing.assert_allclose(centres[0], centres[1], atol=1)


@pytest.mark.parametrize("name", DATASETS)
def test_prepared_scans_verify_and_run(name, prepared_roots, tmp_path):
    findings, problems = verify(prepared_roots[name], subset=True)
    assert not problems and not any(finding.problems for finding in findings.values())
    assert all(len(finding.organ_ml) >= 3 for finding in findings.values())
    options = [f"dataset={DATASETS[name]}", f"dataset.root={prepared_roots[name]}"]
    options += ["dataset.fold_starts=2", "method=copy_mask", f"results_dir={tmp_path}"]
    assert run_here(options) == 0
    (scores,) = tmp_path.rglob("scores.csv")
    dice = pd.read_csv(scores)["dice"]
    assert len(dice) >= 6 and dice.mean() > 0.2


@pytest.mark.parametrize("name", DATASETS)
def test_the_manifest_says_what_was_made_of_what(name, raw_roots, prepared_roots):
    manifest = json.loads((prepared_roots[name] / "manifest.json").read_text())
    assert manifest["dataset"] == DATASETS[name] and list(manifest["scans"]) == ["1", "2"]
    entry = manifest["scans"]["2"]
    for folder, files in ((raw_roots[name], "source"), (prepared_roots[name], "files")):
        for file, sha256 in entry[files].items():
            done = subprocess.run(
                ["sha256sum", folder / file], check=True, capture_output=True, text=True
            )
            assert done.stdout.split()[0].strip("\\") == sha256
            if name == "chaos" and files == "source":
                break
    label, spacing, _ = read_volume(prepared_roots[name] / "label_2.nii.gz")
    assert entry["spacing"] == pytest.approx(spacing, abs=1e-3)
    assert entry["size"] == list(label.shape) and entry["size"][1:] == [256, 256]
    assert entry["voxels"] == {str(v): int((label == v).sum()) for v in np.unique(label) if v}
    assert (prepared_roots[name] / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_keeps_what_is_there_and_mends_what_is_not(raw_cmr, tmp_path):
    out = tmp_path / "out"
    assert quietly("cmr", raw_cmr, out).prepared == ["1", "2"]
    before = contents(out)
    assert quietly("cmr", raw_cmr, out).kept == ["1", "2"]
    assert contents(out) == before

    (out / "image_2.nii.gz").write_bytes(b"damaged")
    outcome = quietly("cmr", raw_cmr, out)
    assert (outcome.kept, outcome.prepared) == (["1"], ["2"]) and contents(out) == before

    (out / "manifest.json").unlink()  # as if killed before it was first written
    assert quietly("cmr", raw_cmr, out).prepared == ["1", "2"] and contents(out) == before

    manifest = json.loads(before["manifest.json"])
    manifest["settings"]["clip_percentile"] = 99.0
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert quietly("cmr", raw_cmr, out).prepared == ["1", "2"]
    assert contents(out) == before

    image, _, affine = read_volume(raw_cmr / "patient1_C0.nii.gz")
    write_volume(raw_cmr / "patient1_C0.nii.gz", image + np.int16(1), affine)
    assert quietly("cmr", raw_cmr, out).prepared == ["1"]


def test_processes_write_the_same_bytes(raw_roots, prepared_roots, tmp_path):
    outcome = quietly("cmr", raw_roots["cmr"], tmp_path, workers=2)
    assert sorted(outcome.prepared) == ["1", "2"]
    assert contents(tmp_path) == contents(prepared_roots["cmr"])


def test_nested_folders_plain_nifti_and_leftovers_of_macos(raw_cmr, prepared_roots, tmp_path):
    for scan_id in ("1", "2"):
        folder = raw_cmr / "C0LET2" / f"patient{scan_id}"
        folder.mkdir(parents=True)
        for name in (f"patient{scan_id}_C0", f"patient{scan_id}_C0_manual"):
            image, _, affine = read_volume(raw_cmr / f"{name}.nii.gz")
            write_volume(folder / f"{name}.nii", image, affine)
            (raw_cmr / f"{name}.nii.gz").unlink()
            (folder / f"._{name}.nii").write_bytes(b"\0\5\x16\7")
        (folder / f"patient{scan_id}_LGE.nii.gz").write_bytes(b"another sequence")
    quietly("cmr", raw_cmr, tmp_path / "out")
    for file, content in contents(tmp_path / "out").items():
        if FILE_NAME.fullmatch(file):
            assert content == (prepared_roots["cmr"] / file).read_bytes()


def test_a_flat_synapse_folder_and_test_images_without_labels(raw_synapse, tmp_path):
    training = raw_synapse / "RawData" / "Training"
    testing = raw_synapse / "RawData" / "Testing" / "img" / "img0061.nii.gz"
    testing.parent.mkdir(parents=True)
    shutil.copy(training / "img" / "img0001.nii.gz", testing)
    assert quietly("synapse", raw_synapse, tmp_path / "a").prepared == ["1", "2"]
    outcome = quietly("synapse", training, tmp_path / "b")
    assert outcome.prepared == ["1", "2"] and "21" in outcome.absent


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 51, 300), (9, 31, 17)])
def test_odd_narrow_and_single_slices(raw_cmr, tmp_path, shape):
    image = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) - 50
    image.flat[-1] = 2**30  # a huge outlier, and negative values
    label = np.zeros(shape, np.int16)
    rows, columns = (slice(n // 2 - 4, n // 2 + 4) for n in shape[1:])
    label[:, rows, columns] = 500
    affine = np.diag([1.4, 1.6, 11, 1])
    write_volume(raw_cmr / "patient2_C0.nii.gz", image, affine)
    write_volume(raw_cmr / "patient2_C0_manual.nii.gz", label, affine)
    assert quietly("cmr", raw_cmr, tmp_path / "out").prepared == ["1", "2"]
    image, spacing, _ = read_volume(tmp_path / "out" / "image_2.nii.gz")
    label, _, _ = read_volume(tmp_path / "out" / "label_2.nii.gz")
    assert image.shape == label.shape == (int(shape[0] * 11 / 7.99 + 1), 256, 256)
    assert spacing == pytest.approx((7.99, 1.25, 1.25)) and image.max() < np.prod(shape)
    assert set(np.unique(label)) == {0, 2}


@settings(max_examples=8, deadline=None)
@given(axes=st.permutations(range(3)), ways=st.tuples(*[st.sampled_from((1, -1))] * 3))
def test_a_ct_is_prepared_alike_however_it_is_stored(
    raw_roots, prepared_roots, tmp_path_factory, axes, ways
):
    root = tmp_path_factory.mktemp("turned")
    for path in raw_roots["synapse"].rglob("*0001.nii.gz"):
        nib.save(nib.load(path).as_reoriented(np.column_stack([axes, ways])), root / path.name)
    source = load_source("synapse")
    scan = source.prepare(source.find(root)["1"])
    for kind, found in (("image", scan.image), ("label", scan.label)):
        expected, _, affine = read_volume(prepared_roots["synapse"] / f"{kind}_1.nii.gz")
        np.testing.assert_allclose(found, expected, atol=1e-2)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-2)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=2), st.integers(1, 40))
def test_the_middle_pixel_stays_in_the_middle(shape, size):
    """As the public preparation cuts and pads: pixel n // 2 becomes pixel size // 2."""
    pixels = np.zeros((1, *shape))
    pixels[0, shape[0] // 2, shape[1] // 2] = 1
    found, affine = crop_or_pad(pixels, np.eye(4), size, outside=0)
    assert found.shape == (1, size, size)
    assert np.argwhere(found).tolist() == [[0, size // 2, size // 2]]
    middle = [size // 2, size // 2, 0, 1]
    np.testing.assert_allclose((affine @ middle)[:2], [shape[1] // 2, shape[0] // 2])


# what is wrong with one scan: the others go on


def check_one_fails(name: str, raw: Path, out: Path, *words: str) -> None:
    outcome = quietly(name, raw, out)
    assert outcome.prepared == ["1"] and list(outcome.failed) == ["2"]
    reason = outcome.failed["2"]
    assert "\n" not in reason
    for word in words:
        assert word in reason
    assert not list(out.glob("*_2.nii.gz")) and not list(out.glob(".*"))


def paint_value(value, dtype):
    def change(array, affine):
        array = array.astype(dtype)
        array[0, 0, 0] = value
        return array, affine

    return change


def shift_affine(array, affine):
    affine[0, 3] += 3
    return array, affine


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


FAULTS_CMR = {
    "truncated": ("patient2_C0.nii.gz", truncate, ["cannot be read"]),
    "empty": ("patient2_C0.nii.gz", lambda path: path.write_bytes(b""), ["empty file"]),
    "no label": ("patient2_C0_manual.nii.gz", Path.unlink, ["label is not there"]),
    "no image": ("patient2_C0.nii.gz", Path.unlink, ["image is not there"]),
    "unknown value": (
        "patient2_C0_manual.nii.gz",
        lambda path: rewrite(path, paint_value(420, np.int16)),
        ["label value 420", "0, 200, 500, 600"],
    ),
    "no whole number": (
        "patient2_C0_manual.nii.gz",
        lambda path: rewrite(path, paint_value(0.5, np.float32)),
        ["label value 0.5", "not a whole number"],
    ),
    "other affine": (
        "patient2_C0_manual.nii.gz",
        lambda path: rewrite(path, shift_affine),
        ["affine differs", "3 mm"],
    ),
    "other shape": (
        "patient2_C0_manual.nii.gz",
        lambda path: rewrite(path, lambda array, affine: (array[1:], affine)),
        ["shape", "patient2_C0.nii.gz"],
    ),
    "constant": (
        "patient2_C0.nii.gz",
        lambda path: rewrite(path, lambda array, affine: (array * 0, affine)),
        ["every voxel is 0"],
    ),
    "unlabelled": (
        "patient2_C0_manual.nii.gz",
        lambda path: rewrite(path, lambda array, affine: (array * 0, affine)),
        ["no voxel is labelled"],
    ),
    "not a number": (
        "patient2_C0.nii.gz",
        lambda path: rewrite(path, paint_value(np.nan, np.float32)),
        ["NaN"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS_CMR)
def test_a_bad_heart_fails_alone(fault, raw_cmr, tmp_path):
    file, damage, words = FAULTS_CMR[fault]
    damage(raw_cmr / file)
    check_one_fails("cmr", raw_cmr, tmp_path / "out", "patient2_C0", *words)


FAULTS_SYNAPSE = {
    "windowed": (
        "img/img0002.nii.gz",
        lambda array, affine: (np.clip(array, -125, 275), affine),
        ["-125 to 275", "Hounsfield"],
    ),
    "no rescale intercept": (
        "img/img0002.nii.gz",
        lambda array, affine: ((array + 1024).astype(np.uint16), affine),
        ["Hounsfield"],
    ),
    "no kidneys": (
        "label/label0002.nii.gz",
        lambda array, affine: (np.where(np.isin(array, [2, 3]), 0, array).astype(np.uint8), affine),
        ["no kidney", "RawData.zip", "averaged"],
    ),
    "label 14": ("label/label0002.nii.gz", paint_value(14, np.uint8), ["label value 14"]),
}


@pytest.mark.parametrize("fault", FAULTS_SYNAPSE)
def test_a_bad_ct_fails_alone(fault, raw_synapse, tmp_path):
    file, change, words = FAULTS_SYNAPSE[fault]
    rewrite(raw_synapse / "RawData" / "Training" / file, change)
    check_one_fails("synapse", raw_synapse, tmp_path / "out", file, *words)


def test_a_heart_with_voxels_of_metres_fails_alone(raw_cmr, tmp_path):
    """Headers in micrometres, or just wrong, would ask for more memory than there is."""

    def magnified(array, affine):
        return array, affine @ np.diag([1000, 1000, 1000, 1])

    for name in ("patient2_C0", "patient2_C0_manual"):
        rewrite(raw_cmr / f"{name}.nii.gz", magnified)
    check_one_fails("cmr", raw_cmr, tmp_path / "out", "patient2_C0", "along an axis", "voxel size")


def test_what_simpleitk_cannot_do_fails_alone(raw_cmr, tmp_path, monkeypatch):
    resample, calls = sitk.Resample, []

    def short_of_memory(*given):
        calls.append(1)
        if len(calls) > 3:  # the image and two labels of the first heart
            raise RuntimeError("Exception thrown\nFailed to allocate memory for image.")
        return resample(*given)

    monkeypatch.setattr("data_prep.geometry.sitk.Resample", short_of_memory)
    outcome = quietly("cmr", raw_cmr, tmp_path / "out")
    assert outcome.failed and all("Failed to allocate" in said for said in outcome.failed.values())
    assert all("\n" not in said for said in outcome.failed.values())


@pytest.mark.parametrize("name", ["cmr", "synapse"])
def test_raw_folders_that_are_links(name, raw_roots, prepared_roots, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "linked").symlink_to(raw_roots[name])
    quietly(name, tmp_path / "raw", tmp_path / "out")
    scans = [path.name for path in prepared_roots[name].glob("*.nii.gz")]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == sorted(scans)


def test_a_heart_whose_slices_are_not_the_last_axis_is_refused(raw_cmr, tmp_path):
    for path in raw_cmr.glob("patient2_*"):
        nib.save(nib.load(path).as_reoriented(np.array([[2, 1], [1, 1], [0, 1]])), path)
    check_one_fails("cmr", raw_cmr, tmp_path / "out", "patient2_C0.nii.gz", "third axis")


def test_a_full_disk_leaves_no_half_scan(raw_cmr, tmp_path, monkeypatch):
    import data_prep.prepare

    def full(path, mask, affine):
        if path.name == "label_2.nii.gz":
            raise UserError(f"{path}: cannot be written (No space left on device)")
        write(path, mask, affine)

    write = data_prep.prepare.write_mask
    monkeypatch.setattr(data_prep.prepare, "write_mask", full)
    check_one_fails("cmr", raw_cmr, tmp_path / "out", "No space left")


# what is wrong with the whole


@pytest.mark.parametrize(("name", "words"), [("synapse", "RawData.zip"), ("cmr", "MS-CMRSeg")])
def test_another_download_is_named(name, words, tmp_path):
    (tmp_path / "raw" / "averaged-training-images").mkdir(parents=True)
    (tmp_path / "raw" / "averaged-training-images" / "DET0000101_avg.nii.gz").touch()
    with pytest.raises(UserError, match=words):
        quietly(name, tmp_path / "raw", tmp_path / "out")


def test_a_scan_that_is_there_twice_is_refused(raw_cmr, tmp_path):
    (raw_cmr / "copy").mkdir()
    shutil.copy(raw_cmr / "patient1_C0.nii.gz", raw_cmr / "copy")
    with pytest.raises(UserError, match="the same scan as"):
        quietly("cmr", raw_cmr, tmp_path / "out")


def test_a_folder_of_other_scans_is_not_mixed_with(raw_roots, prepared_roots, tmp_path):
    (tmp_path / "image_99.nii.gz").touch()
    with pytest.raises(UserError, match=r"image_99.*empty folder"):
        quietly("cmr", raw_roots["cmr"], tmp_path)
    with pytest.raises(UserError, match="holds chaos_mri, not cmr"):
        quietly("cmr", raw_roots["cmr"], prepared_roots["chaos"])


def test_the_command_tells_each_failure_in_a_line(raw_cmr, tmp_path, ask):
    truncate(raw_cmr / "patient2_C0.nii.gz")
    command = [sys.executable, "-m", "data_prep.cmr", "--workers", "1", "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--raw", raw_cmr], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "scan 2 failed" in done.stderr
    assert "1 scans prepared" in done.stdout and "not in the raw data: scans 3, 4" in done.stdout
    words = ["--workers", "1", "--out", tmp_path / "out", "--raw", tmp_path / "no"]
    done = ask(lambda: main("cmr"), *words)
    assert done.returncode == 2
    assert done.stderr == f"error: --raw={tmp_path / 'no'}: no such folder or zip; check the path\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(raw_roots, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be made"):
        quietly("cmr", raw_roots["cmr"], tmp_path / "out")


def test_no_workers_are_refused(raw_roots, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main("cmr", ["--raw", str(raw_roots["cmr"]), "--out", str(tmp_path), "--workers", "0"])
    assert exit_.value.code == 2 and "--workers=0" in capsys.readouterr().err


# zip files


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("name", DATASETS)
def test_a_zip_serves_as_a_folder(name, raw_roots, prepared_roots, tmp_path):
    archive = zipped(raw_roots[name], tmp_path / "download.zip")
    out = tmp_path / "out"
    quietly(name, archive, out)
    assert contents(out) == contents(prepared_roots[name])


def test_members_outside_the_archive_are_refused(tmp_path):
    for number, member in enumerate(("../patient1_C0.nii.gz", "/patient1_C0.nii.gz", "a/../../b")):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, b"")
        with pytest.raises(UserError, match="outside the archive"):
            quietly("cmr", path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_links_in_the_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("patient1_C0.nii.gz")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        quietly("cmr", tmp_path / "raw.zip", tmp_path / "out")


def test_what_a_killed_process_had_unpacked_is_removed(raw_roots, tmp_path):
    archive, out = zipped(raw_roots["cmr"], tmp_path / "raw.zip"), tmp_path / "out"
    out.mkdir()
    unpack = (
        "import sys, time; from pathlib import Path; from data_prep.archive import raw_folder\n"
        "with raw_folder(Path(sys.argv[1]), Path(sys.argv[2]), lambda member: True, 1):\n"
        "    print('unpacked', flush=True); time.sleep(60)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", unpack, archive, out], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == b"unpacked\n"
        processes[0].kill()
        processes[0].wait()
        assert len(list(out.glob(".unpacked-*"))) == 2
        quietly("cmr", archive, out)
        assert len(list(out.glob(".unpacked-*"))) == 1  # of the one that is still at work
        assert (out / "label_2.nii.gz").is_file()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_zip_files_in_the_folder_are_named(raw_roots, tmp_path):
    (tmp_path / "raw").mkdir()
    archive = zipped(raw_roots["cmr"], tmp_path / "raw" / "c0gt.zip")
    with pytest.raises(UserError, match=rf"{archive} is still packed"):
        quietly("cmr", tmp_path / "raw", tmp_path / "out")


def test_bombs_and_torn_archives_are_refused(raw_roots, tmp_path):
    archive = zipped(raw_roots["cmr"], tmp_path / "raw.zip")
    source = load_source("cmr")
    source.max_unpacked_gb = 1e-6
    with pytest.raises(UserError, match="max_unpacked_gb"):
        prepare(source, archive, tmp_path / "out", 1, lambda scan_id, outcome: None)
    content = archive.read_bytes()
    half = len(content) // 2
    for damaged in (content[:half], content[:500] + bytes(100) + content[600:], b"<!doctype html>"):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match="not a whole zip file"):
            quietly("cmr", archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# make


def made(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "-n", "-o", "setup", *arguments],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize(("name", "dataset"), DATASETS.items())
def test_reproduce_goes_from_raw_data_to_the_report(name, dataset):
    commands = made(f"reproduce-{name}", "RAW=my raw.zip", "ARGS=seed=3")
    steps = [f'data_prep.{name} --raw "my raw.zip" --out "data/{dataset}"', "data_prep.verify"]
    steps += [f"fsmis run -m dataset={dataset}", "seed=3", f'fsmis report "results/runs/{dataset}"']
    places = [commands.index(step) for step in steps]
    assert places == sorted(places) and "phantom" not in commands
    commands = made(f"reproduce-{name}", "DATA=phantom")
    assert f"fsmis phantom --dataset {name}" in commands and "--subset" in commands
    assert f'fsmis report "results/demo/runs/{dataset}"' in commands
    spaced = made(f"reproduce-{name}", "DATA=~/my data")
    assert f'dataset.root="{Path.home()}/my data"' in spaced
    assert "fsmis phantom" not in made(f"reproduce-{name}", "DATA=data/mine")
