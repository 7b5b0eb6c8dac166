"""Whole volumes from Python: every kind of volume in, the same kind out, on its own voxels."""

import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

import fsmis
from fsmis import VolumeSegmenter, segment_volume
from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.settings import limit_threads
from tests.test_segment import (  # noqa: F401 (fixtures)
    LIVER,
    ORIENTATIONS,
    arguments,
    files,
    main,
    query,
    read,
    save,
    support,
)

COPY = ["method=copy_mask", "size=128"]
PUBLIC = {
    *("segment_volume", "VolumeSegmenter", "Dataset", "Episode", "Method", "Matcher", "read_runs"),
}


def test_public_names_are_imported_when_asked_for():
    code = (
        "import sys, fsmis; assert 'torch' not in sys.modules and 'pandas' not in sys.modules;"
        "print(*(getattr(fsmis, name).__name__ for name in fsmis.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(done.stdout.split()) == PUBLIC, done.stderr
    assert set(dir(fsmis)) >= PUBLIC
    with pytest.raises(AttributeError, match="segment_volumes"):
        fsmis.segment_volumes  # noqa: B018


def test_public_names_show_their_use():
    for name in PUBLIC:
        told = getattr(fsmis, name).__doc__
        assert f"from fsmis import {name}" in told, name


def test_the_command_is_a_shell_over_it(files):  # noqa: F811
    main(arguments(files, *COPY))
    labels = segment_volume(files["query"], files["image"], files["mask"], settings=COPY)
    written = nib.load(files["output"])
    assert isinstance(labels, nib.Nifti1Image)
    assert np.array_equal(np.asanyarray(labels.dataobj), np.asanyarray(written.dataobj))
    assert np.array_equal(labels.affine, written.affine)
    assert labels.get_data_dtype() == written.get_data_dtype()


def test_threads_are_those_that_are_set(files, monkeypatch):  # noqa: F811
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))  # put back at the end
    try:
        VolumeSegmenter(files["image"], files["mask"], settings=[*COPY, f"threads={before + 1}"])
        assert torch.get_num_threads() == before + 1
    finally:
        limit_threads(before)


