"""From the evaluations of a small round to those of the paper's Table 3."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundSize:
    """A round in which every target is adopted. fused_steps: of `steps`."""

    images: int
    pairs: int
    steps: int
    fused_steps: int
    inner_epochs: int


TABLE3 = RoundSize(images=640, pairs=320, steps=20, fused_steps=18, inner_epochs=2)


@dataclass(frozen=True)
class RoundCount:
    """UNet evaluations of a round.

    checks: forward passes that no sample or gradient comes from; a few, whatever the round's size.
    """

    sampling: float
    fusion: float
    training: float
    checks: float = 0.0

    @property
    def total(self) -> float:
        return self.sampling + self.fusion + self.training + self.checks

    def scaled(self, size: RoundSize, to: RoundSize = TABLE3) -> "RoundCount":
        """The count of a round of size `to`, from that of a round of size `size`."""
        images = to.images * to.steps / (size.images * size.steps)
        pairs = to.pairs * to.fused_steps / (size.pairs * size.fused_steps)
        return RoundCount(
            sampling=self.sampling * images,
            fusion=self.fusion * pairs,
            training=self.training * pairs * to.inner_epochs / size.inner_epochs,
            checks=self.checks,
        )
