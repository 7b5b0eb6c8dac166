"""The whole pipeline over video models that are not Meta's code, on a generated scan."""

from collections import Counter
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from tests.segmenters.engines import ENGINES, enliven

METHODS = ["augment_match_prompt", "sam2_volume", "sam2_box", "panet_frozen"]


def composed(*overrides: str):
    quiet = ["dataset=phantom", "device=cpu", "cache.dir=null"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=[*quiet, *overrides])


@pytest.fixture(scope="module")
def episode(phantom_root) -> Episode:
    """Two organs of a query scan, each on three slices."""
    config = composed(f"dataset.root={phantom_root}")
    dataset, protocol = instantiate(config.dataset), instantiate(config.protocol)
    split = protocol.splits(dataset)[0]
    scans = [dataset.load(scan_id) for scan_id in (split.support_id, split.query_ids[0])]
    whole = protocol.episode(dataset, split, *scans)
    organs = {
        organ: replace(task, query_slices=task.query_slices[4:7], part=task.part[4:7])
        for organ, task in whole.organs.items()
        if organ in ("liver", "spleen")
    }
    return replace(whole, organs=organs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["transformers_sam2.1_tiny", "edgetam", "sam3_tracker"])
def test_the_pipeline_runs_and_encodes_each_image_once(name, method, episode):
    alone = ["method.scale.scales=[]", "support_set.count=2"]
    own = alone if method == "augment_match_prompt" else []
    config = composed(f"segmenter={name}", f"method={method}", *own)
    segmenter = OmegaConf.to_container(config.method.segmenter, resolve=True)
    small = segmenter | {"checkpoint": "random"} | ENGINES[name]
    built = instantiate(config.method, segmenter=small)
    network = built.segmenter.model
    enliven(network)
    seen: Counter[bytes] = Counter()
    network.vision_encoder.register_forward_pre_hook(
        lambda module, args: seen.update(image.numpy().tobytes() for image in args[0])
    )
    masks = built.segment(episode)
    for organ, task in episode.organs.items():
        assert masks[organ].shape == (len(task.query_slices), *episode.query.image.shape[1:])
        assert masks[organ].dtype == bool
    assert any(mask.any() for mask in masks.values())
    assert set(seen.values()) == {1}
    assert built.segmenter.images_encoded == len(seen)
    slices = {int(z) for task in episode.organs.values() for z in task.query_slices}
    if method != "augment_match_prompt":  # which encodes crops too
        supports = {int(z) for task in episode.organs.values() for z in task.support_slices}
        assert len(seen) == len(slices) + len(supports)
    else:
        assert len(seen) > len(slices)


@pytest.mark.parametrize(
    ("method", "ability"), [("sam2_box", "take points"), ("sam2_volume", "track")]
)
def test_a_segmenter_that_cannot_is_named(method, ability):
    class Still:
        batch_size = 1
        encode = memorise = segment = None

    with pytest.raises(InstantiationException, match=f"can {ability}, and Still cannot") as caught:
        instantiate(composed(f"method={method}").method, segmenter=Still())
    assert isinstance(caught.value.__cause__, UserError)
