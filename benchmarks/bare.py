"""The bare calls that a stage cannot do without: stock networks, ready inputs, nothing else."""

from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dfusion.models import lora
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Train


def stock_unet(model: DiffusionModel) -> UNet2DConditionModel:
    """diffusers' own UNet and attention on the model's weights (shared, not copied)."""
    with torch.device("meta"):
        stock = UNet2DConditionModel.from_config(model.network.config)
    stock.load_state_dict(model.network.state_dict(), assign=True)
    return stock.requires_grad_(False).eval()


def with_lora(stock: UNet2DConditionModel, train: Train) -> UNet2DConditionModel:
    """The stock UNet with LoRA of its own, to be trained."""
    targets = names_of(train.lora_targets)
    lora.add(stock, train.lora_rank, train.lora_alpha, targets, seed=0)
    return stock


def unet_calls(
    unet: nn.Module, model: DiffusionModel, rows: Sequence[int], trained: bool = False
) -> Callable[[], None]:
    """Calls of the UNet, one after the other, with `rows` rows each; trained: there and back."""
    inputs = {n: _inputs(model, n) for n in set(rows)}

    def forward() -> None:
        with torch.no_grad():
            for n in rows:
                unet(*inputs[n])

    def there_and_back() -> None:
        for n in rows:
            unet(*inputs[n]).sample.float().square().mean().backward()

    return there_and_back if trained else forward


def tower_calls(tower: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Callable[[], None]:
    """Calls of CLIP's image tower on images (B, 3, H, W) that are prepared already."""

    @torch.no_grad()
    def forward() -> None:
        for pixels in batches:
            tower(pixels)

    return forward


def _inputs(model: DiffusionModel, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    x = torch.randn((rows, *model.latent_shape), generator=rng)
    timestep = torch.full((rows,), 501, device=model.device)
    cond = model.encode([""] * rows).tokens
    return x.to(model.device, model.dtype), timestep, cond
