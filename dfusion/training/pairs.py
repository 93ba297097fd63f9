"""The denoising steps of a round's pairs, as training reads them from disk or memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.advantages import normalised, statistics
from dfusion.method.pairing import Pair
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import REBUILT, read_rows, read_tensors
from dfusion.training.order import Step

KEPT_BYTES = 4 * 2**30  # of states in memory; Table 3 on SD2.1 has 0.9 GB in float32


@dataclass(frozen=True)
class Batch:
    """Transitions of B steps; side 0 is preferred to side 1.

    x, x_next: (B, 2, C, h, w) float32. i: (B,) long. advantages: (B, 2). cells: (B, h, w), the
    weights of cells in log-probs; None if all are 1.
    """

    x: Tensor
    x_next: Tensor
    i: Tensor
    texts: list[str]
    advantages: Tensor
    cells: Tensor | None = None


class TrainingPairs(ABC):
    """Pairs of a base and its target, or of a base and its reference.

    pairs: their prompts and bases' numbers. fused: whether it is a target. Up to step `fused_from`,
    a target has the states of its base. Side 0 of a pair is preferred to side 1.
    """

    pairs: Sequence[Pair]
    fused: Sequence[bool]

    @abstractmethod
    def base_side(self, p: int) -> int:
        """1; or 0 if the base is preferred, as its target is made with a worse image."""

    @abstractmethod
    def first_step(self, p: int) -> int:
        """The first step at which the two sides differ: Eq. 6 has no gradient before it."""

    @abstractmethod
    def begins(self, p: int) -> int:
        """The first step that both sides have walked; earlier states are no trajectory."""

    @abstractmethod
    def walked_fused(self, step: Step) -> bool:
        """Whether the step was sampled by the fused policy on the side that is not the base."""

    @abstractmethod
    def mask(self, step: Step) -> Tensor | None:
        """(gh, gw) bool: the cells fused at a step; None for pairs that differ everywhere."""

    @abstractmethod
    def advantages(self, p: int) -> list[float]:
        """Normalised rewards of sides 0 and 1."""

    @abstractmethod
    def states_of(self, step: Step, side: int) -> Tensor:
        """(2, C, h, w): x_t and x_{t-1} of one side."""

    def states(self, steps: Sequence[Step]) -> Tensor:
        """(B, 2, 2, C, h, w) as stored: by step, side, and x_t before x_{t-1}."""
        sides = [[self.states_of(s, side) for side in (0, 1)] for s in steps]
        return torch.stack([torch.stack(pair) for pair in sides])

    def read(self, steps: Sequence[Step]) -> Batch:
        """The batch of these steps, on the CPU."""
        states = self.states(steps).float()
        return Batch(
            x=states[:, :, 0],
            x_next=states[:, :, 1],
            i=torch.tensor([s.i for s in steps]),
            texts=[self.pairs[s.pair].prompt for s in steps],
            advantages=torch.tensor([self.advantages(s.pair) for s in steps]),
        )


class TrainingRound(TrainingPairs):
    """The pairs of one round on disk.

    source: "dfusion" takes the target where it was adopted and the reference where it was not
    (Eq. 7); "naive" always takes the reference; "inversion" is "dfusion" with the states of adopted
    targets as DDIM inversion guesses them. fused_from: the first fused step's index. grouped:
    whether rewards are normalised by this round's samples only; see `Loss.grouped`.
    """

    def __init__(
        self,
        experiment: Experiment,
        number: int,
        source: str,
        fused_from: int,
        grouped: bool = False,
    ) -> None:
        self.round: Round = experiment.round(number)
        self.pairs = self.round.pairs() or ()
        scores = self.round.scores("images")
        rows = self.round.adoption() if source != "naive" else None
        self.fused = [bool(rows and rows[p]["adopted"]) for p in range(len(self.pairs))]
        self._fused_from, self._inverted = fused_from, source == "inversion"
        self._kind = self.round.made_with("pairs.json")["target kind"]
        self._kept: dict[Path, Tensor] = {}
        self._masks: dict[int, Tensor] = {}  # by pair
        history = self.round.scores_by_text() if grouped else _history(experiment, number)
        stats = statistics(history)
        self._advantages, self._base_side = [], []
        for p, pair in enumerate(self.pairs):
            base, reference = scores[pair.base], scores[pair.reference]
            other = rows[p]["target"] if rows and self.fused[p] else reference
            sides = (base, other) if reference < base else (other, base)
            self._advantages.append([normalised(r, *stats[pair.prompt]) for r in sides])
            self._base_side.append(0 if reference < base else 1)

    def content(self) -> list[dict[str, object]]:
        """For each pair, what training on it depends on, except for the states themselves."""
        rows = zip(self.pairs, self.fused, self._advantages, strict=True)
        return [{**asdict(p), "fused": fused, "advantages": a} for p, fused, a in rows]

    def base_side(self, p: int) -> int:
        return self._base_side[p]

    def first_step(self, p: int) -> int:
        # A target shares its base's states until fusion begins; other trajectories share none.
        return self._fused_from if self.fused[p] and not self._inverted else 0

    def begins(self, p: int) -> int:
        return self.first_step(p) if self._kind == "renoise" else 0

    def walked_fused(self, step: Step) -> bool:
        fused = self.fused[step.pair] and not self._inverted and self._kind == "attention"
        return fused and step.i >= self._fused_from

    def mask(self, step: Step) -> Tensor | None:  # (gh, gw)
        p = step.pair
        if not self.fused[p] or self._inverted or self._kind != "attention":
            return None
        if p not in self._masks:
            self._masks[p] = read_tensors(self.round.target(p))["masks"].clone()
        return self._masks[p][step.i]

    def final_state(self, p: int) -> Tensor:
        """(C, h, w): the target's x_0."""
        return read_rows(self.round.target(p), "latents", slice(-1, None))[0]

    def check(self, pairs: Sequence[int]) -> None:
        """Read each states file that these pairs train on once in full, and check its checksum.

        States are kept in memory up to KEPT_BYTES; steps of others are read from their files.
        Raises UserError naming a damaged, edited or odd file.
        """
        kept = 0
        for path in sorted({self._file(p, s) for p in pairs for s in (0, 1)}):
            latents = read_tensors(path).get("latents")
            if latents is None or not bool(latents.isfinite().all()):
                raise UserError(f"{path}: its states are missing, NaN or infinite; {REBUILT}")
            kept += latents.nbytes
            if kept <= KEPT_BYTES:
                self._kept[path] = latents.clone()  # a copy, not the mapped file

    def advantages(self, p: int) -> list[float]:
        return self._advantages[p]

    def states_of(self, step: Step, side: int) -> Tensor:  # (2, C, h, w)
        path, rows = self._file(step.pair, side), slice(step.i, step.i + 2)
        kept = self._kept.get(path)
        return read_rows(path, "latents", rows) if kept is None else kept[rows]

    def _file(self, p: int, side: int) -> Path:
        """Where the states of one side of a pair are."""
        pair = self.pairs[p]
        if side == self._base_side[p]:
            path = self.round.trajectory(pair.base)
        elif self.fused[p]:
            inverted, target = self.round.inversion(p), self.round.target(p)
            path = inverted if self._inverted else target
        else:
            path = self.round.trajectory(pair.reference)
        return path


def _history(experiment: Experiment, number: int) -> dict[str, list[float]]:
    """Scores of the plain samples of every prompt, up to and including round `number`.

    Rounds scored by another reward are left out, as its scores have another scale.
    """
    history: dict[str, list[float]] = {}
    reward = experiment.round(number).scored_by("images")
    for k, round_ in experiment.rounds().items():
        if k <= number and round_.scored_by("images") == reward:
            for text, scores in round_.scores_by_text().items():
                history.setdefault(text, []).extend(scores)
    return history
