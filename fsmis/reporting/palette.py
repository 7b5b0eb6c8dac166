"""The colours of all figures, which people with any colour vision tell apart."""

from typing import Any

from cycler import cycler

# Okabe and Ito, Color Universal Design (2008), without black; yellow last, it is weak on white.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442"]
# On grey images: organs, the brightest first; what is true, what was answered, what prompted it.
ON_GREY = [*PALETTE[4:], *PALETTE[2:4], PALETTE[1], PALETTE[0], "#ffffff"]
TRUTH, PREDICTION, PROMPT = "#f0e442", "#56b4e9", "#cc79a7"
FAINT = "0.65"  # grey, of what stands behind
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {"axes.prop_cycle": cycler(color=PALETTE)}


def organ_colours(organs: list[str]) -> dict[str, str]:
    """A colour for each organ on grey images; from the ninth on they come again."""
    return {organ: ON_GREY[number % len(ON_GREY)] for number, organ in enumerate(organs)}
