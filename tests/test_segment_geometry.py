"""Where the output of `fsmis.segment` lies: where its query does, in every program."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from fsmis.data.verify import notes_on
from fsmis.segment import main
from tests.test_segment import COPY, arguments, files, query, support  # noqa: F401 (fixtures)

SCANNER, ALIGNED = 1, 2


def header_of(path) -> nib.Nifti1Header:
    return nib.load(path).header


def rewrite(path, sform_code: int, qform_code: int, shift: float) -> None:
    """The same voxels with these codes, the qform `shift` mm beside the sform."""
    image = nib.load(path)
    moved = image.affine.copy()
    moved[:3, 3] += shift
    header = image.header.copy()
    header.set_sform(image.affine, sform_code)
    header.set_qform(moved, qform_code)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, header), path)


@pytest.mark.parametrize("sform_code", [0, SCANNER, ALIGNED])
@pytest.mark.parametrize("qform_code", [0, SCANNER, ALIGNED])
def test_the_output_keeps_both_matrices_and_both_codes(files, sform_code, qform_code):  # noqa: F811
    rewrite(files["query"], sform_code, qform_code, shift=30.0)
    main(arguments(files, COPY))
    of_query, of_output = header_of(files["query"]), header_of(files["output"])
    assert (of_output["sform_code"], of_output["qform_code"]) == (sform_code, qform_code)
    for name in ("get_sform", "get_qform", "get_best_affine"):
        np.testing.assert_array_equal(getattr(of_output, name)(), getattr(of_query, name)())
    itk = [sitk.ReadImage(str(files[name])) for name in ("query", "output")]
    assert itk[0].GetOrigin() == itk[1].GetOrigin()
    assert itk[0].GetDirection() == itk[1].GetDirection()
    assert itk[0].GetSpacing() == itk[1].GetSpacing()
    assert np.asanyarray(nib.load(files["output"]).dataobj).any()


def test_a_tilted_gantry_is_said_and_kept(files, capsys):  # noqa: F811
    image = nib.load(files["query"])
    tilted = image.affine.copy()
    tilted[1, 2] += 0.25 * abs(tilted[2, 2])  # each slice a quarter of a step further to the front
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), tilted), files["query"])
    main(arguments(files, COPY))
    assert "degrees off a right angle" in capsys.readouterr().err.replace("\n", " ")
    np.testing.assert_allclose(header_of(files["output"]).get_best_affine(), tilted, atol=1e-5)


@pytest.mark.parametrize("shift, refused", [(0.02, False), (0.5, True)])
def test_a_mask_may_lie_off_by_a_fraction_of_a_voxel(files, shift, refused, capsys):  # noqa: F811
    mask = nib.load(files["mask"])
    moved = mask.affine.copy()
    moved[0, 3] += shift
    nib.save(nib.Nifti1Image(np.asanyarray(mask.dataobj), moved), files["mask"])
    if not refused:
        main(arguments(files, COPY))
        return
    with pytest.raises(SystemExit):
        main(arguments(files, COPY))
    message = capsys.readouterr().err.replace("\n", " ")
    voxel = np.linalg.norm(mask.affine[:3, :3], axis=0).min()
    assert f"lies up to {shift:.3g} mm off" in message and f"{0.1 * voxel:.3g} mm" in message


def test_a_flat_query_is_said(files, capsys):  # noqa: F811
    image = nib.load(files["query"])
    pixels = np.asanyarray(image.dataobj).copy()
    pixels[..., :3] = 0
    nib.save(nib.Nifti1Image(pixels, image.affine), files["query"])
    main(arguments(files, COPY))
    message = capsys.readouterr().err.replace("\n", " ")
    assert f"3 of {pixels.shape[2]} slices are empty" in message


def test_notes_on_volumes():
    pixels = np.zeros((4, 10, 10))
    assert notes_on("q", pixels) == ["q: every voxel has the value 0; nothing can be found in it"]
    pixels[1, 2, 3] = 5
    assert notes_on("q", pixels) == [
        "q: nearly constant, 99.8 % of its voxels have the value 0",
        "q: 3 of 4 slices are empty, of one value each",
    ]
    assert notes_on("q", np.random.default_rng(0).random((4, 10, 10))) == []
