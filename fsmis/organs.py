"""Which organs of a dataset are scored: all of them, or those that ``organs=[liver,RK]`` names."""

from copy import deepcopy

from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError


def with_selected_organs(cfg: DictConfig) -> DictConfig:
    """The configuration with a dataset of the selected organs alone.

    A run of a selection is thus one of a dataset that has no other organs; the labels of the others
    stay valid, and are not scored. The same once more changes nothing.

    Args:
        cfg: with ``organs``, names or null for all, and ``dataset``, whose ``organs`` has them all.

    Raises:
        UserError: one is no organ of the dataset, is named twice, or there is none.
    """
    selected = cfg.get("organs")
    if selected is None:
        return cfg
    dataset = cfg.dataset
    known = dict(dataset.organs)
    unknown = [organ for organ in selected if organ not in known]
    if unknown or not selected or len(set(selected)) < len(selected):
        raise UserError(
            f"organs=[{','.join(map(str, selected))}]: give some of {', '.join(map(str, known))}, "
            f"each once, which are those of {dataset.name}, or null for all"
        )
    others = {value for organ, value in known.items() if organ not in selected}
    unscored = others | set(dataset.get("unscored_labels") or [])
    changed = deepcopy(cfg)
    for key, value in (
        ("organs", {organ: known[organ] for organ in known if organ in selected}),
        ("unscored_labels", sorted(unscored)),
    ):
        OmegaConf.update(changed, f"dataset.{key}", value, merge=False, force_add=True)
    return changed
