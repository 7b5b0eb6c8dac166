"""A whole new volume from one labelled slice, whatever the geometry of the files."""

import itertools
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.pipeline.whole_volume import Intensities
from fsmis.segment import main
from fsmis.tools.phantom import generate

REPOSITORY = Path(__file__).parents[1]
COPY = "method=copy_mask"
LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN = 1, 2, 3, 4
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)], dtype=float)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]

Volume = tuple[np.ndarray, np.ndarray]  # (x, y, z) and its affine, as in a file


@pytest.fixture(scope="module")
def support() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and label (x, y, z) of eight slices at half the resolution, and their affine."""
    return _small_phantom(scan=1)


@pytest.fixture(scope="module")
def query() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _small_phantom(scan=2)


def _small_phantom(scan: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, label, affine = generate("abdomen", seed=0, scan=scan)
    every_second = affine @ np.diag([2, 2, 1, 1])
    every_second[:3, 3] += affine[:3, 2] * 8
    return image[8:16, ::2, ::2].T, label[8:16, ::2, ::2].T, every_second


def save(path: Path, pixels: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(pixels, affine), path)
    return path


@pytest.fixture
def files(tmp_path, support, query) -> dict[str, Path]:
    image, label, affine = support
    return {
        "image": save(tmp_path / "s.nii.gz", image, affine),
        "mask": save(tmp_path / "m.nii.gz", label, affine),
        "query": save(tmp_path / "q.nii.gz", query[0], query[2]),
        "output": tmp_path / "out.nii.gz",
    }


def arguments(files: dict[str, Path], *more: str) -> list[str]:
    return [
        "--support-image", str(files["image"]),
        "--support-mask", str(files["mask"]),
        "--query", str(files["query"]),
        "--output", str(files["output"]),
        *more,
    ]  # fmt: skip


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def stored_as(pixels: np.ndarray, affine: np.ndarray, orientation: np.ndarray) -> Volume:
    """The same physical volume with its axes permuted and flipped."""
    turned = np.ascontiguousarray(apply_orientation(pixels, orientation))
    return turned, affine @ inv_ornt_aff(orientation, pixels.shape)


@pytest.mark.parametrize("method", ["copy_mask", "registration"])
def test_command_labels_a_volume(files, support, query, method, ask):
    figure = files["output"].with_name("preview.png")
    words = arguments(files, "--figure", str(figure), "--support-slice", "2", f"method={method}")
    if method == "copy_mask":  # in a process of its own
        command = [sys.executable, "-m", "fsmis.segment", *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    else:
        done = ask(main, *words)
    assert done.returncode == 0, done.stderr
    image, label, affine = query
    output = nib.load(files["output"])
    assert output.shape == image.shape
    assert output.get_data_dtype() == np.uint8
    assert np.allclose(output.affine, affine)
    written = read(files["output"])
    present = np.unique(support[1][:, :, 2])
    assert np.array_equal(np.unique(written), present)
    voxels = np.count_nonzero(written == LIVER)
    millilitres = voxels * 2.5 * 2.5 * 7.7 / 1000
    assert f"label {LIVER}: {voxels} voxels, {millilitres:.1f} ml" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert dice(written == LIVER, label == LIVER) > 0.5


def test_copied_mask_lies_where_it_was_drawn(files, support):
    """Same geometry: every slice holds the labelled slice, pixel by pixel."""
    main(arguments(files, "--support-slice", "2", COPY, "size=128"))
    written, labelled = read(files["output"]), support[1][:, :, 2]
    assert np.array_equal(written, np.repeat(labelled[:, :, np.newaxis], 8, axis=2))


def test_as_few_slices_as_show_every_label(files, support, capsys):
    label = np.zeros_like(support[1])
    label[20:80, 20:60, 3:6] = 1  # most of all in slice 3
    label[20:80, 60:64, 3] = 1
    label[90:100, 20:30, 3] = 2  # most of it lies in slice 5
    label[90:110, 20:60, 5] = 2
    label[90:110, 70:110, 0] = 3
    save(files["mask"], label, support[2])
    few = [COPY, "size=128", "support_slices=null"]
    main(arguments(files, *few))
    printed = capsys.readouterr()
    assert "support: slices 0 (label 3), 5 (labels 1, 2) of" in printed.out
    assert "not looked for" not in printed.err
    assert np.unique(read(files["output"])).tolist() == [0, 1, 2, 3]
    main(arguments(files, *few, "support_area=1"))
    assert "slices 0 (label 3), 3 (label 1), 5 (label 2) of" in capsys.readouterr().out
    assert "support_area=2: give a share" in refused(
        arguments(files, COPY, "support_area=2"), capsys
    )


def test_what_is_not_looked_for_is_said(files, support, capsys):
    label = support[1].copy()
    label[0, 0, 0] = 9  # a pixel of another slice
    save(files["mask"], label, support[2])
    main(arguments(files, COPY, "--support-slice", "2"))
    assert ", 9 are in other slices of the mask alone" in capsys.readouterr().err
    main(arguments(files, COPY, "size=64"))
    assert "note: labels 9 cover less than a pixel" in capsys.readouterr().err
    label = np.where(label == 9, 9, 0).astype(label.dtype)
    save(files["mask"], label, support[2])
    assert "no label covers a pixel" in refused(arguments(files, COPY, "size=64"), capsys)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(of_support=st.sampled_from(ORIENTATIONS), of_query=st.sampled_from(ORIENTATIONS))
def test_orientation_of_storage_does_not_matter(files, support, query, of_support, of_query):
    main(arguments(files, COPY))
    expected = read(files["output"])

    image, label, affine = support
    turned = {
        **files,
        "image": save(files["image"].with_name("s2.nii.gz"), *stored_as(image, affine, of_support)),
        "mask": save(files["mask"].with_name("m2.nii.gz"), *stored_as(label, affine, of_support)),
        "query": files["query"].with_name("q2.nii.gz"),
        "output": files["output"].with_name("out2.nii.gz"),
    }
    save(turned["query"], *stored_as(query[0], query[2], of_query))
    main(arguments(turned, COPY))
    assert np.allclose(nib.load(turned["output"]).affine, nib.load(turned["query"]).affine)
    assert np.array_equal(read(turned["output"]), stored_as(expected, query[2], of_query)[0])


def test_support_slice_counts_as_stored(files, support, query):
    """Slice 2 of a volume stored from head to feet is slice 5 of the same stored upwards."""
    main(arguments(files, "--support-slice", "5", COPY))
    expected = read(files["output"])
    downwards = np.array([[0, 1], [1, 1], [2, -1]])
    for name, pixels in (("image", support[0]), ("mask", support[1])):
        save(files[name], *stored_as(pixels, support[2], downwards))
    main(arguments(files, "--support-slice", "2", COPY))
    assert np.array_equal(read(files["output"]), expected)


@pytest.mark.parametrize("how", ["placed by its affine", "placed by --support-slice", "alone"])
def test_a_mask_of_one_slice(files, support, how):
    main(arguments(files, "--support-slice", "3", COPY))
    expected = read(files["output"])
    image, label, affine = support
    placed = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]])
    if how == "placed by its affine":
        save(files["mask"], label[:, :, 3:4], placed)
        main(arguments(files, COPY))
    elif how == "placed by --support-slice":
        save(files["mask"], label[:, :, 3:4], affine)
        main(arguments(files, "--support-slice", "3", COPY))
    else:
        save(files["mask"], label[:, :, 3], affine)
        save(files["image"], image[:, :, 3], affine)
        main(arguments(files, COPY))
    assert np.array_equal(read(files["output"]), expected)


def test_other_size_spacing_and_angle_of_the_query(files, query):
    """Anisotropic pixels of a smaller field of view, oblique, 1 mm apart in the file."""
    angle = np.deg2rad(20)
    oblique = np.eye(4)
    oblique[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = oblique @ query[2] @ np.diag([1, 2, 1, 1])
    save(files["query"], query[0][20:110, ::2], affine)
    main(arguments(files, COPY))
    output = nib.load(files["output"])
    assert output.shape == (90, 64, 8)
    assert np.allclose(output.affine, affine, atol=1e-4)
    assert LIVER in np.unique(read(files["output"]))


def test_label_values_are_kept(files, support):
    _, label, affine = support
    renamed = np.array([0, 7, 300, 41, 65535], np.uint16)[label]
    save(files["mask"], renamed, affine)
    main(arguments(files, "--support-slice", "2", COPY, "size=128"))
    written = read(files["output"])
    assert written.dtype == np.uint16
    assert np.array_equal(written[:, :, 0], renamed[:, :, 2])


def test_labels_may_be_stored_as_nearly_whole_floats(files, support):
    main(arguments(files, COPY))
    expected = read(files["output"])
    save(files["mask"], support[1] * np.float32(0.9999), support[2])
    main(arguments(files, COPY))
    assert np.array_equal(read(files["output"]), expected)


def test_values_outside_the_window_change_nothing(query):
    outlying = query[0].copy()
    outlying[query[0] >= 1000] = 30000
    window, everything = (Intensities(kept, (0, 100)) for kept in ((0, 1000), None))
    assert np.array_equal(window.scale(outlying), window.scale(query[0]))
    assert not np.array_equal(everything.scale(outlying), everything.scale(query[0]))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_are_axial_in_every_orientation(query, orientation):
    pixels, _, affine = query
    expected = AxialVolume.turn(pixels.T, affine)
    stored, stored_affine = stored_as(pixels, affine, orientation)
    volume = AxialVolume.turn(stored.T, stored_affine)
    assert np.array_equal(volume.pixels, expected.pixels)
    assert np.allclose(volume.affine, expected.affine)
    assert np.array_equal(volume.turn_back(volume.pixels), stored.T)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(90, 300), st.integers(90, 300)),
    spacing=st.tuples(st.floats(0.6, 2.5), st.floats(0.6, 2.5)),
    other_mm=st.floats(100, 500),
)
def test_to_the_common_grid_and_back(shape, spacing, other_mm):
    """An organ of a fifth of the field of view comes back as it was."""
    volume = _volume(shape, spacing)
    other = _volume((100, 100), (other_mm / 100,) * 2)
    grid = CommonGrid.around([volume, other], 256)
    rows, columns = np.indices(shape) * np.reshape(spacing, (2, 1, 1))
    extent = np.multiply(shape, spacing)
    radius = max(max(extent) / 5, 8 * grid.pixel_mm, 8 * max(spacing))
    organ = np.hypot(rows - extent[0] / 2, columns - extent[1] / 2)[np.newaxis] <= radius
    on_grid = grid.to_common_grid(organ, volume.spacing) >= 0.5
    assert on_grid.shape == (1, 256, 256)
    assert dice(grid.back_to_query(on_grid, volume), organ) > 0.97


def _volume(shape: tuple[int, int], spacing: tuple[float, float]) -> AxialVolume:
    affine = np.diag([-spacing[1], spacing[0], 5.0, 1.0])
    return AxialVolume.turn(np.zeros((1, *shape)), affine)


def test_the_whole_field_of_view_of_both_is_on_the_grid():
    wide, tall = _volume((100, 400), (1.0, 1.0)), _volume((250, 100), (2.0, 1.0))
    grid = CommonGrid.around([wide, tall], 256)
    assert grid.pixel_mm == pytest.approx(500 / 256)
    for volume in (wide, tall):
        everywhere = np.ones_like(volume.pixels)
        area_mm2 = everywhere.sum() * np.prod(volume.spacing[1:])
        on_grid = grid.to_common_grid(everywhere, volume.spacing)
        assert on_grid.sum() * grid.pixel_mm**2 == pytest.approx(area_mm2, rel=0.03)


def _truncated(files, support):
    files["query"].write_bytes(files["query"].read_bytes()[:2000])


def _rgb(files, support):
    rgb = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(files["query"], rgb, np.eye(4))


def _nan(files, support):
    image = support[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    save(files["image"], image, support[2])


def _two_volumes(files, support):
    save(files["query"], np.zeros((8, 8, 8, 2), np.int16), np.eye(4))


def _shifted_mask(files, support):
    shifted = support[2].copy()
    shifted[0, 3] += 5
    save(files["mask"], support[1], shifted)


def _flipped_mask(files, support):
    save(files["mask"], support[1], support[2] @ np.diag([-1, 1, 1, 1]))


def _cropped_mask(files, support):
    save(files["mask"], support[1][:-1], support[2])


def _float_mask(files, support):
    save(files["mask"], support[1] * np.float32(0.5), support[2])


def _negative_mask(files, support):
    save(files["mask"], -support[1].astype(np.int16), support[2])


def _empty_mask(files, support):
    save(files["mask"], np.zeros_like(support[1]), support[2])


def _one_pixel_label(files, support):
    label = np.zeros_like(support[1])
    label[40, 40, 2] = 1
    save(files["mask"], label, support[2])


def _misplaced_slice(files, support):
    between = support[2].copy()
    between[2, 3] += 0.4 * 7.7
    save(files["mask"], support[1][:, :, 2:3], between)


def _coronal_slice(files, support):
    save(files["query"], support[0][:, :1], support[2])


@pytest.mark.parametrize(
    ("spoil", "named", "fix"),
    [
        (_truncated, "query", "download it again"),
        (_rgb, "query", "grey values"),
        (_nan, "image", "NaN"),
        (_two_volumes, "query", "one volume a file"),
        (_shifted_mask, "mask", "5 mm"),
        (_flipped_mask, "mask", "keep its geometry"),
        (_cropped_mask, "mask", "draw the mask on that image"),
        (_float_mask, "mask", "not a whole number"),
        (_negative_mask, "mask", "0 to 65535"),
        (_empty_mask, "mask", "the mask is empty, every pixel is 0; draw at least one organ"),
        (_one_pixel_label, None, "raise size"),
        (_misplaced_slice, "mask", "give --support-slice"),
        (_coronal_slice, "query", "axial slice"),
    ],
)
def test_bad_files_are_refused_in_one_line(files, support, capsys, spoil, named, fix):
    spoil(files, support)
    message = refused(arguments(files, COPY, "size=64"), capsys)
    assert fix in message
    assert named is None or files[named].name in message
    assert not list(files["output"].parent.glob("*out*"))


def refused(command: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(command)
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize(
    ("more", "fix"),
    [
        (["--support-slice", "8"], "slices 0 to 7"),
        (["--support-slice", "-1"], "slices 0 to 7"),
        (["--figure", "preview.bmp"], "must end in"),
        (["method=nothing"], "registration"),
        (["method=panet"], "method=panet: works on the folds of a dataset"),
        (["method=predictions"], "choose another method"),
        (["protocol.n_parts=3"], "protocol"),
        (["window=[5,5]"], "window"),
        (["not an override"], "not an override"),
        (["+foo=1"], "there is no setting foo; --help lists them"),
        (["+zoom=none"], "zoom is chosen by zoom@method.zoom=X, X one of default, none"),
        (["threads=0"], "threads=0: choose 1 or more"),
        (["size=0"], "size=0: choose 1 or more"),
        (["size=big"], "size=big: "),
        (["figure_slices=0"], "figure_slices=0: choose 1 or more"),
        (["percentiles=[5]"], "percentiles=[5.0]: give two"),
        (["window=[low,high]"], "window[0]=low"),
        (["method=augment_match_prompt", "segmenter.checkpoint=no.pt"], "segmenter.checkpoint=no."),
    ],
)
def test_bad_arguments_are_refused_in_one_line(files, capsys, more, fix):
    assert fix in refused(arguments(files, COPY, *more), capsys)
    assert not files["output"].exists()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("out.png", ".nii or .nii.gz"),
        ("nowhere/out.nii.gz", "does not exist"),
        ("q.nii.gz", "this is an input"),
    ],
)
def test_output_is_checked_before_any_work(files, capsys, name, fix):
    before = files["query"].read_bytes()
    files["output"] = files["output"].with_name("x").parent / name
    assert fix in refused(arguments(files, COPY), capsys)
    assert files["query"].read_bytes() == before


def test_missing_file_is_named(files, capsys):
    files["query"].unlink()
    assert "q.nii.gz" in refused(arguments(files, COPY), capsys)


def test_exhausted_gpu_is_said_in_one_line(files, capsys, monkeypatch):
    def exhausted(*_):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("fsmis.methods.registration.CopyMask.segment", exhausted)
    message = refused(arguments(files, COPY), capsys)
    assert "CUDA out of memory" in message and "device=cpu" in message
    assert not files["output"].exists()


def test_a_label_of_several_parts_is_named(files, support, capsys):
    _, labels, affine = support
    apart = np.where((labels == RIGHT_KIDNEY) | (labels == LEFT_KIDNEY), 9, labels)
    apart[2:12, 2:12, 2:5] = 8  # one organ, though two parts show in slice 3
    apart[6:8, 2:12, 3] = 0
    save(files["mask"], apart, affine)
    small = ["segmenter.checkpoint=random", "segmenter.image_size=64", "support_set.count=2"]
    settings = [*small, "size=64", "device=cpu"]
    main(arguments(files, *settings))
    assert "note: labels 9 have several parts" in " ".join(capsys.readouterr().err.split())
    main(arguments(files, *settings, "method.largest_component=false"))
    assert "several parts" not in capsys.readouterr().err
