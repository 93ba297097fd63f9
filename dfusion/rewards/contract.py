"""What a reward is: a function of images and their prompts."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

Scores = Tensor | np.ndarray | Sequence[float]
# (images, prompts) -> one number each; higher is better.
Reward = Callable[[Sequence[Image.Image], Sequence[str]], Scores]
