"""Intensities without being told: when two volumes are CTs, and which window their labels want."""

import nibabel as nib
import numpy as np

from fsmis.data.geometry import AxialVolume
from fsmis.data.labelled_slice import LabelledSlice
from fsmis.pipeline.whole_volume import is_ct, window_of
from fsmis.segment import main
from tests.test_segment import COPY, arguments, files, query, support  # noqa: F401 (fixtures)


def volume(pixels: np.ndarray) -> AxialVolume:
    return AxialVolume.turn(pixels, np.diag([2.0, 2.0, 5.0, 1.0]))


def test_a_ct_is_known_by_its_air():
    rng = np.random.default_rng(0)
    tissue = rng.normal(40, 20, (4, 32, 32))
    ct = tissue.copy()
    ct[:, :8] = -1000
    assert is_ct(volume(ct))
    assert not is_ct(volume(tissue)) and not is_ct(volume(np.abs(tissue)))


def test_the_window_spans_labels_and_surroundings_and_no_more():
    rng = np.random.default_rng(0)
    pixels = np.full((1, 100, 100), -1000.0)
    pixels[0, 20:80, 20:80] = rng.normal(-90, 5, (60, 60))  # fat
    pixels[0, 30:70, 30:70] = rng.normal(50, 5, (40, 40))
    pixels[0, 45:55, 45:55] = rng.normal(120, 5, (10, 10))  # the organ
    pixels[0, 20:22, 20:22] = 1500  # bone, far away
    labels = np.zeros((100, 100), np.int64)
    labels[45:55, 45:55] = 1
    low, high = window_of([LabelledSlice(volume(pixels), 0, 0, labels, [])])
    assert -10 < low < 50 and 120 < high < 170


def test_segment_says_which_intensities_it_keeps(files, capsys):  # noqa: F811
    main(arguments(files, COPY))
    assert "intensities: all" in capsys.readouterr().out
    for name in ("image", "query"):
        image = nib.load(files[name])
        pixels = np.asanyarray(image.dataobj).astype(np.float32)
        hu = 1000 * (pixels - pixels.min()) / np.ptp(pixels) - 1000
        nib.save(nib.Nifti1Image(hu, image.affine), files[name])
    main(arguments(files, COPY))
    assert ", chosen from the labels" in capsys.readouterr().out
    main(arguments(files, COPY, "auto_window=false"))
    assert "intensities: all" in capsys.readouterr().out
    main(arguments(files, COPY, "window=[-100,200]"))
    said = capsys.readouterr().out
    assert "intensities: window=[-100,200]" in said and "chosen" not in said
