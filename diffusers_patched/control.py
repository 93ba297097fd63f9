"""What one network call should record and fuse in its attention modules.

N is the number of rows of the call's batch (guidance doubles it), J the number of recorded token
columns, (gh, gw) the mask's grid. Nothing here knows about pairs, prompts or timesteps: the caller
says, row by row, where keys and values come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor

# What can be taken from the source row. D-Fusion (Eq. 5) is self_k + self_v; the others are the
# observations of the paper's Appendix B and the methods it compares with.
PARTS = {
    "self_q": "queries of self-attention",
    "self_k": "keys of self-attention (Eq. 5)",
    "self_v": "values of self-attention (Eq. 5)",
    "self_map": "self-attention maps, applied to the row's own values (Plug-and-Play)",
    "self_out": "output of self-attention",
    "cross_map": "cross-attention maps (Prompt-to-Prompt)",
    "cross_out": "output of cross-attention",
    "masa_map": "MasaCtrl, first half: source K and V, each region attending to its own region",
    "masa_out": "MasaCtrl, second half: source K and V, outputs kept inside the mask only",
}
# Where image and text share one attention, these can be taken, at image tokens.
JOINT_PARTS = frozenset({"self_q", "self_k", "self_v", "self_out"})


@dataclass(frozen=True)
class Record:
    """Keep the cross-attention maps of some token columns.

    layers: layers to average over; all must have the same grid.
    columns: (R, J) long, token positions per recorded row; -1 pads (its map is zero).
    first_row: the recorded rows are first_row … first_row + R - 1 of the batch (the conditional
        half under guidance).
    keys: (R, L) bool, the tokens among which attention is shared out in the maps; None for all
        that a query sees, as in the model. Used in joint attention only.
    """

    layers: frozenset[int]
    columns: Tensor
    first_row: int = 0
    keys: Tensor | None = None


@dataclass(frozen=True)
class Fusion:
    """Take attention components of one row from another row of the same call.

    source: (N,) long, the row to take from; a row that names itself is left alone.
    mask: (N, gh, gw) bool, where to take; None takes everywhere.
    layers: layers in which this applies.
    parts: names from PARTS.
    grids: (height, width) of the layers' grids; where it lacks one, it is guessed from the mask's
        ratio, which rounding blurs for sides that are no multiples of 8.
    own_text: in joint attention, whether text tokens read the row's own image tokens, not the fused
        ones.
    """

    source: Tensor
    layers: frozenset[int]
    mask: Tensor | None = None
    parts: frozenset[str] = frozenset({"self_k", "self_v"})
    grids: frozenset[tuple[int, int]] = frozenset()
    own_text: bool = False
    _resized: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = self.parts - PARTS.keys()
        if unknown:
            raise ValueError(f"unknown parts {sorted(unknown)}; choose from {sorted(PARTS)}")

    def rows_at(self, tokens: int) -> Tensor:
        """(N, tokens, 1) bool: which token of which row is taken from its source row.

        The mask is resized to the layer's grid by nearest neighbour, as in the paper's M-hat.
        Raises ValueError where the layer's grid has another aspect ratio than the mask.
        """
        if tokens not in self._resized:
            own = torch.arange(len(self.source), device=self.source.device)
            fused = (self.source != own)[:, None]  # (N, 1)
            if self.mask is None:
                rows = fused.expand(-1, tokens)
            else:
                rows = fused & self._mask_at(self.mask, tokens)
            self._resized[tokens] = rows[..., None]
        return self._resized[tokens]

    def _mask_at(self, mask: Tensor, tokens: int) -> Tensor:
        gh, gw = mask.shape[-2:]
        known = [grid for grid in self.grids if grid[0] * grid[1] == tokens]
        height = known[0][0] if known else round((tokens * gh / gw) ** 0.5)
        if height == 0 or height * round(tokens / height) != tokens:
            raise ValueError(f"a {gh}x{gw} mask does not fit a layer of {tokens} tokens")
        size = (height, tokens // height)
        return F.interpolate(mask[:, None].float(), size).flatten(1) > 0.5


@dataclass(frozen=True)
class LayerFusion:
    """A Fusion in one layer: rows is (N, S, 1) bool, which token of which row is taken."""

    source: Tensor
    rows: Tensor
    parts: frozenset[str]
    own_text: bool = False


@dataclass(frozen=True)
class LayerControl:
    """One call's instructions to one layer.

    All that differs between calls are tensors, so that a compiled block serves every call.
    recorded: first and last + 1 of the rows whose cross-attention maps are kept; None for none.
    keys: see Record. maps: where they are put, (R, S, L) float32 each.
    """

    fusions: tuple[LayerFusion, ...]
    recorded: tuple[int, int] | None
    keys: Tensor | None = None
    maps: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class AttentionControl:
    """One network call's instructions; an empty control is stock diffusers, to the bit."""

    record: Record | None = None
    fusions: tuple[Fusion, ...] = ()

    def at(self, layer: int, tokens: int) -> LayerControl | None:
        """What a layer of so many tokens is to do; None: nothing."""
        fusions = tuple(
            LayerFusion(fusion.source, fusion.rows_at(tokens), fusion.parts, fusion.own_text)
            for fusion in self.fusions
            if layer in fusion.layers
        )
        recorded = keys = None
        if self.record and layer in self.record.layers:
            first = self.record.first_row
            recorded, keys = (first, first + len(self.record.columns)), self.record.keys
        return LayerControl(fusions, recorded, keys) if fusions or recorded else None


@dataclass
class ControlOutput(BaseOutput):  # type: ignore[misc]
    """sample: (N, C, h, w). maps: (R, J, gh, gw) float32, or None where nothing was recorded."""

    sample: Tensor
    maps: Tensor | None = None


def mean_map(maps: list[Tensor], record: Record, latent: Sequence[int]) -> Tensor:
    """The recorded columns, mean over modules, as a picture: (R, J, gh, gw).

    maps: one (R, S, L) tensor per recorded module, in the order of computation. latent: (height,
    width) of the latents; a grid is that, halved and rounded up as often as it takes.
    """
    if not maps:
        raise ValueError("no cross-attention in the recorded layers")
    if len({m.shape for m in maps}) > 1:
        raise ValueError("the recorded layers have different grids; record layers of one grid")
    columns = record.columns[:, None].expand(-1, maps[0].shape[1], -1)  # (R, S, J)
    kept = [m.gather(-1, columns.clamp(min=0)) * (columns >= 0) for m in maps]
    mean = torch.stack(kept).mean(0)
    height, width = latent
    while height * width > mean.shape[1]:
        height, width = -(-height // 2), -(-width // 2)
    return mean.unflatten(1, (height, width)).permute(0, 3, 1, 2)
