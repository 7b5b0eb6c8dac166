"""From the raw download of a dataset to the scans that ``fsmis.datasets`` reads."""
