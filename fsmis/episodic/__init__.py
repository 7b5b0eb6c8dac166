"""Self-supervised training on pseudo-labels, which the trained baselines share."""
