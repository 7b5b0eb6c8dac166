"""Training-free few-shot medical image segmentation with SAM2: benchmark and reproduction."""
