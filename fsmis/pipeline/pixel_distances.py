"""Distances of the pixels themselves: SSIM, PSNR, normalised cross-correlation."""

import numpy as np
import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.pipeline.matching import Matcher, to_tensor
from fsmis.pipeline.network_distances import FeatureMatcher


class Psnr(FeatureMatcher[np.ndarray]):
    """Negative peak signal-to-noise ratio in dB, for a peak of 1.

    The ratio of identical images would be infinite; it is capped at ``cap_db``, which changes no
    other order. Images are resized to ``image_size`` pixels a side unless that is None.
    """

    def __init__(self, cap_db: float, image_size: int | None, batch_size: int):
        super().__init__(batch_size)
        self.smallest_error = 10 ** (-cap_db / 10)
        self.image_size = image_size

    def vectors(self, slices: np.ndarray) -> Tensor:
        """Pixels, scaled so that the squared distance is the mean squared error."""
        pixels = to_tensor(slices, self.image_size).flatten(1)
        return pixels / pixels.shape[1] ** 0.5

    def distance(self, queries: np.ndarray) -> Tensor:
        return 10 * super().distance(queries).clamp(min=self.smallest_error).log10()


class Ncc(FeatureMatcher[np.ndarray]):
    """1 - normalised cross-correlation, in [0, 2].

    A constant image has no correlation: it gets 0 with every image that is not constant and 1 with
    every one that is. Images are resized to ``image_size`` pixels a side unless that is None.
    """

    def __init__(self, image_size: int | None, batch_size: int):
        super().__init__(batch_size)
        self.image_size = image_size

    def vectors(self, slices: np.ndarray) -> Tensor:
        """Zero-mean vectors of norm sqrt(1/2), so that the squared distance is 1 - correlation; a
        constant image has only an extra last coordinate."""
        pixels = to_tensor(slices, self.image_size).flatten(1)
        constant = (pixels.amax(1) == pixels.amin(1))[:, None]
        centred = (pixels - pixels.mean(1, keepdim=True)).masked_fill(constant, 0)
        vectors = torch.cat([centred, constant.float()], dim=1)
        return torch.nn.functional.normalize(vectors) * 0.5**0.5


class Ssim(Matcher[np.ndarray]):
    """1 - structural similarity (Wang et al. 2004), as ``skimage.metrics.structural_similarity``
    computes it by default: uniform window, sample covariance, data range 1.

    Means and variances are computed once for each image, only the covariance for every pair.
    ``window`` is odd, in pixels; images are resized to ``image_size`` pixels a side unless that is
    None. Raises UserError for an image smaller than the window.
    """

    C1, C2 = 0.01**2, 0.03**2  # of a data range of 1, by the definition

    def __init__(self, window: int, image_size: int | None):
        if window < 3 or window % 2 == 0:
            raise UserError(f"matcher.window={window}; use an odd number of pixels, at least 3")
        self.window = window
        self.image_size = image_size

    def fit(self, support: np.ndarray) -> None:
        self._copies = self._statistics(support)

    def distance(self, queries: np.ndarray) -> Tensor:
        statistics = zip(*self._statistics(queries), strict=True)
        return torch.stack([1 - self._similarity(*query) for query in statistics])

    def _statistics(self, images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        pixels = to_tensor(images, self.image_size)
        if min(pixels.shape[1:]) < self.window:
            raise UserError(
                f"images of {pixels.shape[1]} x {pixels.shape[2]} are smaller than "
                f"matcher.window={self.window}; set a smaller one"
            )
        mean = self._mean(pixels)
        return pixels, mean, self._unbiased(self._mean(pixels.square()) - mean.square())

    def _similarity(self, pixels: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        copies, means, variances = self._copies
        product = mean * means
        covariance = self._unbiased(self._mean(pixels * copies) - product)
        luminance = (2 * product + self.C1) / (mean.square() + means.square() + self.C1)
        structure = (2 * covariance + self.C2) / (variance + variances + self.C2)
        return (luminance * structure).mean(dim=(1, 2), dtype=torch.float64)

    def _unbiased(self, moment: Tensor) -> Tensor:
        return moment * (self.window**2 / (self.window**2 - 1))

    def _mean(self, maps: Tensor) -> Tensor:
        """Mean over every whole window; sums of shifted maps beat pooling on a CPU sixfold."""
        for axis in (-1, -2):
            size = maps.shape[axis] - self.window + 1
            total = maps.narrow(axis, 0, size).clone()
            for shift in range(1, self.window):
                total += maps.narrow(axis, shift, size)
            maps = total
        return maps / self.window**2
