"""The configurations that a command line of ``fsmis.run`` stands for, composed without running."""

from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from fsmis.cli import CONF_DIR


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep, or the only one.

    Attributes:
        name: its values of what the sweep varies, as on the command line; empty for a single run.
        cfg: its configuration.
        choices: name of the choice in each group.
    """

    name: str
    cfg: DictConfig
    choices: dict[str, str]


def compose_jobs(overrides: list[str], multirun: bool) -> list[Job]:
    """The jobs of a command line, in the order in which Hydra starts them.

    Raises:
        HydraException: an override that Hydra refuses.
    """
    parser = OverridesParser.create()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        if not multirun:
            return [_job("", overrides)]
        parsed = parser.parse_overrides(overrides)
        fixed = [o.input_line for o in parsed if o.input_line and not o.is_sweep_override()]
        base = compose("config", fixed, return_hydra_config=True)  # an experiment may vary more
        varied = [f"{key}={values}" for key, values in (base.hydra.sweeper.params or {}).items()]
        launching = [line for line in fixed if line.startswith("hydra")]
        lines = varied + [line for line in overrides if line not in launching]
        (combinations,) = BasicSweeper.split_arguments(parser.parse_overrides(lines), None)
        constant = set.intersection(*map(set, combinations))
        names = [" ".join(o for o in job if o not in constant) for job in combinations]
        return [
            _job(name, launching + combination)
            for name, combination in zip(names, combinations, strict=True)
        ]


def _job(name: str, overrides: list[str]) -> Job:
    cfg = compose("config", overrides, return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    return Job(name, cfg, choices)
