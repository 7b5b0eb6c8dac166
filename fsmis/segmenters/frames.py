"""Images as the frames of a video that SAM2's public predictor reads."""

import numpy as np
from PIL import Image


def to_frames(images: np.ndarray, image_size: int) -> np.ndarray:
    """Frames uint8 ``[B, S, S]`` of images ``[B, H, W]`` in [0, 1]: 8 bits, then PIL's bicubic
    resize to ``image_size`` pixels."""
    eight_bits = (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in eight_bits])
