"""Training on the tiny model: the update against a plain loop, equivalences, resume, stock LoRA."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dfusion.errors import UserError
from dfusion.objective import Objective
from dfusion.rng import generator
from dfusion.runs import open_session
from dfusion.settings import Settings
from dfusion.tally import Tally
from dfusion.training import Trainer, train_rounds
from dfusion.transitions import Step, TrainingRound
from dfusion.updates import sampling_gap, transitions
from tests.conftest import PROMPTS, make_settings


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Trainer:
    """A trainer beside a finished round, sampled with a LoRA that is not zero."""
    settings = make_settings(tmp_path_factory.mktemp("training"), pipeline_folder)
    settings.pair.adoption_threshold = 0.0
    settings.train.batch_size = 8
    trainer = Trainer(open_session(settings))
    stir(trainer)
    trainer.session.runner.run(0, trainer.session.policy(0))
    return trainer


@pytest.fixture
def trainer(trained_on: Trainer) -> Trainer:
    """The same for every test, with the LoRA that sampled."""
    stir(trained_on)
    return trained_on


def stir(trainer: Trainer) -> None:
    rng = torch.Generator().manual_seed(4)
    for parameter in trainer.tuning.parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=rng) * 0.05)


def gradients(trainer: Trainer, **how) -> tuple[list[Tensor], Tally]:
    """Gradients of one update over all steps; theta_old is `moved` away from theta if asked."""
    options = {"batch_size": 8, "objective": trainer.objective, "moved": False, "every": False}
    options |= how
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [
        Step(p, i)
        for p in range(len(data.pairs))
        for i in range(0 if options["every"] else data.first_step(p), 4)
    ]
    updater = trainer._updater(policy, data)
    updater.objective, updater.batch_size = options["objective"], options["batch_size"]
    if options["moved"]:
        updater.remember(steps)
        with torch.no_grad():
            for parameter in trainer.tuning.parameters:
                parameter.mul_(1.3)
    trainer.optimiser.zero_grad()
    tally = updater.backward(steps)
    count = len(data.pairs) * 4
    found = [p.grad / count for p in trainer.tuning.parameters if p.grad is not None]
    assert len(found) == len(trainer.tuning.parameters)
    stir(trainer)
    return found, tally


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    size = max(g.abs().max() for g in b)
    return all(torch.allclose(x / size, y / size, atol=2e-5) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("method", "batch_size"), [("dpo", 3), ("ddpo", 5), ("dpok", 50)])
def test_any_micro_batch_gives_the_same_update(
    trainer: Trainer, method: str, batch_size: int
) -> None:
    objective = Objective(method=method, clip=None)
    one, _ = gradients(trainer, objective=objective, moved=True, batch_size=1)
    many, _ = gradients(trainer, objective=objective, moved=True, batch_size=batch_size)
    assert close(many, one)


def plain_dpo(trainer: Trainer, old: dict, remember: bool) -> Tensor:
    """Eq. 6 written out: one pair, one step at a time, through stock pieces, nothing skipped."""
    session, model = trainer.session, trainer.session.model
    round_ = session.experiment.round(0)
    total = torch.zeros(())
    scheduler_sigma = session.ddim.std
    for p, (pair, row) in enumerate(zip(round_.pairs(), round_.adoption(), strict=True)):
        preferred = round_.target(p) if row["adopted"] else round_.trajectory(pair.reference)
        sides = [load_file(f)["latents"] for f in (preferred, round_.trajectory(pair.base))]
        cond, uncond = model.pipe.encode_prompt(pair.prompt, "cpu", 1, True)
        for i, t in enumerate(session.ddim.timesteps):
            ratios = []
            for s, x in enumerate(sides):
                u, c = model.unet(torch.stack([x[i], x[i]]), t, torch.cat([uncond, cond])).sample
                mean, _ = session.ddim.transition(x[i][None], (u + 5 * (c - u))[None], i)
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
    objective = Objective(method="dpo", beta=0.1, clip=None)
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


def small(settings: Settings, rounds: int, name: str) -> Settings:
    chosen = dataclasses.replace(settings, exp_name=name)
    chosen.train = dataclasses.replace(
        settings.train, num_epochs=rounds, learning_rate=1e-2, batch_size=8
    )
    return chosen


def test_resumed_equals_uninterrupted(settings: Settings) -> None:
    whole = train_rounds(small(settings, 2, "whole"))
    train_rounds(small(settings, 1, "parts"))
    parts = train_rounds(small(settings, 2, "parts"))
    for name in ("pytorch_lora_weights.safetensors", "optimiser.safetensors"):
        a, b = (load_file(f / "checkpoints" / "epoch1" / name) for f in (whole, parts))
        assert a.keys() == b.keys()
        assert all(a[k].equal(b[k]) for k in a)
    first = load_file(whole / "checkpoints" / "epoch0" / "pytorch_lora_weights.safetensors")
    last = load_file(whole / "checkpoints" / "epoch1" / "pytorch_lora_weights.safetensors")
    assert any(not first[k].equal(last[k]) for k in first)
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r.get("inner_epoch")) for r in rows] == [
        (0, 0), (0, 1), (0, None), (1, 0), (1, 1), (1, None)
    ]  # fmt: skip


def test_lora_loads_into_a_stock_pipeline(settings: Settings, pipeline_folder: Path) -> None:
    trainer = Trainer(open_session(small(settings, 1, "stock")))
    trainer.run()
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = trainer.session.model.encode(["the dog"])
    predict: Callable = lambda unet: unet(x, torch.tensor(501), text).sample  # noqa: E731
    with torch.no_grad():
        plain = predict(stock.unet)
        stock.load_lora_weights(trainer.checkpoints.path(0))
        ours = predict(trainer.session.model.unet)
        assert torch.allclose(predict(stock.unet), ours, atol=1e-6)
        assert not torch.allclose(plain, ours, atol=1e-5)


def test_stock_pipeline_with_our_lora_gives_our_images(
    settings: Settings, pipeline_folder: Path
) -> None:
    """A whole sample by plain diffusers, from the same generator, against the next round's."""
    folder = train_rounds(small(settings, 2, "images"))
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)

    def image(index: int) -> np.ndarray:
        output = stock(
            PROMPTS[0],
            num_inference_steps=4,
            eta=1.0,
            guidance_scale=5.0,
            generator=generator(settings.seed, 1, index),
            output_type="np",
            height=16,
            width=16,
        )
        return (output.images[0] * 255).round().astype(int)

    def ours(index: int) -> np.ndarray:
        return np.asarray(Image.open(folder / f"epoch1/images/{index:05d}.png")).astype(int)

    plain = image(1)
    stock.load_lora_weights(folder / "checkpoints" / "epoch0")
    assert abs(image(1) - ours(1)).max() <= 1 and abs(image(3) - ours(3)).max() <= 1
    assert abs(plain - ours(1)).max() > 1


