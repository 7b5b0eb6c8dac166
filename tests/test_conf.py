"""Every choice of every configuration group composes, and unknown keys fail."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("dataset", "method", "support_set", "matcher", "segmenter", "protocol", "experiment")
CHOICES = [
    f"{group}={path.stem}"
    for group in GROUPS
    for path in (CONF / group).glob("*.yaml")
    if not path.stem.startswith("published")  # what other segmenters have in common
]


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("choice", sorted(CHOICES))
def test_every_choice_composes(choice):
    config = composed(choice)
    OmegaConf.to_container(config.method, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_value_of_an_experiment_composes(path):
    command = path.read_text().splitlines()[1]
    assert command.startswith(f"# python -m fsmis run -m experiment={path.stem} ")
    for key, values in (composed(f"experiment={path.stem}").hydra.sweeper.params or {}).items():
        for value in str(values).split(","):
            composed(f"experiment={path.stem}", f"{key}={value}")


@pytest.mark.parametrize(
    "key", ["protocol.folds", "support_set.counts", "method.memory", "segmenter.size", "sed"]
)
def test_an_unknown_key_fails(key):
    with pytest.raises(ConfigCompositionException, match=key.split(".")[-1]):
        composed(f"{key}=1")


def test_every_knob_has_a_comment():
    bare = []
    for path in CONF.rglob("*.yaml"):
        if path.parent.name in ("experiment", "test_time"):
            continue  # settings of knobs, which are commented where they are defined
        section = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line and not line[0].isspace():
                section = line.split(":")[0]
            plumbing = (
                section in ("defaults", "hydra", "overrides", "source")
                or "_target_" in line
                or "${" in line
            )
            is_key = ":" in line and not line.lstrip().startswith(("#", "-"))
            opens = line.rstrip().endswith(":")
            if is_key and not (plumbing or opens or "#" in line):
                bare.append(f"{path.relative_to(CONF)}:{number}: {line}")
    assert bare == []
