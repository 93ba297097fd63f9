"""Updates on the tiny model: against a plain loop, closed forms and each other."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.losses import DPO, LOSSES
from dfusion.method.objective import Objective
from dfusion.method.step_weights import Listed
from dfusion.storage.experiment import Experiment
from dfusion.training.gradients import sampling_gap, transitions
from dfusion.training.order import Step
from dfusion.training.pairs import TrainingRound
from dfusion.training.trainer import Trainer
from tests.conftest import REWARD
from tests.losses import TrajectoryDPO
from tests.training.updates import close, gradients, stir


@pytest.mark.parametrize(("method", "batch_size"), [("dpo", 3), ("ddpo", 5), ("dpok", 50)])
def test_any_micro_batch_gives_the_same_update(
    trainer: Trainer, method: str, batch_size: int
) -> None:
    objective = Objective(LOSSES[method](eps=0))
    one, _ = gradients(trainer, objective=objective, moved=True, batch_size=1)
    many, _ = gradients(trainer, objective=objective, moved=True, batch_size=batch_size)
    assert close(many, one)


def plain_dpo(trainer: Trainer, old: dict, remember: bool) -> Tensor:
    """Eq. 6 written out: one pair, one step at a time, through stock pieces, nothing skipped."""
    session, model = trainer.session, trainer.session.model
    round_ = session.experiment.round(0)
    total = torch.zeros(())
    scheduler_sigma = session.sampler.std
    for p, (pair, row) in enumerate(zip(round_.pairs(), round_.adoption(), strict=True)):
        preferred = round_.target(p) if row["adopted"] else round_.trajectory(pair.reference)
        sides = [load_file(f)["latents"] for f in (preferred, round_.trajectory(pair.base))]
        cond, uncond = model.pipe.encode_prompt(pair.prompt, "cpu", 1, True)
        for i, t in enumerate(session.sampler.timesteps):
            ratios = []
            for s, x in enumerate(sides):
                u, c = model.network(torch.stack([x[i], x[i]]), t, torch.cat([uncond, cond])).sample
                mean, _ = session.sampler.transition(x[i][None], (u + 5 * (c - u))[None], i)
                normal = torch.distributions.Normal(mean[0], scheduler_sigma[i])
                log_prob = normal.log_prob(x[i + 1]).mean()
                if remember:
                    old[p, i, s] = log_prob.detach()
                ratios.append(torch.exp(log_prob - old[p, i, s]))
            total = total - torch.log(torch.sigmoid(0.1 * ratios[0] - 0.1 * ratios[1]))
    return total / (len(round_.pairs()) * 4)


@pytest.mark.parametrize("moved", [False, True])
def test_update_equals_the_plain_loop(trainer: Trainer, moved: bool) -> None:
    """Also shows that the steps left out, before fusion, have no gradient."""
    objective = Objective(DPO(beta=0.1, eps=0))
    assert any(trainer.data(0).fused)
    ours, _ = gradients(trainer, objective=objective, moved=moved, batch_size=4)
    old: dict = {}
    with torch.no_grad():
        plain_dpo(trainer, old, remember=True)
        if moved:
            for parameter in trainer.tuning.parameters:
                parameter.mul_(1.3)
    loss = plain_dpo(trainer, old, remember=False)
    theirs = torch.autograd.grad(loss, trainer.tuning.parameters)
    assert close(ours, list(theirs))


@pytest.mark.parametrize("moved", [False, True])
def test_a_loss_of_whole_trajectories(trainer: Trainer, moved: bool) -> None:
    """In micro-batches, the gradient that autograd gives of all steps in one graph."""
    weights = (1.0, 2.0, 0.5, 3.0)
    objective = Objective(TrajectoryDPO(beta=3.0), kl_initial=0.1, step_weights=Listed(weights))
    ours, tally = gradients(trainer, objective=objective, moved=moved, batch_size=3, every=True)
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [Step(p, i) for p in range(4) for i in range(4)]
    batch = data.read(steps)
    with torch.no_grad():
        old = transitions(policy, trainer.network, batch).log_prob
        with trainer.tuning.initial() as network:
            initial = transitions(policy, network, batch).mean
        if moved:
            for parameter in trainer.tuning.parameters:
                parameter.mul_(1.3)
    now = transitions(policy, trainer.network, batch)
    std = policy.sampler.std[batch.i].reshape(-1, 1, 1, 1, 1)
    weight = torch.tensor(weights)[batch.i]
    kl = ((now.mean - initial) / std).square().flatten(2).mean(2).sum(1) / 2
    sums = (weight[:, None] * (now.log_prob - old)).unflatten(0, (4, 4)).sum(1)
    loss = -torch.nn.functional.logsigmoid(3 * (sums[:, 0] - sums[:, 1])).sum()
    loss = loss + 0.1 * (weight * kl).sum()
    theirs = torch.autograd.grad(loss / 16, trainer.tuning.parameters)
    assert close(ours, list(theirs))
    assert float(tally.of("loss").sum()) == pytest.approx(loss.item(), rel=1e-4)


def test_margins_and_preferences_by_hand(trainer: Trainer) -> None:
    """Zero and a half while the network is theta_old; those of the log-probs later."""
    _, first = gradients(trainer)
    assert first.figures()["margin"] == 0 and first.figures()["preferred"] == 0.5
    _, later = gradients(trainer, moved=True)
    assert later.figures()["margin"] != 0 and later.figures()["preferred"] != 0.5


def test_skipped_steps_have_no_gradient(trainer: Trainer) -> None:
    data = trainer.data(0)
    assert {data.first_step(p) for p in range(4)} <= {0, 1}
    assert 1 in {data.first_step(p) for p in range(4)}
    without, a = gradients(trainer)
    everything, b = gradients(trainer, every=True)
    assert close(without, everything)
    assert a.of("count")[0] < b.of("count")[0]


def test_ratio_is_one_at_first_and_not_later(trainer: Trainer) -> None:
    _, first = gradients(trainer)
    assert first.of("ratio").equal(first.of("count"))
    _, later = gradients(trainer, moved=True)
    assert not torch.allclose(later.of("ratio"), later.of("count"), atol=1e-6)


@pytest.mark.parametrize("method", ["ddpo", "dpok"])
def test_the_ratio_of_ppo_is_to_theta_old_beside_a_kl_to_the_initial_model(
    trainer: Trainer, method: str
) -> None:
    """The LoRA is not zero here, so that a ratio to the initial model is not 1."""
    objective = Objective(LOSSES[method](), kl_initial=0.1)
    _, tally = gradients(trainer, objective=objective)
    assert tally.of("ratio").equal(tally.of("count"))


def test_log_probs_are_those_of_sampling(trainer: Trainer) -> None:
    """Of the network that sampled; any other is noticed, and training stops."""
    data, policy = trainer.data(0), trainer.session.policy(0)
    steps = [Step(p, i) for p in range(4) for i in range(4)]
    assert sampling_gap(policy, trainer.network, data, steps) < 1e-4
    with torch.no_grad():
        for parameter in trainer.tuning.parameters:
            parameter.mul_(3)
    assert sampling_gap(policy, trainer.network, data, steps) > 1e-3
    with pytest.raises(UserError, match="not the one that sampled"):
        trainer.train_round(0, policy)


def test_scores_of_another_reward_are_not_mixed_in(trainer: Trainer, tmp_path: Path) -> None:
    """Advantages of round 1 take round 0's scores in, unless another reward gave them."""
    experiment = Experiment(tmp_path)
    for number in (0, 1):
        shutil.copytree(trainer.session.experiment.round(0).folder, tmp_path / f"epoch{number}")
    alone = TrainingRound(experiment, 0, "naive", 1).content()
    scores = experiment.round(0).scores("images")
    experiment.round(0).write_scores("images", REWARD, {i: 9 * s for i, s in scores.items()})
    assert TrainingRound(experiment, 1, "naive", 1).content() != alone
    experiment.round(0).write_scores("images", "another", {i: 9 * s for i, s in scores.items()})
    assert TrainingRound(experiment, 1, "naive", 1).content() == alone


