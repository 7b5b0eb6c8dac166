"""SAM2's network from a YAML, without the package's own builders."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError
from fsmis.segmenters.checkpoints import SHIPPED


def build_sam2(architecture: str, overrides: dict[str, Any]) -> torch.nn.Module:
    """SAM2's network with random weights, in eval mode; see :func:`read_architecture`."""
    return instantiate(read_architecture(architecture, overrides)).eval()


def read_architecture(architecture: str, overrides: dict[str, Any]) -> DictConfig:
    """The configuration that SAM2's network is instantiated from.

    Args:
        architecture: a config of the ``sam2`` package such as
            ``configs/sam2.1/sam2.1_hiera_t.yaml``, ``sam2_mini.yaml`` beside this file, or the path
            of a YAML of the same layout.
        overrides: dotted keys below ``model`` and their values.

    Raises:
        UserError: the config does not exist.
    """
    # Importing sam2 initialises Hydra globally, which would break a later @hydra.main; its own
    # builders rely on that, so the network is instantiated from the YAML here instead.
    hydra_was_free = not GlobalHydra.instance().is_initialized()
    import sam2

    if hydra_was_free:
        GlobalHydra.instance().clear()
    places = [Path(architecture), SHIPPED / architecture, Path(str(files(sam2))) / architecture]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"segmenter.architecture={architecture} is neither a file nor a config of the sam2 "
            "package; use e.g. configs/sam2.1/sam2.1_hiera_t.yaml"
        )
    config = OmegaConf.load(path)
    for key, value in overrides.items():
        OmegaConf.update(config.model, key, value, force_add=True)
    return config.model
