"""The configurations that a command line of ``fsmis.run`` stands for, composed without running."""

from collections.abc import Iterable
from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.overrides import require_replacing


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep, or the only one.

    Attributes:
        shared: overrides of all runs of the sweep, as on the command line.
        values: its value of each key that the command line or its experiment sweeps.
        cfg: its configuration.
        choices: name of the choice in each group.
    """

    shared: list[str]
    values: dict[str, str]
    cfg: DictConfig
    choices: dict[str, str]

    @property
    def name(self) -> str:
        """Its values, as on the command line; empty for a single run."""
        return " ".join(f"{key}={value}" for key, value in self.values.items())


def compose_jobs(overrides: list[str], multirun: bool) -> list[Job]:
    """The jobs of a command line, in the order in which Hydra starts them.

    Raises:
        HydraException: an override that Hydra refuses.
        UserError: a sweep without any job, or a mapping that would not replace the one there.
    """
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        if not multirun:
            return [_job(overrides, [])]
        last = {_key(override): override for override in overrides}  # the last one counts
        several = sweeps(last.values())
        single = [override for override in last.values() if override not in several]
        base = compose("config", single, return_hydra_config=True)  # an experiment may sweep more
        planned = [f"{key}={values}" for key, values in (base.hydra.sweeper.params or {}).items()]
        varied = {_key(override) for override in planned + several}
        shared = [override for key, override in last.items() if key not in varied]
        swept = planned + [override for key, override in last.items() if key in varied]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (combinations,) = BasicSweeper.split_arguments(parser.parse_overrides(swept), None)
        if not combinations:
            raise UserError("a sweep of no jobs: one of its lists of values is empty")
        return [_job(shared, combination) for combination in combinations]


def sweeps(overrides: Iterable[str]) -> list[str]:
    """Those of some overrides that give a key several values.

    Raises:
        HydraException: an override that Hydra refuses.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [str(override.input_line) for override in parsed if override.is_sweep_override()]


def _job(shared: list[str], varied: list[str]) -> Job:
    cfg = compose("config", shared + varied, return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    require_replacing(shared + varied, cfg)
    values = {_key(override): override.split("=", 1)[1] for override in varied}
    return Job(shared, values, cfg, choices)


def _key(override: str) -> str:
    return override.split("=", 1)[0]