def test_naive_pairs_use_the_reference(trainer: Trainer) -> None:
    naive = TrainingRound(trainer.session.experiment, 0, "naive", 1)
    assert not any(naive.fused)
    pair = naive.pairs[2]
    batch = naive.read([Step(2, 3)])
    for side, index in ((0, pair.reference), (1, pair.base)):
        latents = load_file(naive.round.trajectory(index))["latents"]
        assert batch.x[0, side].equal(latents[3])
        assert batch.x_next[0, side].equal(latents[4])
    # Advantages by hand: the prompt's four samples of this round.
    scores = naive.round.scores("images")
    mine = torch.tensor(
        [scores[i] for i, t in enumerate(naive.round.texts_to_score("images")) if t == pair.prompt],
        dtype=torch.float64,
    )
    expected = (scores[pair.base] - mine.mean()) / (mine.std(unbiased=False) + 1e-6)
    assert batch.advantages[0, 1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_of_dpo_prefers_the_target(trainer: Trainer) -> None:
    """After one update, targets are likelier against their bases than before."""
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [Step(p, i) for p in range(4) for i in range(data.first_step(p), 4)]

    def margin() -> float:
        with torch.no_grad():
            batch = data.read(steps)
            log_prob = transitions(policy, trainer.network, batch).log_prob
        return float((log_prob[:, 0] - log_prob[:, 1]).mean())

    before = margin()
    trainer.train_round(0, policy)
    assert margin() > before


def test_weights_scale_each_step(trainer: Trainer) -> None:
    """Gradients are linear in the weights."""
    weights = ((1.0, 0.0, 0.0, 2.0), (0.0, 3.0, 1.0, 0.0), (1.0, 3.0, 1.0, 2.0))
    parts = [
        gradients(trainer, moved=True, objective=Objective(DPO(eps=0), step_weights=Listed(w)))[0]
        for w in weights
    ]
    assert close([a + b for a, b in zip(parts[0], parts[1], strict=True)], parts[2])
    plain, _ = gradients(trainer, moved=True, objective=Objective(DPO(eps=0)))
    assert not close(parts[2], plain)


def test_the_initial_model_as_reference_and_anchor(trainer: Trainer) -> None:
    """Log-probs and KL of the initial model are those of the UNet without its LoRA."""
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [Step(p, i) for p in range(4) for i in range(4)]
    updater = trainer.updater(policy, data)
    updater.objective = Objective(DPO(reference="initial", eps=0), kl_initial=0.5)
    tally = updater.backward(steps)
    batch = data.read(steps)
    with torch.no_grad():
        now = transitions(policy, trainer.network, batch)
        for parameter in trainer.tuning.parameters:
            parameter.zero_()
        plain = transitions(policy, trainer.network, batch)
    stir(trainer)
    known = updater.first.log_prob.flatten(0, 1)  # steps are all, in order
    assert torch.allclose(known, plain.log_prob, atol=1e-6)
    assert not torch.allclose(known, now.log_prob, atol=1e-4)
    std = trainer.session.sampler.std[batch.i].repeat_interleave(4 * 8 * 8 * 2).view(-1, 2, 4, 8, 8)
    p, q = (torch.distributions.Normal(t.mean, std) for t in (now, plain))
    kl = torch.distributions.kl_divergence(p, q).flatten(2).mean(-1)
    ratios = (now.log_prob - plain.log_prob).exp()
    expected = -torch.nn.functional.logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1]))
    expected += 0.5 * kl.sum(-1)
    assert float(tally.of("loss").sum()) == pytest.approx(float(expected.sum()), rel=1e-4)
    assert float(tally.of("kl_initial").sum()) == pytest.approx(float(kl.mean(-1).sum()), rel=1e-3)


