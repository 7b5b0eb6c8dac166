"""Predictions made elsewhere: a labelled scan registered in 3D to each query of its fold.

    python results/reference/atlas_3d.py SCANS OUT QUERY=SUPPORT ...

Needs SimpleITK alone and knows nothing of fsmis. Reads ``image_<id>.nii.gz`` of both and
``label_<id>.nii.gz`` of the support, whose whole label map an affine and demons carry to the
query; writes ``OUT/<query id>.nii.gz``.
"""

import sys
from pathlib import Path

import SimpleITK as sitk


def carried(support: sitk.Image, label: sitk.Image, query: sitk.Image) -> sitk.Image:
    """The support's label map on the voxels of the query."""
    start = sitk.CenteredTransformInitializer(
        query, support, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    affine = sitk.ImageRegistrationMethod()
    affine.SetMetricAsMattesMutualInformation(50)
    affine.SetMetricSamplingStrategy(affine.RANDOM)
    affine.SetMetricSamplingPercentage(0.05, 1)
    affine.SetOptimizerAsGradientDescentLineSearch(1.0, 100, 1e-5, 10)
    affine.SetOptimizerScalesFromPhysicalShift()
    affine.SetShrinkFactorsPerLevel([4, 2])
    affine.SetSmoothingSigmasPerLevel([2, 1])
    affine.SetInterpolator(sitk.sitkLinear)
    affine.SetInitialTransform(start, inPlace=False)
    found = affine.Execute(query, support)

    small = sitk.Shrink(query, [2, 2, 1])
    moved = sitk.HistogramMatching(sitk.Resample(support, small, found), small, 128, 7)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(60)
    demons.SetStandardDeviations(2.0)
    field = sitk.Cast(demons.Execute(small, moved), sitk.sitkVectorFloat64)
    both = sitk.CompositeTransform([found, sitk.DisplacementFieldTransform(field)])
    return sitk.Resample(label, query, both, sitk.sitkNearestNeighbor)


def main() -> None:
    scans, out, *pairs = sys.argv[1:]
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    Path(out).mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        query_id, support_id = pair.split("=")
        query, support = (
            sitk.ReadImage(f"{scans}/image_{scan}.nii.gz", sitk.sitkFloat32)
            for scan in (query_id, support_id)
        )
        label = sitk.ReadImage(f"{scans}/label_{support_id}.nii.gz", sitk.sitkUInt8)
        sitk.WriteImage(carried(support, label, query), f"{out}/{query_id}.nii.gz")
        print(query_id, "from", support_id, flush=True)


if __name__ == "__main__":
    main()
