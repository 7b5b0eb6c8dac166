"""From the raw download of a dataset to the scans that ``fsmis.data.dataset`` reads."""