def axial(pixels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """A phantom (x, y, z) as an array [Z, H, W] with its spacing (z, y, x)."""
    return pixels.T, tuple(np.linalg.norm(affine[:3, :3], axis=0)[::-1])


def test_files_images_and_arrays_agree(files, support, query):  # noqa: F811
    image, label, affine = support
    of_files = segment_volume(str(files["query"]), files["image"], files["mask"], settings=COPY)
    images = [nib.Nifti1Image(a, affine) for a in (image, label)]
    of_images = VolumeSegmenter(*images, settings=COPY)
    asked = nib.Nifti1Image(query[0], query[2])
    answer = of_images.segment(asked)
    assert np.array_equal(np.asanyarray(answer.dataobj), np.asanyarray(of_files.dataobj))

    (image, spacing), (label, _), (pixels, of_query) = (
        axial(image, affine), axial(label, affine), axial(query[0], query[2])
    )  # fmt: skip
    of_arrays = VolumeSegmenter(image, label, support_spacing=spacing, settings=COPY)
    answer = of_arrays.segment(pixels, spacing=of_query)
    assert isinstance(answer, np.ndarray) and answer.dtype == np.uint8
    assert np.array_equal(answer.T, np.asanyarray(of_files.dataobj))


def test_the_model_is_built_once(files, monkeypatch):  # noqa: F811
    from fsmis.methods.registration import CopyMask

    built = []
    monkeypatch.setattr(CopyMask, "__init__", lambda self: built.append(self))
    segmenter = VolumeSegmenter(files["image"], files["mask"], settings=COPY)
    assert not built
    for _ in range(2):
        segmenter.segment(files["query"])
    assert len(built) == 1


def test_an_output_is_written_beside(files):  # noqa: F811
    labels = segment_volume(
        files["query"], files["image"], files["mask"], output=files["output"], settings=COPY
    )
    assert np.array_equal(read(files["output"]), np.asanyarray(labels.dataobj))


def test_doubts_are_warnings_of_each_query_and_lose_nothing(files, query):  # noqa: F811
    output, other = files["output"], files["query"].with_name("q2.nii.gz")
    save(other, query[0], query[2])
    segmenter = VolumeSegmenter(files["image"], files["mask"], settings=COPY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for path in (files["query"], other):
            segmenter.segment(path)
    told = [text for some in caught if "end of the volume" in (text := str(some.message))]
    assert [text.split(":")[0] for text in told] == [str(files["query"]), str(other)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            segmenter.segment(other, output=output)
    assert output.is_file()


def test_an_output_replaces_no_input(files):  # noqa: F811
    for name in ("query", "image", "mask"):
        before = files[name].read_bytes()
        with pytest.raises(UserError, match="this is an input"):
            segment_volume(
                files["query"], files["image"], files["mask"], output=files[name], settings=COPY
            )
        assert files[name].read_bytes() == before


def test_an_output_replaces_no_file_of_an_image(files):  # noqa: F811
    before = files["query"].read_bytes()
    with pytest.raises(UserError, match="this is an input"):
        segment_volume(
            nib.load(files["query"]),
            *(files["image"], files["mask"]),
            output=files["query"],
            settings=COPY,
        )
    assert files["query"].read_bytes() == before


def test_slices_of_one_support_may_come_in_a_list_of_supports(files):  # noqa: F811
    for some in (2, [2], [[2]], np.array([2]), (np.array([2]),)):
        segmenter = VolumeSegmenter(
            [files["image"]], [files["mask"]], support_slice=some, settings=COPY
        )
        assert [slice_.stored_position for slice_ in segmenter.slices[0]] == [2]
    for nothing in (None, [None]):
        VolumeSegmenter([files["image"]], [files["mask"]], support_slice=nothing, settings=COPY)
    two = [files["image"]] * 2, [files["mask"]] * 2
    assert len(VolumeSegmenter(*two, support_slice=np.array([2, 3]), settings=COPY).slices) == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("methods=copy_mask", "there is no setting methods; did you mean method"),
        ("method.nope=1", "there is no setting"),
        ("method=nope", "registration"),
        ("method=sam2_single device=cuda:99", "device"),
        ("method=augment_match_prompt method.memories=0", "memories"),
        ("method=augment_match_prompt support_set.kind=foo", "kind"),
        ("method=universeg", "(?i)universeg"),
    ],
)
def test_a_setting_that_cannot_be_used_is_said_in_one_line(files, setting, said):  # noqa: F811
    with pytest.raises(UserError, match=said) as raised:
        segment_volume(
            files["query"], files["image"], files["mask"], settings=["size=128", *setting.split()]
        )
    assert "\n" not in str(raised.value)


def test_an_array_of_one_slice_needs_its_place(support):  # noqa: F811
    image, label, _ = support
    z = int(label.any(axis=(1, 2)).argmax())
    given = {"support_spacing": (5.0, 1.0, 1.0), "settings": COPY}
    with pytest.raises(UserError, match="an array of one slice; say which by support_slice"):
        VolumeSegmenter(image, label[z], **given)
    segmenter = VolumeSegmenter(image, label[z], support_slice=z, **given)
    assert [some.stored_position for some in segmenter.slices[0]] == [z]


def test_hydra_may_be_in_use_already(files):  # noqa: F811
    """As after ``import sam2``, or in a program with ``@hydra.main``; and stays so."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        VolumeSegmenter(files["image"], files["mask"], settings=COPY)
        assert compose("segment").method is not None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"spacing": (1, 1, 1)}, "no spacing with a file"),
        ({"query": np.zeros((2, 8, 8))}, "the query: give an array with its spacing"),
        ({"query": np.zeros((2, 8, 8)), "spacing": (1, 0, 1)}, "three sizes in mm above 0"),
        ({"query": [1, 2]}, "the query is a list"),
        ({"query": nib.Nifti1Image(np.zeros((8, 8, 2)), None)}, "the query: it has no affine"),
        ({"support_label": []}, "1 support images with 0 masks"),
        ({"support_slice": 9}, "slices 0 to 7"),
        ({"output": "labels.dcm"}, "a DICOM-SEG refers to the slices of a DICOM query"),
        ({"output": "labels.png"}, "the name must end in"),
    ],
)
def test_misuse_is_said(files, more, said):  # noqa: F811
    given = {"query": files["query"], "support_image": files["image"], "settings": COPY}
    given |= {"support_label": files["mask"]} | more
    with pytest.raises(UserError, match=said):
        segment_volume(**given)


@pytest.fixture
def segmenter(files) -> VolumeSegmenter:  # noqa: F811
    return VolumeSegmenter(files["image"], files["mask"], settings=COPY)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(st.floats(0.7, 4), st.floats(0.7, 4), st.floats(0.7, 9)),
    codes=st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 2])),
    angle=st.floats(-30, 30),
)
@example(orientation=ORIENTATIONS[0], spacing=(1.0, 1.0, 1.0), codes=(1, 0), angle=1.0)
def test_the_answer_lies_on_the_queries_own_voxels(
    segmenter,
    query,  # noqa: F811
    orientation,
    spacing,
    codes,
    angle,
):
    """Whatever the order, flips and size of the axes, and whatever the header says of its place."""
    pixels = query[0][:, :, ::2]
    turn = np.deg2rad(angle)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = affine @ np.diag([*spacing, 1.0]) @ np.diag([-1, 1, 1, 1])
    affine[:3, 3] = [40, -20, 300]
    stored = np.ascontiguousarray(apply_orientation(pixels, orientation))
    image = nib.Nifti1Image(stored, affine @ inv_ornt_aff(orientation, pixels.shape))
    image.header.set_sform(image.affine, codes[0])
    image.header.set_qform(image.affine, codes[1])
    affine_read = image.header.get_best_affine()  # as a program would: by its codes
    image = nib.Nifti1Image(stored, affine_read, image.header)
    answer = segmenter.segment(image)
    assert answer.shape == image.shape
    assert np.array_equal(answer.affine, image.affine)
    for name in ("get_sform", "get_qform"):
        assert np.array_equal(
            getattr(answer.header, name)(), getattr(image.header, name)(), equal_nan=True
        )
    of_answer = [int(answer.header[f"{form}_code"]) for form in ("sform", "qform")]
    assert of_answer == list(codes)
    if any(codes):  # else orientation is lost with the header, and slices may be other planes
        # headers hold float32, and voxels halfway between two fall to either: the same rounding
        rounded = affine_read @ np.linalg.inv(inv_ornt_aff(orientation, pixels.shape))
        upright = segmenter.segment(nib.Nifti1Image(pixels, rounded))
        turned = apply_orientation(np.asanyarray(upright.dataobj), orientation)
        assert np.array_equal(np.asanyarray(answer.dataobj), turned)
        assert LIVER in turned