def test_shift_of_fusion_is_the_distance_of_the_two_means(trainer: Trainer) -> None:
    """Against the target's means with fusion on, computed anew."""
    session, data = trainer.session, trainer.data(0)
    policy = session.policy(0)
    fused = [p for p in range(4) if data.fused[p]]
    assert fused
    steps = [Step(p, 2) for p in fused]
    tally = trainer.updater(policy, data).backward(steps)
    expected = []
    for p in fused:
        x, x_next = load_file(data.round.target(p))["latents"][2:4]
        _, z = policy.noise([data.pairs[p].base])
        std = policy.sampler.std[2]
        with torch.no_grad():
            cond = policy.model.encode([data.pairs[p].prompt])
            eps, _ = policy.model.predict(x[None], policy.sampler.timesteps[2], cond, 5.0)
            unfused, _ = policy.sampler.transition(x[None], eps, 2)
        expected.append(((x_next - std * z[0, 2] - unfused[0]) / std).square().mean().sqrt())
    shift = tally.figures()["fusion_shift"]
    assert shift[2] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-3)
    assert shift[2] > 1e-3 and shift[0] is None


def test_the_preferred_side_is_fused_from_the_first_fused_step_on(trainer: Trainer) -> None:
    data = trainer.data(0)
    assert any(data.fused)
    for p, fused in enumerate(data.fused):
        walked = [data.walked_fused(Step(p, i)) for i in range(4)]
        assert walked == [fused and i >= 1 for i in range(4)]  # "3-1" of four steps
        assert data.first_step(p) == (1 if fused else 0)
    inverted = TrainingRound(trainer.session.experiment, 0, "inversion", fused_from=1)
    assert not any(inverted.walked_fused(Step(p, 3)) for p in range(len(data.pairs)))
