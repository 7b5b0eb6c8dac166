"""Folders of queries, several labelled slices and supports, DICOM in and out."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fsmis.api import VolumeSegmenter
from fsmis.data.dicom import series_files
from fsmis.data.volume import Volume, queries_in
from fsmis.errors import UserError
from fsmis.files import sha256
from fsmis.methods.registration import CopyMask
from fsmis.pipeline.whole_volume import served
from fsmis.reporting.findings import COLUMNS, Found, LabelledFolder
from fsmis.segment import _identity
from tests.test_segment import (  # noqa: F401 (fixtures)
    COPY,
    REPOSITORY,
    arguments,
    files,
    main,
    query,
    read,
    refused,
    save,
    support,
)

NAMES = ["q1", "q2", "q10"]


@pytest.fixture
def many(files, query):  # noqa: F811
    """The same with a folder of three queries."""
    folder = files["query"].with_name("queries")
    folder.mkdir()
    for number, name in enumerate(NAMES):
        save(folder / f"{name}.nii.gz", query[0] + number, query[2])
    (folder / "._q1.nii.gz").write_bytes(b"left by macOS")
    (folder / "readme.txt").write_text("no query")
    return files | {"query": folder, "output": folder.with_name("labels")}


def summary(files) -> pd.DataFrame:  # noqa: F811
    return pd.read_csv(files["output"] / "summary.csv")


def times(files) -> dict[str, int]:  # noqa: F811
    return {path.name: path.stat().st_mtime_ns for path in files["output"].glob("*.nii.gz")}


def test_a_folder_of_queries(many, capsys):
    main(arguments(many, COPY, "--figure", str(many["output"])))
    table = summary(many)
    assert list(dict.fromkeys(table["query"])) == NAMES  # as people count
    for name in NAMES:
        written = nib.load(many["output"] / f"{name}.nii.gz")
        assert (many["output"] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        rows = table[table["query"] == name].set_index("label")
        voxels = np.bincount(np.asanyarray(written.dataobj).ravel())
        assert rows["voxels"].to_dict() == {v: n for v, n in enumerate(voxels) if v and n}
        ml = abs(np.linalg.det(written.affine[:3, :3])) / 1000
        assert np.allclose(rows["ml"], rows["voxels"] * ml, atol=1e-3)
        assert set(rows["first_slice"]) == {0} and set(rows["last_slice"]) == {7}
    assert "q10: label 1: " in capsys.readouterr().out


def test_what_is_finished_stays(many, capsys):
    main(arguments(many, COPY))
    before = times(many)
    (many["output"] / "q2.nii.gz").unlink()
    main(arguments(many, COPY, "figure_slices=2"))
    after = times(many)
    assert "3 in" in capsys.readouterr().out
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"q2.nii.gz"}


def test_what_was_made_from_something_else_is_made_anew(many, capsys):
    main(arguments(many, COPY))
    before = times(many)
    save(many["query"] / "q1.nii.gz", read(many["query"] / "q1.nii.gz")[::-1], np.eye(4))
    main(arguments(many, COPY))
    assert "note: q1 are labelled anew" in capsys.readouterr().err
    changed = {name for name, at in times(many).items() if at != before[name]}
    assert changed == {"q1.nii.gz"}
    main(arguments(many, COPY, "--support-slice", "2"))
    assert "note: q1, q2, q10 are labelled anew" in capsys.readouterr().err


def test_figures_are_drawn_of_what_is_finished(many):
    main(arguments(many, COPY))
    labels = {path.name: read(path) for path in many["output"].glob("*.nii.gz")}
    before, figures = summary(many), many["output"].with_name("figures")
    main(arguments(many, COPY, "--figure", str(figures)))
    assert {path.name for path in figures.iterdir()} == {f"{name}.png" for name in NAMES}
    pd.testing.assert_frame_equal(summary(many), before)
    for name, label in labels.items():
        assert np.array_equal(read(many["output"] / name), label)


def test_what_an_output_depends_on_counts_weights_and_code(files, tmp_path, monkeypatch):  # noqa: F811
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"some")
    own = [f"segmenter.checkpoint={weights}", "device=cpu"]
    segmenter = VolumeSegmenter(files["image"], files["mask"], settings=own)
    first = _identity(segmenter, [])
    assert _identity(segmenter, []) == first
    monkeypatch.setattr("fsmis.runs.variant.source_hash", lambda *of: f"edited {of}")
    edited = _identity(segmenter, [])
    monkeypatch.undo()
    weights.write_bytes(b"other")
    assert len({first, edited, _identity(segmenter, [])}) == 3


def test_a_damaged_query_stops_no_other_and_is_tried_again(many, capsys):
    good = (many["query"] / "q2.nii.gz").read_bytes()
    (many["query"] / "q2.nii.gz").write_bytes(good[:500])
    with pytest.raises(SystemExit) as stop:
        main(arguments(many, COPY))
    assert stop.value.code == 1
    assert "q2 failed: " in capsys.readouterr().err
    assert set(times(many)) == {"q1.nii.gz", "q10.nii.gz"}
    failed = summary(many).set_index("query").loc["q2"]
    assert failed["notes"].startswith("failed: ") and np.isnan(failed["voxels"])
    (many["query"] / "q2.nii.gz").write_bytes(good)
    main(arguments(many, COPY))
    assert set(times(many)) == {f"{name}.nii.gz" for name in NAMES}
    assert summary(many)["voxels"].notna().all()


def test_an_unreadable_query_stops_no_other(many, capsys, monkeypatch):
    def denied(path: Path) -> str:
        if path.name == "q2.nii.gz" and path.parent == many["query"]:
            raise UserError(f"{path}: permission denied")
        return sha256(path)

    monkeypatch.setattr("fsmis.reporting.findings.sha256", denied)  # root may read everything
    with pytest.raises(SystemExit) as stop:
        main(arguments(many, COPY))
    assert stop.value.code == 1
    assert "q2 failed: " in capsys.readouterr().err
    assert set(times(many)) == {"q1.nii.gz", "q10.nii.gz"}


def test_rows_of_another_command_stay(many, monkeypatch):
    """Another command labels a query of the folder while this one works."""
    monkeypatch.setattr("fsmis.segment.queries_in", lambda *_: {"q1": many["query"] / "q1.nii.gz"})
    segment = CopyMask.segment

    def meanwhile(self, episode):
        other = LabelledFolder.open(many["output"])
        other.add("elsewhere", None, "0", [Found(1, 0, 0.0, None, None)], [])
        return segment(self, episode)

    monkeypatch.setattr(CopyMask, "segment", meanwhile)
    main(arguments(many, COPY))
    assert set(summary(many)["query"]) == {"q1", "elsewhere"}


def test_killed_in_the_middle_it_resumes(many):
    """The second query kills the process; the first is whole, the others are done afterwards."""
    code = (
        "import os, signal, sys\n"
        "from fsmis.methods.registration import CopyMask\n"
        "from fsmis.segment import main\n"
        "segment, calls = CopyMask.segment, []\n"
        "def once(self, episode):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return segment(self, episode)\n"
        "CopyMask.segment = once\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, *arguments(many, COPY)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = times(many)
    assert set(before) == {"q1.nii.gz"} and set(summary(many)["query"]) == {"q1"}
    main(arguments(many, COPY))
    assert set(summary(many)["query"]) == set(NAMES)
    assert times(many)["q1.nii.gz"] == before["q1.nii.gz"]


def test_an_output_without_its_rows_is_made_again(many):
    """As where the process was killed between the two."""
    main(arguments(many, COPY))
    path = many["output"] / "summary.csv"
    table = pd.read_csv(path)
    table[table["query"] != "q1"].to_csv(path, index=False)
    before = times(many)
    main(arguments(many, COPY))
    assert {name for name, at in times(many).items() if at != before[name]} == {"q1.nii.gz"}
    assert set(summary(many)["query"]) == set(NAMES)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f | {"output": f["query"]}, "the queries are there; choose another folder"),
        (lambda f: f | {"output": f["image"]}, "is a file"),
        (lambda f: f | {"query": f["image"].with_name("empty")}, "no query in it"),
    ],
)
def test_folders_are_checked_before_any_work(many, capsys, spoil, said):
    many["image"].with_name("empty").mkdir()
    assert said in refused(arguments(spoil(many), COPY), capsys)


def test_what_was_not_made_here_is_not_replaced(many, capsys):
    """The user's own masks, named as the queries are, in the folder that is given for outputs."""
    own = many["output"]
    own.mkdir()
    drawn = own / "q2.nii.gz"
    drawn.write_bytes(many["mask"].read_bytes())
    said = refused(arguments(many, COPY), capsys)
    assert "q2.nii.gz: is there already, and no summary.csv" in said
    # one of them labels the support: even beside a summary it is an input
    drawn.rename(own / "q1.nii.gz")
    (own / "summary.csv").write_text(",".join(COLUMNS) + "\n")
    given = many | {"mask": own / "q1.nii.gz"}
    assert "q1.nii.gz: this is an input" in refused(arguments(given, COPY), capsys)
    assert (own / "q1.nii.gz").read_bytes() == many["mask"].read_bytes()


