"""Losses on noised final latents: updates of the tiny model against plain loops."""

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor

from dfusion.method.losses import FDFO, LOSSES, DiffusionDPO, DiffusionKTO, ForwardLoss
from dfusion.method.objective import Objective
from dfusion.training.forward import noised_batch
from dfusion.training.order import Step
from dfusion.training.trainer import Trainer
from tests.training.updates import close, gradients, stir

FORWARD = {name: kind for name, kind in LOSSES.items() if issubclass(kind, ForwardLoss)}
STEPS = [Step(p, i) for p in range(4) for i in range(4)]


def final_latents(trainer: Trainer) -> list[list[Tensor]]:
    """Of each pair: the preferred image's and the base's, from the files themselves."""
    round_ = trainer.session.experiment.round(0)
    found = []
    for p, (pair, row) in enumerate(zip(round_.pairs(), round_.adoption(), strict=True)):
        preferred = round_.target(p) if row["adopted"] else round_.trajectory(pair.reference)
        found.append(
            [load_file(f)["latents"][-1] for f in (preferred, round_.trajectory(pair.base))]
        )
    return found


def outputs(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """(16, 2, C, h, w) each: stock predictions at stock noised latents, and their noise."""
    session, model = trainer.session, trainer.session.model
    scheduler = DDIMScheduler.from_config(model.pipe.scheduler.config)
    index = torch.tensor([step.i for step in STEPS])
    batch = noised_batch(session.policy(0), trainer.data(0), STEPS, index)
    found = []
    ends = final_latents(trainer)
    for n, step in enumerate(STEPS):
        text = trainer.data(0).pairs[step.pair].prompt
        cond, _ = model.pipe.encode_prompt(text, "cpu", 1, False)
        t = session.sampler.timesteps[step.i].long()[None]
        x0 = torch.stack(ends[step.pair])
        x = scheduler.add_noise(x0, batch.aim[n], t)
        found.append(model.pipe.unet(x, t, cond.expand(2, -1, -1)).sample)
    return torch.stack(found), batch.aim


def errors(trainer: Trainer) -> Tensor:
    """(16, 2): mean squared errors of the predicted noise, as trainers of diffusion models have."""
    output, noise = outputs(trainer)
    return (output - noise).pow(2).mean((2, 3, 4))


def moved(trainer: Trainer) -> None:
    with torch.no_grad():
        for parameter in trainer.tuning.parameters:
            parameter.mul_(1.3)


@pytest.mark.parametrize("reference", ["round", "initial"])
@pytest.mark.parametrize("kind", [DiffusionDPO, DiffusionKTO])
def test_updates_equal_plain_loops(
    trainer: Trainer, kind: type[DiffusionDPO | DiffusionKTO], reference: str
) -> None:
    objective = Objective(kind(diffusion_beta=50.0, reference=reference))
    ours, tally = gradients(trainer, objective=objective, moved=True, batch_size=5, every=True)
    with torch.no_grad():
        if reference == "initial":
            for parameter in trainer.tuning.parameters:
                parameter.zero_()
        before = errors(trainer)
        stir(trainer)
    moved(trainer)
    now = errors(trainer)
    if kind is DiffusionDPO:  # the formula of diffusers' example
        inside = -0.5 * 50 * ((now[:, 0] - now[:, 1]) - (before[:, 0] - before[:, 1]))
        loss = -torch.nn.functional.logsigmoid(inside).sum()
    else:  # as in the code of its authors, without a half
        gained = -50 * (now - before)
        usual = max(0.0, float(gained.detach().mean()))
        signs = torch.tensor([1.0, -1.0])
        loss = (1 - torch.sigmoid(signs * (gained - usual))).sum()
    theirs = torch.autograd.grad(loss / 16, trainer.tuning.parameters)
    assert close(ours, list(theirs))
    assert float(tally.of("loss").sum()) == pytest.approx(loss.item(), rel=1e-4)
    stir(trainer)


def test_a_process_without_steps_has_no_gradient(trainer: Trainer) -> None:
    """Also of a loss of all steps together."""
    updater = trainer.updater(trainer.session.policy(0), trainer.data(0))
    for loss in (DiffusionDPO(), DiffusionKTO()):
        updater.objective = Objective(loss)
        assert float(updater.backward([]).of("count").sum()) == 0
        assert all(p.grad is None or not p.grad.any() for p in trainer.tuning.parameters)


def test_an_update_of_fdfo_equals_a_plain_loop(trainer: Trainer) -> None:
    """Each side's reward deviates from the midpoint's by w along e; the output is pulled by e."""
    ours, tally = gradients(
        trainer, objective=Objective(FDFO(eps=0.2)), moved=True, batch_size=5, every=True
    )
    with torch.no_grad():
        before, _ = outputs(trainer)
    moved(trainer)
    now, _ = outputs(trainer)
    data, ends = trainer.data(0), [[x.double() for x in pair] for pair in final_latents(trainer)]
    now, before = now.double(), before.double()
    total = torch.zeros((), dtype=torch.float64)
    for n, step in enumerate(STEPS):
        rewards = data.advantages(step.pair)
        for side in (0, 1):
            e = (ends[step.pair][side] - ends[step.pair][1 - side]) / 2
            d = e / (e.pow(2).mean() + 1e-6)
            w = (rewards[side] - rewards[1 - side]) / 2
            error = (now[n, side] - (before[n, side] - d)).pow(2).mean()
            ratio = torch.exp(d.pow(2).mean() - error)
            total = total - w * ratio + abs(w) / (2 * 0.2) * (ratio - 1).pow(2)
    theirs = torch.autograd.grad(total / 16, trainer.tuning.parameters)
    assert close(ours, list(theirs))
    assert float(tally.of("loss").sum()) == pytest.approx(total.item(), rel=1e-3)
    stir(trainer)


@pytest.mark.parametrize("name", FORWARD)
def test_micro_batches_do_not_matter_and_the_first_ratio_is_one(
    trainer: Trainer, name: str
) -> None:
    objective = Objective(FORWARD[name](), kl_initial=0.1, loser_limit=0.5)
    one, first = gradients(trainer, objective=objective, batch_size=1, every=True)
    many, _ = gradients(trainer, objective=objective, batch_size=7, every=True)
    assert close(many, one)
    assert torch.allclose(first.of("ratio"), first.of("count"), atol=1e-6)
    assert (first.of("shifts") == 0).all()


def test_noise_depends_on_seed_round_pair_and_step(trainer: Trainer) -> None:
    """Not on what else is in the batch; both sides of a pair have the same."""
    policy, data = trainer.session.policy(0), trainer.data(0)

    def noise(steps: list[Step]) -> Tensor:
        return noised_batch(policy, data, steps, torch.tensor([s.i for s in steps])).aim

    known = noise(STEPS)
    assert known[:, 0].equal(known[:, 1])
    assert noise(STEPS[5:8]).equal(known[5:8]) and noise(STEPS[::-1]).equal(known.flip(0))
    assert len({tuple(n.flatten()[:4].tolist()) for n in known[:, 0]}) == 16
    other = noised_batch(trainer.session.policy(1), data, STEPS, torch.tensor([s.i for s in STEPS]))
    assert not other.aim.isclose(known).any(-1).all()
