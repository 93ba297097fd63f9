"""The benchmark's own claims: its counts, its baselines, its arithmetic."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bare, baselines, bench, choices, gpu, models, stages
from benchmarks.counter import counting
from benchmarks.table3 import RoundCount, RoundSize
from benchmarks.timing import Race, race
from benchmarks.workbench import make_round, open_workbench, settings_of, size_of, train_round
from dfusion.method.denoiser import Cond
from dfusion.method.fusion import fuse
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Policy, sample
from dfusion.rounds.session import Session
from dfusion.settings.schema import Settings
from dfusion.training.trainer import Trainer


def test_counter_counts_samples_and_backward_passes(policy: Policy, prompts: list[Prompt]) -> None:
    """3 samples of 6 steps; 2 samples there and back; one call without guidance."""
    model = policy.model
    x, t = torch.zeros(2, 4, 8, 8), torch.tensor(501)
    with counting(model.network) as count:
        sample(policy, [0, 1, 2], [prompts[0]] * 3, frozenset({3}))
        assert (count.plain, count.trained, count.backward) == (18, 0, 0)
        cond = Cond(model.encode(["the dog"] * 2).tokens.requires_grad_())
        eps, _ = model.predict(x, t, cond, 5.0)
        assert (count.plain, count.trained, count.backward) == (18, 2, 0)
        eps.sum().backward()
        assert (count.plain, count.trained, count.backward) == (18, 2, 2)
        with torch.no_grad():
            model.predict(x, t, cond, None)
        assert count.total == 23
    with torch.no_grad():
        model.predict(x, t, cond, None)
    assert count.total == 23


def test_scaling_by_hand() -> None:
    """Per image-step, per fused pair-step and per inner epoch; checks are not scaled."""
    small = RoundSize(images=4, pairs=2, steps=5, fused_steps=3, inner_epochs=1)
    count = RoundCount(sampling=20, fusion=12, training=24, checks=2)
    assert count.scaled(small, small) == count
    twice = RoundSize(images=8, pairs=4, steps=5, fused_steps=3, inner_epochs=2)
    assert count.scaled(small, twice) == RoundCount(40, 24, 96, 2)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """4 pairs, 2 in a UNet call, T = 4 of which 2 are fused; its own model, as it gets LoRA."""
    model = models.make("tiny", torch.device("cpu"), torch.float32)
    return open_workbench(model, settings_of(model, 4, 2, 4, tmp_path))


def test_a_round_costs_what_table_3_says(session: Session) -> None:
    """By hand: 8 x 4; 4 x 2 x 2; 4 x 2 steps x 2 sides x there and back x 2 epochs; 4 x 2 x 3."""
    made = make_round(session)
    trained = train_round(Trainer(session))
    assert (made.sampling, made.fusion) == (32, 16)
    assert (trained.training, trained.checks) == (64, 24)
    assert size_of(session) == RoundSize(8, 4, 4, 2, 2)
    whole = RoundCount(made.sampling, made.fusion, trained.training, trained.checks)
    scaled = whole.scaled(size_of(session))
    assert (scaled.sampling, scaled.fusion, scaled.training) == (12_800, 11_520, 46_080)
    assert scaled.total <= 71_000


def test_released_fusion_gives_our_targets(session: Session) -> None:
    """To float tolerance, with masks that are neither empty nor full; and counts three passes."""
    make_round(session)
    policy, sources = session.policy(0), stages._sources(session)
    with counting(session.model.network) as count:
        theirs = baselines.released_fusion(policy, session.runner.plan, sources, 2)
    assert count.total == 4 * 4 * 3
    targets = fuse(policy, session.runner.plan, sources)
    coverage = torch.stack([t.masks[2:] for t in targets]).float().mean()
    assert 0.05 < coverage < 0.95
    for ours, plain, source in zip(targets, theirs, sources, strict=True):
        moved = stages.relative_difference([source.base.latents], [plain])
        assert stages.relative_difference([ours.latents], [plain]) < min(1e-5, moved / 20)


def test_released_fusion_leaves_the_processors_as_they_were(policy: Policy) -> None:
    unet = policy.model.network
    before = unet.attn_processors
    with baselines.explicit_attention(unet, frozenset({3})):
        assert unet.attn_processors.keys() == before.keys()
        assert all(p is not before[name] for name, p in unet.attn_processors.items())
    assert all(p is before[name] for name, p in unet.attn_processors.items())


def test_explicit_attention_is_attention(policy: Policy) -> None:
    model = policy.model
    inputs = torch.randn(2, 4, 8, 8), torch.tensor(501), model.encode(["the dog"] * 2).tokens
    with torch.no_grad():
        plain = model.network(*inputs).sample
        with baselines.explicit_attention(model.network, frozenset()):
            assert torch.allclose(model.network(*inputs).sample, plain, atol=1e-5)


def test_plain_training_has_our_gradient(session: Session) -> None:
    """The plain loop walks all four steps, ours the two that differ."""
    make_round(session)
    trainer = Trainer(session)
    assert stages.gradient_difference(trainer) < 1e-4
    with counting(session.model.network) as count:
        stages._plain_training(trainer, stages.examples(session))
    assert count.plain == 4 * 4 * 2
    assert count.trained == count.backward == 4 * 4 * 2 * 2


def test_stock_unet_is_the_model(policy: Policy) -> None:
    """Bare calls are of the same network; its LoRA is its own."""
    model = policy.model
    inputs = torch.randn(2, 4, 8, 8), torch.tensor(501), model.encode(["the dog"] * 2).tokens
    stock = bare.stock_unet(model)
    with torch.no_grad():
        assert stock(*inputs).sample.equal(model.network(*inputs).sample)
    assert stock.conv_in.weight.data_ptr() == model.network.conv_in.weight.data_ptr()
    tuned = bare.with_lora(stock, Settings().train)
    bare.unet_calls(tuned, model, [4, 2], trained=True)()
    trained = [p for p in tuned.parameters() if p.grad is not None]
    assert trained and all(p.requires_grad for p in trained)
    assert not any(".lora_" in name for name, _ in model.network.named_parameters())
    assert not any(p.requires_grad for p in model.network.parameters())


def test_race_takes_turns() -> None:
    """Once untimed, then as often as asked, each time beginning with another."""
    order: list[str] = []

    def work(name: str) -> str:
        order.append(name)
        return name.upper()

    found = race({n: lambda n=n: work(n) for n in "abc"}, repeats=2)
    assert "".join(order) == "abc" + "abc" + "bca"
    assert found.first == {"a": "A", "b": "B", "c": "C"}
    assert [len(seconds) for seconds in found.seconds.values()] == [2, 2, 2]


def test_ratio_is_the_median_of_ratios() -> None:
    found = Race({"a": [2.0, 6.0, 12.0], "b": [1.0, 2.0, 3.0]}, {}, {})
    assert found.ratios("a", "b") == [2, 3, 4]
    assert found.ratio("a", "b") == 3


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["--pairs=1", "--batch-size=1", "--steps=1", "--repeats=1"]
    bench.main(["--model=tiny", *small, f"--out={tmp_path}"])
    result = json.loads((tmp_path / "tiny_cpu.json").read_text())
    assert result["stages"].keys() == set(bench.STAGES)
    assert all(row["ratio_to_bare"] > 0 for row in result["stages"].values())
    assert result["stages"]["fusion"]["difference_from_baseline"] < 1e-4
    assert sum(result["evaluations_table3"].values()) == 70_400 + 6
    assert result["options"]["model"] == "tiny"
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in bench.STAGES)


def test_the_first_command_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Here on the CPU: every choice has its figures, and none is begun after its time."""
    where = ["--model=tiny", "--device=cpu", f"--out={tmp_path}", "--no-compile", "--sizes", "1"]
    small = "--round=--pairs=1 --batch-size=1 --steps=1 --repeats=1 --stages sampling"
    gpu.main([*where, small])
    rows = json.loads((tmp_path / "tiny_cpu_choices.json").read_text())["choices"]
    names = ["bf16", "fp16", "fp32 (TF32)", "bf16, 1 in a call", "bf16, channels_last"]
    assert [row["choice"] for row in rows] == names
    assert all(row["sampling ms"] > 0 and row["training ms"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "sampling" in printed and "(1.00 times)" in printed
    model = models.make("tiny", torch.device("cpu"), torch.float32)
    assert list(choices.measure(model, choices.choices([1]), until=0.0)) == []


def test_pairs_must_fill_their_batches() -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--pairs", "3", "--batch-size", "2"])