def test_outputs_among_the_queries_are_no_queries(files, query):  # noqa: F811
    within = {"query": files["image"].with_name("in"), "output": files["image"].with_name("in")}
    within["query"].mkdir()
    save(within["query"] / "q.nii.gz", query[0], query[2])
    within["output"] = within["query"] / "labels"
    for _ in range(2):
        main(arguments(files | within, COPY))
    assert set(summary(within)["query"]) == {"q"}
    assert list(queries_in(within["query"], [within["output"]])) == ["q"]


def test_supports_among_the_queries_are_no_queries(many):
    inside = many | {name: many["query"] / f"{name}.nii.gz" for name in ("image", "mask")}
    for name in ("image", "mask"):
        inside[name].write_bytes(many[name].read_bytes())
    main(arguments(inside, COPY))
    assert set(summary(many)["query"]) == set(NAMES)


def test_what_was_corrected_by_hand_stays(many, capsys):
    main(arguments(many, COPY))
    corrected = many["output"] / "q2.nii.gz"
    label = read(corrected)
    save(corrected, np.where(label == 1, 2, label), nib.load(corrected).affine)
    before = corrected.read_bytes()
    main(arguments(many, COPY, "--support-slice", "2"))
    said = capsys.readouterr().err
    assert "q1, q10 are labelled anew" in said and "note: q2 were changed since" in said
    assert corrected.read_bytes() == before
    corrected.unlink()
    main(arguments(many, COPY, "--support-slice", "2"))
    assert corrected.read_bytes() != before


