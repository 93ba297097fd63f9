"""Numbering of the attention-carrying UNet blocks, as the paper does it.

Layers are counted in the order of computation, blocks without attention left out: SD2.1-base has
0-2 down, 3 mid, 4-6 up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERS = re.compile(r"^(\d+)(?:-(\d+))?$")


@dataclass(frozen=True)
class LayerTable:
    """The layers of one network.

    blocks: module name of each layer, e.g. ("down_blocks.0", …, "mid_block", "up_blocks.1", …).
    grids: (height, width) of each layer's attention, in latent cells.
    names: what flags accept in place of numbers.
    """

    blocks: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    names: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, unet: Any, latent: tuple[int, int] | None = None) -> "LayerTable":
        """The table of a diffusers UNet2DConditionModel.

        latent: (height, width) of latents; None for the size that the UNet was made for. Raises
        ValueError for a UNet without up-sampling attention (it has no mask source).
        """
        with_attention = {_block_of(name) for name in unet.attn_processors}
        size = latent or unet.config.sample_size or 64  # some configs leave it open
        height, width = (size, size) if isinstance(size, int) else size
        levels = len(unet.config.down_block_types)
        order = [(f"down_blocks.{i}", i) for i in range(levels)]
        order += [("mid_block", levels - 1)]
        order += [(f"up_blocks.{i}", levels - 1 - i) for i in range(levels)]
        kept = [(name, level) for name, level in order if name in with_attention]
        if not any(name.startswith("up_blocks") for name, _ in kept):
            raise ValueError("this UNet has no attention in its up-sampling blocks")
        blocks = tuple(name for name, _ in kept)
        grids = tuple((-(-height // 2**level), -(-width // 2**level)) for _, level in kept)
        return cls(blocks, grids, _unet_names(blocks, grids))

    def layer_of(self, processor_name: str) -> int:
        """Layer number of an attention processor, by its diffusers name."""
        return self.blocks.index(_block_of(processor_name))

    def parse(self, text: str) -> frozenset[int]:
        """Layers named by a flag: "3-6", "mid,up", "first_up", "0,3-4", "" (none).

        Raises ValueError naming the part that is wrong.
        """
        layers: set[int] = set()
        for part in filter(None, (p.strip() for p in text.split(","))):
            layers |= self._parse_part(part)
        return frozenset(layers)

    def _parse_part(self, part: str) -> frozenset[int]:
        if part in self.names:
            return self.names[part]
        match = _NUMBERS.match(part)
        if match is None:
            names = ", ".join(self.names)
            raise ValueError(f"'{part}' is no layer: use numbers, ranges or {names}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < len(self.blocks):
            top = len(self.blocks) - 1
            raise ValueError(f"'{part}' is out of range: this model has layers 0-{top}")
        return frozenset(range(first, last + 1))


def _unet_names(
    blocks: tuple[str, ...], grids: tuple[tuple[int, int], ...]
) -> dict[str, frozenset[int]]:
    """The names of a UNet's layers, as flags write them."""

    def starting(prefix: str) -> frozenset[int]:
        return frozenset(i for i, block in enumerate(blocks) if block.startswith(prefix))

    first_up = min(starting("up_blocks"))
    return {
        "all": frozenset(range(len(blocks))),
        "down": starting("down_blocks"),
        "mid": starting("mid_block"),
        "up": starting("up_blocks"),
        "first_up": frozenset({first_up}),
        "first_up_grid": frozenset(i for i, grid in enumerate(grids) if grid == grids[first_up]),
    }


def _block_of(processor_name: str) -> str:
    parts = processor_name.split(".")
    return parts[0] if parts[0] == "mid_block" else ".".join(parts[:2])