def test_checkpoint_of_another_rank_is_refused(settings: Settings) -> None:
    train_rounds(small(settings, 1, "exp"))
    other = small(settings, 2, "exp")
    other.train.lora_rank, other.allow_config_change = 2, True
    with pytest.raises(UserError, match="does not fit"):
        train_rounds(other)


def test_old_checkpoints_go(settings: Settings) -> None:
    chosen = small(settings, 3, "keep")
    chosen.train.num_checkpoint_limit = 2
    folder = train_rounds(chosen)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["epoch1", "epoch2"]


def test_weights_scale_each_step(trainer: Trainer) -> None:
    """Gradients are linear in the weights."""
    weights = ((1.0, 0.0, 0.0, 2.0), (0.0, 3.0, 1.0, 0.0), (1.0, 3.0, 1.0, 2.0))
    parts = [
        gradients(trainer, moved=True, objective=Objective(clip=None, step_weights=w))[0]
        for w in weights
    ]
    assert close([a + b for a, b in zip(parts[0], parts[1], strict=True)], parts[2])
    plain, _ = gradients(trainer, moved=True, objective=Objective(clip=None))
    assert not close(parts[2], plain)


def test_the_initial_model_as_reference_and_anchor(trainer: Trainer) -> None:
    """Log-probs and KL of the initial model are those of the UNet without its LoRA."""
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [Step(p, i) for p in range(4) for i in range(4)]
    updater = trainer._updater(policy, data)
    updater.objective = Objective(reference="initial", kl_initial=0.5, clip=None)
    tally = updater.backward(steps)
    batch = data.read(steps)
    with torch.no_grad():
        now = transitions(policy, trainer.network, batch)
        for parameter in trainer.tuning.parameters:
            parameter.zero_()
        plain = transitions(policy, trainer.network, batch)
    stir(trainer)
    known = updater.first.log_probs(steps, torch.device("cpu"))
    assert torch.allclose(known, plain.log_prob, atol=1e-6)
    assert not torch.allclose(known, now.log_prob, atol=1e-4)
    std = trainer.session.ddim.std[batch.i].repeat_interleave(4 * 8 * 8 * 2).view(-1, 2, 4, 8, 8)
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
    tally = trainer._updater(policy, data).backward(steps)
    expected = []
    for p in fused:
        x, x_next = load_file(data.round.target(p))["latents"][2:4]
        _, z = policy.noise([data.pairs[p].base])
        std = policy.ddim.std[2]
        with torch.no_grad():
            cond = policy.model.encode([data.pairs[p].prompt])
            eps, _ = policy.model.predict(x[None], policy.ddim.timesteps[2], cond, 5.0)
            unfused, _ = policy.ddim.transition(x[None], eps, 2)
        expected.append(((x_next - std * z[0, 2] - unfused[0]) / std).square().mean().sqrt())
    shift = tally.figures()["fusion_shift"]
    assert shift[2] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-3)
    assert shift[2] > 1e-3 and shift[0] is None