def test_the_device_moves_no_label(many, capsys):
    main(arguments(many, COPY, "device=cpu"))
    main(arguments(many, COPY, "device=auto"))
    assert "0 to label" in capsys.readouterr().out


def test_slices_of_a_support_may_be_given_one_by_one(files, capsys):  # noqa: F811
    main(arguments(files, COPY, "--support-slice", "5", "--support-slice", "2"))
    said = re.sub(r" \(labels? [\d, ]+\)", "", capsys.readouterr().out)
    assert "support: slices 2, 5 of " in said


def test_several_slices_of_a_support(files, support):  # noqa: F811
    segmenter = VolumeSegmenter(
        files["image"], files["mask"], support_slice=[5, 2], settings=[COPY, "size=128"]
    )
    episode = segmenter.prepare(files["image"]).episode
    task = episode.organs["1"]
    assert task.support_slices.tolist() == [2, 5]
    for mask, z in zip(task.support_masks, (2, 5), strict=True):  # from the feet
        assert np.array_equal(mask, support[1][:, :, z].T == 1)
    part = served(episode, None).organs["1"].part
    assert (part[2], part[5]) == (0, 1)  # each slice looks most like itself
    assert set(part) == {0, 1}


def test_the_labelled_slice_on_the_other_side_serves_too(files):  # noqa: F811
    """Of a query that is the support itself, so that every slice is where it is."""
    segmenter = VolumeSegmenter(files["image"], files["mask"], support_slice=[5, 2])
    episode = segmenter.prepare(files["image"]).episode
    task = served(episode, segmenter.method.segmenter).organs["1"]
    assert task.serving() == [[2], [2], [5, 2], [5, 2], [2, 5], [5], [5], [5]]


def test_a_whole_labelled_volume_looks_for_every_label(files, support):  # noqa: F811
    label = support[1].copy()
    label[:] = 0
    label[20:60, 20:60, 0:3] = 1
    label[70:90, 20:60, 4:8] = 2
    label[70:90, 70:90, 6] = 3
    save(files["mask"], label, support[2])
    segmenter = VolumeSegmenter(
        files["image"], files["mask"], settings=[COPY, "size=128", "support_slices=2"]
    )
    at = [some.stored_position for some in segmenter.slices[0]]
    assert at == [1, 2, 5, 6, 7] and segmenter.labels == [1, 2, 3]
    values = [some.values for some in segmenter.slices[0]]
    assert values == [[1], [1], [2], [3], [2]]
    organs = segmenter.prepare(files["query"]).episode.organs
    assert {organ: len(task.support_slices) for organ, task in organs.items()} == {
        "1": 2, "2": 2, "3": 1,
    }  # fmt: skip


