"""Speed and equality against the reference path, side by side; see ``fsmis.bench.__main__``."""
