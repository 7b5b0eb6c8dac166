"""A whole volume from its file to a written label map: ours beside the public video predictors, and
the default beside itself without the stages that look twice.

All see the same pixels and have the shipped weights. The public predictors read a folder of frames,
losslessly under the names of JPEGs: the labelled slice, then the query's slices from the middle up,
and in a second session from the middle down, as ``sam2_volume`` goes; all labels share a session.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fsmis.api import VolumeSegmenter
from fsmis.data.dataset import scale_intensities
from fsmis.data.nifti import read_volume, write_mask, write_volume
from fsmis.segmenters.sam2 import Sam2
from fsmis.tools.bench import GREYS, ROUNDED, Promise, at_most
from fsmis.tools.bench.measure import Network, Way
from fsmis.tools.bench.ways import IMAGENET, public_twin, quiet, sam2_networks
from fsmis.tools.doctor import computes_in_bfloat16
from fsmis.tools.export import export
from fsmis.tools.phantom import BRIGHTEST, SIZE
from fsmis.tools.phantom_anatomy import ABDOMEN, mr_patient

LABELS = (1, 2, 3, 4)
BUDGET = 2.2  # times the seconds of the default without extent and zoom
WORK = "(with 40 slices: of fewer, the copies weigh more)"
PUBLIC, OURS, PLAIN, DEFAULT = "public", "ours (sam2_volume)", "first pass alone", "default"
WITHOUT = ["method.scale.scales=[]", "method.extent.when=never", "method.zoom.passes=0"]
Frames = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """Files of two generated patients.

    Attributes:
        folder: holds ``image.nii.gz`` and ``label.nii.gz`` of the support, ``query.nii.gz``.
        z: the labelled slice.
        truth: uint8 ``[Z, H, W]`` of the query.
    """

    folder: Path
    z: int
    truth: np.ndarray

    @staticmethod
    def write(folder: Path, slices: int, seed: int) -> "Case":
        """Two abdomens with 4 organs, in so many slices."""
        z_mm, y_mm, _ = ABDOMEN.spacing
        anatomy = ABDOMEN.in_slices(SIZE, y_mm * SIZE, z_mm * ABDOMEN.n_slices / slices)
        patients = [mr_patient(anatomy, SIZE, np.random.default_rng([seed, i])) for i in (1, 2)]
        (support, label), (query, truth) = patients
        for name, pixels in (("image", support), ("query", query)):
            stored = np.round(BRIGHTEST * pixels).astype(np.int16)
            write_volume(folder / f"{name}.nii.gz", stored, anatomy.affine(SIZE))
        write_mask(folder / "label.nii.gz", label, anatomy.affine(SIZE))
        areas = np.stack([(label == value).sum((1, 2)) for value in LABELS])
        return Case(folder, int(areas.min(0).argmax()), truth)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.nii.gz"


class WholeVolume:
    """The ways through a volume; models and supports are loaded before.

    Args:
        case: the volume.
        image_size: side in pixels the networks see.
        settings: of ours, besides, as for ``VolumeSegmenter``.
    """

    def __init__(self, case: Case, image_size: int, settings: Sequence[str] = ()) -> None:
        self.case = case
        shared = ["device=cpu", f"segmenter.image_size={image_size}", *settings]

        def ours(*settings: str) -> VolumeSegmenter:
            files = [case.path(name) for name in ("image", "label")]
            return VolumeSegmenter(*files, support_slice=case.z, settings=[*shared, *settings])

        alone = ["method=sam2_volume", "method.largest_component=false"]
        self.volume = ours(*alone, *WITHOUT)
        self.plain, self.default = ours(*WITHOUT), ours()
        half = computes_in_bfloat16()
        self.rounded = [ours("segmenter.precision=bfloat16")] if half else []
        self.public = public_twin(_model(self.volume), self.volume.settings.segmenter)
        self.theirs = _opened(_model(self.volume), case.folder) if find_spec("transformers") else {}

    def ways(self) -> list[Way]:
        """SAM2 alone, the public predictor first."""
        found = [Way(PUBLIC, lambda: self._framed(self._through_meta))]
        if self.theirs:
            found.append(Way("transformers", lambda: self._framed(self._through_transformers)))
        return [*found, Way(OURS, lambda: self._labelled(self.volume))]

    def budget(self) -> list[Way]:
        """The default, without extent and zoom first, in bfloat16 last."""
        return [
            Way(PLAIN, lambda: self._labelled(self.plain)),
            Way(DEFAULT, lambda: self._labelled(self.default)),
            *(Way(f"{DEFAULT}{ROUNDED}", partial(self._labelled, it)) for it in self.rounded),
        ]

    def networks(self) -> list[Network]:
        """What is counted."""
        own = [
            _model(some).model for some in (self.volume, self.plain, self.default, *self.rounded)
        ]
        counted = [network for model in (self.public, *own) for network in sam2_networks(model)]
        if self.theirs:
            model = self.theirs["model"]
            counted += [
                Network("image_encodes", model.vision_encoder, lambda args, _: len(args[0])),
                Network(
                    "attention_rows",
                    model.memory_attention,
                    lambda _, kw: kw["current_vision_features"].shape[1],
                ),
                Network("memory_rows", model.memory_encoder, lambda args, _: len(args[1])),
            ]
        return counted

    def _labelled(self, segmenter: VolumeSegmenter) -> np.ndarray:
        with quiet():  # doubts about a generated patient are no news
            segmenter.segment(self.case.path("query"), output=self.case.path("out"))
        return read_volume(self.case.path("out"))[0]

    def _framed(self, through: Frames) -> np.ndarray:
        """A session upwards and one downwards, and the labels written."""
        grey, affine = self._grey("query")
        prompt, label = self._grey("image")[0][self.case.z], read_volume(self.case.path("label"))[0]
        # a smaller one stands where they overlap, as with ours
        values = sorted(LABELS, key=lambda value: -(label[self.case.z] == value).sum())
        masks = np.stack([label[self.case.z] == value for value in values])
        middle, logits = len(grey) // 2, np.empty((len(grey), *masks.shape), np.float32)
        for rows in (np.arange(middle, -1, -1), np.arange(middle, len(grey))):
            logits[rows] = through(np.concatenate([prompt[None], grey[rows]]), masks)
        found = np.zeros(grey.shape, np.uint8)
        for place, value in enumerate(values):
            found[logits[:, place] > 0] = value
        write_mask(self.case.path("out"), found, affine)
        return found

    def _grey(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        stored, _, affine = read_volume(self.case.path(name))
        scaled = scale_intensities(stored, self.default.settings.percentiles).clip(0, 1)
        return (GREYS * scaled).round().astype(np.uint8), affine

    def _through_meta(self, frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Logits ``[L, K, H, W]`` of the frames after the first."""
        ours = _model(self.volume)
        with tempfile.TemporaryDirectory() as folder, quiet():
            for number, frame in enumerate(frames):
                path = Path(folder) / f"{number:05d}.jpg"
                Image.fromarray(frame).save(path, format="PNG", compress_level=1)
            state = self.public.init_state(folder)
            mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("mean", "std"))
            state["images"] = (state["images"] * std + mean - ours.mean) / ours.std
            for place, mask in enumerate(masks):
                self.public.add_new_mask(state, frame_idx=0, obj_id=place, mask=mask)
            video = self.public.propagate_in_video(state)
            return np.stack([logits[:, 0].numpy() for _, _, logits in video][1:])

    @torch.inference_mode()
    def _through_transformers(self, frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
        model, processor = self.theirs["model"], self.theirs["processor"]
        session = processor.init_video_session(video=np.repeat(frames[..., None], 3, axis=-1))
        processor.add_inputs_to_inference_session(
            session, frame_idx=0, obj_ids=list(range(len(masks))), input_masks=list(masks)
        )
        model(session, frame_idx=0)
        sizes = [list(frames.shape[1:])]
        video = [
            processor.post_process_masks([frame.pred_masks], sizes, binarize=False)[0]
            for frame in model.propagate_in_video_iterator(session)
        ]
        return np.stack([logits[:, 0].numpy() for logits in video][1:])


def _model(segmenter: VolumeSegmenter) -> Sam2:
    model: Any = segmenter.method
    return model.segmenter


def _opened(segmenter: Sam2, folder: Path) -> dict[str, Any]:
    import transformers

    export(segmenter, folder / "transformers")
    return {
        "model": transformers.Sam2VideoModel.from_pretrained(folder / "transformers").eval(),
        "processor": transformers.Sam2VideoProcessor.from_pretrained(folder / "transformers"),
    }


def tabulate_volume(stages: dict[str, list[Way]], truth: np.ndarray) -> pd.DataFrame:
    """A row for each way of each stage, measured, its first way being what it is compared with.

    Returns:
        Columns as ``measure.tabulate``, and ``alike``, mean Dice of the labels with the first
        way's, and ``dice`` with the truth.
    """
    rows = []
    for stage, ways in stages.items():
        for way in ways:
            assert way.result is not None and ways[0].result is not None
            rows.append(
                {"stage": stage, "way": way.name, "seconds": way.median}
                | {"times_faster": ways[0].median / way.median, "gflop": way.gflop}
                | {"peak_mb": way.peak_mb}
                | way.counts
                | {"alike": dice(way.result, ways[0].result), "dice": dice(way.result, truth)}
            )
    return pd.DataFrame(rows)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the labels of the Dice of two label maps."""
    pairs = [(one == value, other == value) for value in LABELS]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in pairs]))


def volume_promises(table: pd.DataFrame, slices: int) -> list[Promise]:
    """What is said of a table of :func:`tabulate_volume` of a volume of so many slices."""
    rows = table.set_index("way").to_dict("index")
    public, ours, plain, default = (rows[way] for way in (PUBLIC, OURS, PLAIN, DEFAULT))
    faster, costs = ours["times_faster"], default["seconds"] / plain["seconds"]
    return [
        at_most("image encodes of a volume", ours["image_encodes"], slices + 1),
        at_most("its memory attention rows", ours["attention_rows"], public["attention_rows"]),
        Promise(f"whole volume: {faster:.2f} times faster", bool(faster >= 1), binding=False),
        Promise(
            f"default by that without extent and zoom: {costs:.2f} in seconds, "
            f"{default['gflop'] / plain['gflop']:.2f} in operations, aimed at {BUDGET:g} {WORK}",
            bool(costs <= BUDGET),
            binding=False,
        ),
    ]