def test_several_supports(files, support, query, capsys):  # noqa: F811
    """Of two supports, one of which is the query itself, that one serves."""
    own = save(files["image"].with_name("own.nii.gz"), query[0], query[2])
    labels = save(files["image"].with_name("own_m.nii.gz"), query[1], query[2])
    main(
        [
            *arguments(files, COPY, "size=128", "--support-slice", "2", "--support-slice", "3"),
            *("--support-image", str(own), "--support-mask", str(labels)),
        ]
    )
    said = re.sub(r" \(labels? [\d, ]+\)", "", capsys.readouterr().out)
    assert "support: slice 3 of " in said
    written = read(files["output"])
    assert np.array_equal(written[:, :, 3], query[1][:, :, 3])
    short = [*arguments(files, COPY), "--support-image", str(own)]
    assert "give a mask for each image" in refused(short, capsys)
    lacking = ["--support-slice", "2", "--support-image", str(own), "--support-mask", str(labels)]
    assert "an entry for each image" in refused([*arguments(files, COPY), *lacking], capsys)


def write_series(folder: Path, pixels: np.ndarray, affine: np.ndarray, blank: bool = False) -> Path:
    """A volume (x, y, z), axial, as a DICOM series; ``blank`` leaves its identity out."""
    folder.mkdir()
    lps = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    frame, study, series = (generate_uid() for _ in range(3))
    for z in range(pixels.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.SOPClassUID = "" if blank else CTImageStorage
        slice_.SOPInstanceUID = "" if blank else slice_.file_meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = ("", "") if blank else (study, series)
        slice_.FrameOfReferenceUID, slice_.Modality, slice_.PatientID = frame, "MR", "p"
        slice_.ImagePositionPatient = (lps @ [0, 0, z, 1]).tolist()
        slice_.ImageOrientationPatient = (lps[:, :2] / spacing[:2]).T.ravel().tolist()
        slice_.PixelSpacing = [spacing[1], spacing[0]]
        slice_.SliceThickness = spacing[2]
        slice_.Rows, slice_.Columns = pixels.shape[1], pixels.shape[0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.PixelData = pixels[:, :, z].T.astype("<u2").tobytes()
        # names in another order than the slices
        slice_.save_as(folder / f"{(7 * z) % pixels.shape[2]}.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("no slice")
    return folder


@pytest.mark.parametrize("blank", [False, True])
def test_dicom_in_and_dicom_seg_out(files, support, query, blank):  # noqa: F811
    highdicom = pytest.importorskip("highdicom")
    main(arguments(files, COPY))
    expected = read(files["output"])
    series = write_series(files["query"].with_name("series"), query[0], query[2], blank)
    labelled = write_series(files["image"].with_name("support"), support[0], support[2], blank)
    of_dicom = files | {"query": series, "image": labelled}
    main(arguments(of_dicom, COPY))
    answer = Volume.read(files["output"], "answer").axial
    assert np.array_equal(answer.turn_back(answer.pixels), read(files["output"]).T)
    upright = Volume.read(save(files["query"], expected, query[2]), "expected").axial
    assert np.array_equal(answer.pixels, upright.pixels)
    assert np.allclose(answer.affine, upright.affine, atol=1e-4)

    main(arguments(of_dicom | {"output": files["output"].with_name("out.dcm")}, COPY))
    seg = highdicom.seg.segread(files["output"].with_name("out.dcm"))
    names = [seg.get_segment_description(i).segment_label for i in seg.segment_numbers]
    assert names == [f"label {value}" for value in np.unique(expected) if value]
    heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in series_files(series)]
    heads.sort(key=lambda head: head.ImagePositionPatient[2])
    found = seg.get_pixels_by_source_instance(
        [head.file_meta.MediaStorageSOPInstanceUID for head in heads], combine_segments=True
    )
    assert np.array_equal(found.T, expected)
    if not blank:
        assert seg.StudyInstanceUID == heads[0].StudyInstanceUID


@pytest.mark.parametrize("name", ["3.dcm", "labels.dcm", "labels.nii.gz"])
def test_no_output_among_the_slices_of_a_series(files, query, capsys, name):  # noqa: F811
    series = write_series(files["query"].with_name("series"), query[0], query[2])
    before = {path.name: path.read_bytes() for path in series.iterdir()}
    given = arguments(files | {"query": series, "output": series / name}, COPY)
    assert "lies in the folder of a DICOM series" in refused(given, capsys)
    assert {path.name: path.read_bytes() for path in series.iterdir()} == before


def test_a_folder_of_series_answers_in_kind(files, query):  # noqa: F811
    pytest.importorskip("highdicom")
    folder = files["query"].with_name("patients")
    folder.mkdir()
    write_series(folder / "anna", query[0], query[2])
    save(folder / "berta.nii.gz", query[0], query[2])
    many = files | {"query": folder, "output": folder.with_name("labels")}
    main(arguments(many, COPY, "dicom_seg=true"))
    names = {path.name for path in many["output"].iterdir()}
    assert names == {"anna.dcm", "berta.nii.gz", "summary.csv"}


def test_nothing_found_is_an_answer_without_a_dicom_seg(files, query, capsys, monkeypatch):  # noqa: F811
    pytest.importorskip("highdicom")
    folder = files["query"].with_name("patients")
    folder.mkdir()
    write_series(folder / "anna", query[0], query[2])
    many = files | {"query": folder, "output": folder.with_name("labels")}

    def nothing(_, episode):
        shape = episode.query.image.shape
        return {organ: np.zeros(shape, bool) for organ in episode.organs}

    monkeypatch.setattr(CopyMask, "segment", nothing)
    for left in (1, 0):
        main(arguments(many, COPY, "dicom_seg=true"))
        assert f"{left} to label" in capsys.readouterr().out
    assert {path.name for path in many["output"].iterdir()} == {"summary.csv"}
    assert set(summary(many)["voxels"]) == {0}


def test_rounding_in_the_header_mixes_no_series(files, query):  # noqa: F811
    series = write_series(files["query"].with_name("series"), query[0], query[2])
    for number, path in enumerate(sorted(series.glob("*.dcm"))):
        head = pydicom.dcmread(path)
        cosine = 0.8665 + (-1) ** number * 1e-6
        head.ImageOrientationPatient = [cosine, 0.499182, 0, -0.499182, cosine, 0]
        head.save_as(path)
    assert Volume.read(series, "query").axial.pixels.size == query[0].size


def test_a_folder_that_is_no_series_is_refused(files, tmp_path, capsys):  # noqa: F811
    command = arguments(files, COPY)
    command[command.index("--support-image") + 1] = str(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    assert "nothing: a folder without DICOM files" in refused(command, capsys)


def test_a_dicom_seg_is_for_dicom(files, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(CopyMask, "segment", lambda *_: pytest.fail("refused after the work"))
    files["output"] = files["output"].with_name("out.dcm")
    assert "DICOM query" in refused(arguments(files, COPY), capsys)


def test_doubts_are_said(files, support, query, capsys):  # noqa: F811
    main(arguments(files, COPY))
    said = capsys.readouterr().err
    assert "found up to the end of the volume (slice 0 or 7)" in said
    assert "another modality" not in said
    save(files["image"], support[0][:, :, 3:4], support[2])  # one slice of the body against all
    save(files["mask"], support[1][:, :, 3:4], support[2])
    main(arguments(files, COPY))
    assert "another modality" not in capsys.readouterr().err
    save(files["query"], query[0].max() - query[0], query[2])
    main(arguments(files, COPY))
    assert "another modality" in capsys.readouterr().err


def test_low_confidence_is_said(files, capsys):  # noqa: F811
    small = ["segmenter.checkpoint=random", "segmenter.image_size=64", "support_set.count=2"]
    settings = [*small, "size=64", "device=cpu", "method.extent.when=never"]
    main(arguments(files, *settings, "doubt_below=1"))
    said = capsys.readouterr()
    assert "below doubt_below=1" in said.err or "not found" in said.out
    assert ", confidence 0." in said.out or "not found" in said.out
    main(arguments(files, *settings, "doubt_below=0"))
    assert "doubt_below" not in capsys.readouterr().err
