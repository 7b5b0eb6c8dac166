"""Label a whole new volume from one labelled slice.

    python -m fsmis segment --support-image s.nii.gz --support-mask m.nii.gz \
        --query q.nii.gz --output out.nii.gz [method=registration] [support_set.count=8]

Support and query may differ in orientation, voxel size, field of view and number of slices. The
output lies on the query's own voxels and has the label values of the mask. Where labels overlap,
the one with the smaller area in the labelled slice stands.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from scipy.ndimage import label

from fsmis.cli import CONF_DIR, command_line, console, errors
from fsmis.data.dataset import Scan, require_percentiles
from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.data.intensities import Intensities, is_ct, notes_on, window_of
from fsmis.data.labelled_slice import LabelledSlice, read_axial, read_labelled_slice
from fsmis.data.nifti import write_volume
from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.methods.base import Method
from fsmis.reporting.figures import draw_preview
from fsmis.settings import SegmentSettings, converted, require_at_least, require_replacing

TILT_DEG = 0.5  # axes that are off a right angle by less are taken for straight


def pair(
    support: LabelledSlice, query: AxialVolume, grid: CommonGrid, intensities: Intensities
) -> Episode:
    """The episode of all labels of one slice and all slices of the query, on their common grid.

    The organs are the label values as text, from the largest area to the smallest.

    Raises:
        UserError: a label is too small to be seen on the grid.
    """

    def scan(name: str, pixels: np.ndarray, volume: AxialVolume) -> Scan:
        spacing = volume.spacing[0], grid.pixel_mm, grid.pixel_mm
        return Scan(name, pixels, None, spacing, np.diag([*spacing[::-1], 1.0]))

    of_volume, pixel_mm = support.volume, support.volume.spacing
    one_slice = intensities.scale(of_volume.pixels)[support.position][np.newaxis]
    all_slices = grid.to_common_grid(intensities.scale(query.pixels), query.spacing)
    positions = np.arange(len(all_slices))
    tasks = {}
    for value in support.values:
        mask = grid.to_common_grid(support.labels == value, pixel_mm) >= 0.5
        if not mask.any():
            raise UserError(
                f"label {value} covers less than a pixel of {grid.pixel_mm:.2f} mm; "
                "leave it out or raise size"
            )
        tasks[str(value)] = OrganTask(
            str(value), np.array([0]), mask[np.newaxis], positions, np.zeros_like(positions)
        )
    support_scan = scan("support", grid.to_common_grid(one_slice, pixel_mm), of_volume)
    query_scan = scan("query", all_slices, query)
    return Episode("segment", 0, support_scan, query_scan, tasks, whole_volume=True)


def label_query(
    method: Method, episode: Episode, query: AxialVolume, grid: CommonGrid
) -> np.ndarray:
    """Label values on the voxels of ``query``: uint8 [Z, H, W], or uint16 if one exceeds 255."""
    masks = method.segment(episode)
    values = [int(organ) for organ in episode.organs]
    labels = np.zeros(query.pixels.shape, np.uint8 if max(values) < 256 else np.uint16)
    for organ in episode.organs:  # largest first, so that the smaller one stands
        labels[grid.back_to_query(masks[organ], query)] = int(organ)
    return labels


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line on bad input."""
    options = _parser().parse_intermixed_args(arguments)
    with command_line():
        inputs = options.support_image, options.support_mask, options.query
        _require_target("--output", options.output, (".nii", ".nii.gz"), inputs)
        if options.figure:
            _require_target("--figure", options.figure, (".png", ".pdf", ".svg"), inputs)
        cfg = _compose(options.overrides)
        support = read_labelled_slice(
            options.support_image, options.support_mask, options.support_slice
        )
        query = read_axial(options.query)
        grid = CommonGrid.around([support.volume, query], cfg.size)
        window, chosen = cfg.window, ""
        if window is None and cfg.auto_window and is_ct(support.volume) and is_ct(query):
            window, chosen = window_of(support), ", chosen from the labels and their surroundings"
        episode = pair(support, query, grid, Intensities(window, cfg.percentiles))
        n_slices, height, width = query.pixels.shape
        console.print(
            f"support: slice {support.stored_position} of {options.support_image}, "
            f"labels {', '.join(map(str, sorted(support.values)))}\n"
            f"query: {n_slices} axial slices of {height} x {width} pixels in {options.query}\n"
            f"intensities: {_in_words(window)}{chosen}\n"
            f"segmenting at {grid.pixel_mm:.2f} mm a pixel with {cfg.method._target_}"
        )
        of_files = (options.support_image, support.volume), (options.query, query)
        for path, volume in of_files:
            for note in [*notes_on(str(path), volume.pixels), *_on_tilt(path, volume)]:
                errors.print(f"note: {note}")
        if support.elsewhere:
            errors.print(
                f"note: labels {', '.join(map(str, support.elsewhere))} are in other slices of the "
                "mask alone and are not looked for"
            )
        if scattered := _of_several_parts(episode) if cfg.method.get("largest_component") else []:
            errors.print(
                f"note: labels {', '.join(scattered)} have several parts in the support; of the "
                "answer the largest is kept, method.largest_component=false keeps all"
            )
        with console.status(f"segmenting {n_slices} slices"):
            method = instantiate(cfg.method)
            try:
                labels = label_query(method, episode, query, grid)
            except (RuntimeError, MemoryError) as error:  # such as a GPU out of memory
                raise UserError(
                    f"{options.query}: segmenting failed ({error}); try device=cpu, a smaller "
                    "segmenter or another method"
                ) from error
        write_volume(options.output, query.turn_back(labels), query.stored_affine, options.query)
        millilitres = abs(np.linalg.det(query.affine[:3, :3])) / 1000
        for value in sorted(support.values):
            voxels = np.count_nonzero(labels == value)
            held = np.flatnonzero((labels == value).any(axis=(1, 2)))
            where = f"slices {held[0]} to {held[-1]}, from the feet" if len(held) else "not found"
            console.print(f"label {value}: {voxels} voxels, {voxels * millilitres:.1f} ml, {where}")
        console.print(options.output)
        if options.figure:
            draw_preview(options.figure, episode, labels, query, grid, cfg.figure_slices)
            console.print(options.figure)