def test_several_updates_compare_with_the_policy_that_sampled(settings: Settings) -> None:
    """Log-probs of theta_old are taken before the first update, of later updates' steps too."""
    chosen = small(settings, 1, "several")
    chosen.train.updates_per_inner_epoch = 2
    trainer = Trainer(open_session(chosen))
    policy = trainer.sampled(0)
    data = trainer.data(0)
    before = transitions(policy, trainer.network, data.read([Step(3, 2)])).log_prob.detach()
    seen = []
    keep = trainer._save_within

    def look(number, updater, rows) -> None:
        seen.append(updater.old)
        keep(number, updater, rows)

    trainer._save_within = look  # type: ignore[method-assign]
    trainer.train_round(0, policy)
    assert len(seen) == 3  # of four updates
    assert all(torch.allclose(old.log_prob[Step(3, 2)], before[0], atol=1e-6) for old in seen)
    rows = [json.loads(x) for x in (data.round.folder.parent / "metrics.jsonl").open()]
    ratios = [row["ratio"] for row in rows if row["kind"] == "update"]
    assert ratios[0] == 1 and all(ratio != 1 for ratio in ratios[1:])


def test_resume_within_a_round(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any optimiser step of a round, the run ends as if it had not been."""
    for method in ("dpo", "dpok"):
        plain = small(settings, 2, f"plain_{method}")
        plain.train = dataclasses.replace(plain.train, method=method, kl_initial=0.1)
        whole = train_rounds(plain)
        broken = dataclasses.replace(plain, exp_name=f"broken_{method}")
        real, count = Trainer._update, 0

        def update(self, *args, real=real):
            nonlocal count
            count += 1
            if count in (2, 4, 6):
                raise KeyboardInterrupt
            return real(self, *args)

        monkeypatch.setattr(Trainer, "_update", update)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                train_rounds(broken)
        folder = train_rounds(broken)
        monkeypatch.setattr(Trainer, "_update", real)
        assert count == 4 + 3  # four steps, and three that were stopped: nothing was done twice
        name = "checkpoints/epoch1/pytorch_lora_weights.safetensors"
        a, b = load_file(whole / name), load_file(folder / name)
        assert all(a[k].equal(b[k]) for k in a)
        assert not (folder / "checkpoints" / "within").exists()
        rows = [(f / "metrics.jsonl").read_text().splitlines() for f in (whole, folder)]
        updates = [[r for r in map(json.loads, f) if r["kind"] == "update"] for f in rows]
        assert updates[0] == updates[1]


def test_full_fine_tuning(settings: Settings, pipeline_folder: Path) -> None:
    """All weights move; the folder loads as a stock UNet; a resumed run goes on from it."""
    chosen = small(settings, 1, "full")
    chosen.train.tune, chosen.train.learning_rate = "full", 1e-4
    chosen.train.reference = "initial"
    folder = train_rounds(chosen)
    trained = UNet2DConditionModel.from_pretrained(folder / "checkpoints/epoch0", subfolder="unet")
    start = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None).unet
    a, b = dict(trained.named_parameters()), dict(start.named_parameters())
    moved = [name for name in a if not a[name].equal(b[name])]
    assert len(moved) > 0.9 * len(a)
    chosen.train.num_epochs = 2
    trainer = Trainer(open_session(chosen))
    assert trainer.resume() == 1
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = trainer.session.model.encode(["the dog"])
    with torch.no_grad():
        ours = trainer.session.model.unet(x, 501, text).sample
        assert torch.allclose(ours, trained(x, 501, text).sample, atol=1e-6)
        with trainer.tuning.initial() as initial:
            untrained = initial(x, 501, text).sample
            assert torch.allclose(untrained, start(x, 501, text).sample, atol=1e-6)
            assert not torch.allclose(untrained, ours, atol=1e-5)


def test_full_fine_tuning_in_half_precision_is_refused(settings: Settings) -> None:
    chosen = small(settings, 1, "half")
    chosen.train.tune, chosen.mixed_precision = "full", "bf16"
    with pytest.raises(UserError, match="mixed_precision no"):
        train_rounds(chosen)


def test_inversion_trains_on_guessed_trajectories(settings: Settings) -> None:
    """Of adopted targets: they end in the target's image and share nothing with the base."""
    chosen = small(settings, 1, "inverted")
    chosen.train.pairs, chosen.pair.adoption_threshold = "inversion", -10.0
    folder = train_rounds(chosen)
    trainer = Trainer(open_session(chosen))
    data = trainer.data(0)
    assert all(data.fused) and {data.first_step(p) for p in range(4)} == {0}
    for p in range(4):
        guessed = load_file(data.round.inversion(p))["latents"]
        target = load_file(data.round.target(p))["latents"]
        assert guessed[-1].equal(target[-1]) and not guessed[1].equal(target[1])
        batch = data.read([Step(p, 1)])
        assert batch.x[0, 0].equal(guessed[1]) and batch.x_next[0, 0].equal(guessed[2])
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").open()]
    assert rows[0]["fusion_shift"] == [None] * 4


def test_lora_on_other_modules(settings: Settings) -> None:
    chosen = small(settings, 1, "targets")
    chosen.train.lora_targets = "to_v,ff.net.2"
    folder = train_rounds(chosen)
    names = load_file(folder / "checkpoints/epoch0/pytorch_lora_weights.safetensors")
    assert {".".join(n.split(".")[-4:-2]) for n in names} >= {"net.2"}
    assert all(".to_v." in n or ".net.2." in n for n in names)
    chosen = small(settings, 1, "nonsense")
    chosen.train.lora_targets = "to_q,to_x"
    with pytest.raises(UserError, match="'to_x': the UNet has no such layer"):
        train_rounds(chosen)


def test_resume_from_another_experiment(settings: Settings) -> None:
    """Its policy samples the first round; an older checkpoint of one's own is refused."""
    first = train_rounds(small(settings, 2, "first"))
    chosen = small(settings, 1, "second")
    chosen.resume_from = str(first / "checkpoints" / "epoch1")
    trainer = Trainer(open_session(chosen))
    assert trainer.resume() == 0
    lora = load_file(first / "checkpoints/epoch1/pytorch_lora_weights.safetensors")
    ours = dict(zip(trainer.tuning.names, trainer.tuning.parameters, strict=True))
    assert len(ours) == len(lora)
    a, b = (sum(float(v.detach().abs().sum()) for v in x.values()) for x in (ours, lora))
    assert a == pytest.approx(b, rel=1e-5)
    own = small(settings, 3, "first")
    own.resume_from = str(first / "checkpoints" / "epoch0")
    with pytest.raises(UserError, match="epoch1 is later"):
        train_rounds(own)


def test_comparisons_use_the_same_noise(settings: Settings) -> None:
    """Images before training are the base model's; those after differ only through training."""
    chosen = small(settings, 2, "compared")
    chosen.train.compare_images, chosen.train.compare_every = 1, 5
    folder = train_rounds(chosen)
    experiment = Trainer(open_session(chosen)).session.experiment
    assert sorted(experiment.comparisons()) == [0, 2]
    before, after = (experiment.comparison(k) for k in (0, 2))
    assert len(before.scores("images")) == len(after.scores("images")) == 2
    a, b = before.manifest()["made_with"], after.manifest()["made_with"]
    assert {k for k in a if a[k] != b[k]} == {"weights"}
    assert before.image("images", 0).read_bytes() != after.image("images", 0).read_bytes()
    assert not (folder / "compare" / "epoch0" / "trajectories").exists()


def test_metrics_of_a_round(settings: Settings) -> None:
    folder = train_rounds(small(settings, 1, "metrics"))
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").open()]
    update, summary = rows[0], rows[-1]
    assert [row["kind"] for row in rows] == ["update", "update", "round"]
    assert len(update["clip_fraction"]) == len(update["gradient_share"]) == 4
    assert sum(update["gradient_share"]) == pytest.approx(1, abs=1e-5)
    scores = json.loads((folder / "epoch0/eval/images.json").read_text())["scores"]
    mine = torch.tensor([scores[str(i)] for i in range(4)], dtype=torch.float64)
    mean, std = summary["reward_by_prompt"]["a cat the sandwich"]
    assert mean == pytest.approx(float(mine.mean())) and std == pytest.approx(
        float(mine.std(unbiased=False))
    )
    assert (
        summary["adopted"]
        == sum(
            r["adopted"] for r in json.loads((folder / "epoch0/adoption.json").read_text())["pairs"]
        )
        / 4
    )
    masks = [load_file(folder / f"epoch0/targets/{p:05d}.safetensors")["masks"] for p in range(4)]
    expected = torch.stack(masks)[:, 1:].float().mean()
    assert summary["mask_coverage"] == pytest.approx(float(expected))
    assert {"sampling", "fusing", "scoring", "training", "comparing"} <= set(summary["seconds"])
    card = (folder / "checkpoints/epoch0/README.md").read_text()
    assert f"| 0 | {summary['reward_mean']:.4f} |" in card


def test_eight_bits_without_a_gpu_are_refused(settings: Settings) -> None:
    chosen = small(settings, 1, "bits")
    chosen.train.adam_8bit = True
    with pytest.raises(UserError, match="adam_8bit"):
        train_rounds(chosen)
