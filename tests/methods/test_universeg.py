"""UniverSeg: the call of its package, and one line where it is missing."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fsmis.errors import UserError
from tests.methods.test_training_free import composed, episode

__all__ = ["episode"]  # a fixture


class StandIn(torch.nn.Module):
    """The same call as UniverSeg's: a slice's answer is the labels of the supports, weighted by how
    alike they are to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = torch.nn.Parameter(100 + torch.rand(1))
        self.calls: list[tuple[torch.Size, ...]] = []

    def forward(self, target_image, support_images, support_labels):
        self.calls.append(tuple(x.shape for x in (target_image, support_images, support_labels)))
        unlike = (support_images - target_image[:, None]).abs().mean((2, 3, 4), keepdim=True)
        weights = (-self.sharpness * unlike).softmax(1)
        return (weights * support_labels).sum(1) - 0.5


def universeg(pretrained: bool) -> StandIn:
    assert not pretrained  # that would download
    return StandIn()


def build(*overrides: str):
    return instantiate(composed("method=universeg", "method.image_size=32", *overrides).method)


def refused(match: str, *overrides: str) -> None:
    with pytest.raises(InstantiationException, match=match) as error:
        build(*overrides)
    assert isinstance(error.value.__cause__, UserError) and "\n" not in str(error.value.__cause__)


def test_a_missing_package_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "universeg", None)
    refused("package is missing; pip install git", "method.weights=random")


def test_the_labelled_slices_of_an_organ_are_the_support_set(
    episode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "universeg", SimpleNamespace(universeg=universeg))
    refused("weights=null: give the file")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    refused("not of UniverSeg", f"method.weights={tmp_path / 'other.pt'}")
    torch.save({"sharpness": torch.full([1], 1000.0)}, tmp_path / "sharp.pt")
    method = build(f"method.weights={tmp_path / 'sharp.pt'}", "method.batch_size=4")
    masks = method.segment(episode)
    assert method.network.sharpness.item() == 1000
    parts = len(episode.organs["liver"].support_slices)
    shapes = {
        (target[1:], images[1:], labels[1:]) for target, images, labels in method.network.calls
    }
    assert shapes == {((1, 32, 32), (parts, 1, 32, 32), (parts, 1, 32, 32))}
    assert max(target[0] for target, *_ in method.network.calls) == 4
    for organ, task in episode.organs.items():
        assert masks[organ].shape == (len(task.query_slices), *episode.query.image.shape[1:])
        copied = task.support_masks.any(axis=0)
        assert masks[organ].any() and masks[organ].dtype == np.bool_
        # it says no more than the labelled slices, but for a resized rim
        assert (masks[organ] & ~copied).sum() < 0.3 * masks[organ].sum()
    same = build("method.weights=random").network.sharpness
    torch.testing.assert_close(same, build("method.weights=random").network.sharpness)