def _in_words(window: Sequence[float] | None) -> str:
    return "all" if window is None else f"window=[{window[0]:g},{window[1]:g}]"


def _on_tilt(path: Path, volume: AxialVolume) -> list[str]:
    if volume.tilt_deg < TILT_DEG:
        return []
    return [
        f"{path}: its axes are {volume.tilt_deg:.1f} degrees off a right angle (a tilted gantry); "
        "its slices are used as they are, and labels lie on the same voxels"
    ]


def _of_several_parts(episode: Episode) -> list[str]:
    """Labels whose support mask is not connected, as of lesions or both lungs."""
    connected = np.ones((3, 3))  # diagonally too
    parts = {organ: label(t.support_masks[0], connected)[1] for organ, t in episode.organs.items()}
    return sorted(organ for organ, count in parts.items() if count > 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fsmis segment",
        description="Label a whole new volume from one labelled slice. The output lies on the "
        "query's own voxels and has the label values of the mask; where labels overlap, the one "
        "with the smaller area in the labelled slice stands. Slices are axial, whatever the "
        "orientation in which a file is stored.",
        epilog="Not for clinical use: look at every result.",
    )
    nifti = "NIfTI, .nii or .nii.gz"
    parser.add_argument(
        "--support-image",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"labelled scan ({nifti}): a volume or one slice",
    )
    parser.add_argument(
        "--support-mask",
        type=Path,
        required=True,
        metavar="FILE",
        help="its labels, whole numbers, 0 for background: a volume of the same shape, of which "
        "one slice is used, or that slice alone",
    )
    parser.add_argument(
        "--support-slice",
        type=int,
        metavar="K",
        help="slice that is used, from 0 along the axial axis of the support image as the file "
        "stores it (default: the one with the largest labelled area; for a mask of one slice, "
        "the one on which its affine places it)",
    )
    parser.add_argument(
        "--query",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"volume to label ({nifti}), of the same modality",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"label map to write ({nifti}); replaced if it exists",
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="preview to draw (.png, .pdf or .svg)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of conf/segment.yaml, e.g. method=registration, support_set.count=8, or "
        "window=[-125,275] (HU, for an abdominal CT)",
    )
    return parser


def _compose(overrides: list[str]) -> DictConfig:
    """The settings of ``conf/segment.yaml`` with the user's."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = converted(compose("segment", overrides=overrides), SegmentSettings)
        require_replacing(overrides, cfg)
    OmegaConf.resolve(cfg)
    require_at_least(1, size=cfg.size, figure_slices=cfg.figure_slices)
    require_percentiles(cfg.percentiles)
    if cfg.window is not None and (len(cfg.window) != 2 or not cfg.window[0] < cfg.window[1]):
        raise UserError(f"window={cfg.window}: give the lowest and the highest intensity kept")
    return cfg


def _require_target(
    option: str, path: Path, endings: tuple[str, ...], inputs: Sequence[Path]
) -> None:
    """Refuse, before any work, a file that cannot be written or is an input."""
    if not path.name.endswith(endings):
        raise UserError(f"{option} {path}: the name must end in {' or '.join(endings)}")
    if not path.parent.is_dir() or path.is_dir():
        problem = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise UserError(f"{option} {path}: {problem}; choose another name")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: the folder is not writable; choose another one")
    if path.exists() and any(given.exists() and path.samefile(given) for given in inputs):
        raise UserError(f"{option} {path}: this is an input; choose another name")


if __name__ == "__main__":
    main()
