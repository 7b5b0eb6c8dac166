"""Images as the pixel matchers and LPIPS read them."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize


def to_tensor(images: np.ndarray, image_size: int | None) -> Tensor:
    """Images ``[B, H, W]`` as a float32 tensor, resized to a square of ``image_size`` pixels
    (bilinear, antialiased) unless that is None."""
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    return pixels if image_size is None else resize(pixels, [image_size, image_size])


def fitted(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images float32 ``[B, H, W]`` in the size (H, W), resized likewise where theirs is another."""
    return images if images.shape[1:] == size else resize(to_tensor(images, None), size).numpy()
