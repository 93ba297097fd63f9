"""x̂_0 along stored trajectories, told without the model, against closed forms and the network."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfusion.method.ddim import ddim
from dfusion.method.flow import flow
from dfusion.method.noise import noises
from dfusion.method.sampler import Sampler
from dfusion.method.sampling import Policy
from dfusion.rounds.session import open_session, sample_rounds
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, read_tensors, write_json
from dfusion.view.trajectory import of_target, predictions, schedule
from tests.conftest import small
from tests.tiny import make_sd3

SHAPE = (4, 6, 8)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
ALPHAS = (1 - BETAS).cumprod(0)
LINEAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
TO_ZERO = torch.cat([ALPHAS[:-1], torch.zeros(1, dtype=torch.float64)])
SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])


def diffusion(alphas: Tensor, prediction: str) -> tuple[Sampler, Tensor, Tensor]:
    """Five steps, with the levels of signal and noise of each."""
    steps = torch.tensor([999, 799, 599, 399, 199])
    a = alphas[steps].float()
    return ddim(alphas, steps, 1.0, 0.8, prediction), a.sqrt(), (1 - a).sqrt()


def output(kind: str, x: Tensor, x0: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """What a network says that means x0 at x."""
    n = (x - signal * x0) / noise
    said = {"epsilon": n, "v_prediction": signal * n - noise * x0, "sample": x0, "flow": n - x0}
    return said[kind]


CASES = {
    "epsilon": (*diffusion(ALPHAS, "epsilon"), "epsilon"),
    "another schedule": (*diffusion(LINEAR, "epsilon"), "epsilon"),
    "v": (*diffusion(ALPHAS, "v_prediction"), "v_prediction"),
    "v from no signal": (*diffusion(TO_ZERO, "v_prediction"), "v_prediction"),
    "sample": (*diffusion(ALPHAS, "sample"), "sample"),
    "flow": (flow(SIGMAS, 1.0), 1 - SIGMAS, SIGMAS, "flow"),
    "flow, some steps still": (flow(SIGMAS, 1.0).quiet({0, 2}), 1 - SIGMAS, SIGMAS, "flow"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_was_predicted_is_found_again(
    tmp_path: Path, case: tuple[Sampler, Tensor, Tensor, str]
) -> None:
    sampler, signal, noise, kind = case
    total = len(sampler)
    predicted = torch.randn(total, *SHAPE, generator=torch.Generator().manual_seed(1))
    x, z = noises(7, 2, 3, total, SHAPE)
    states = [x]
    for i in range(total):
        said = output(kind, x, predicted[i], signal[i], noise[i])
        mean, std = sampler.transition(x[None], said[None], i)
        x = mean[0] + std * z[i]
        states.append(x)
    sigmas = [round(s, 6) for s in sampler.std.tolist()]
    made_with = {"seed": 7, "round": 2, "timesteps": sampler.timesteps.tolist(), "sigmas": sigmas}
    round_ = Round(tmp_path)
    round_.write_manifest(2, (), 1, made_with, sampler.mean_factors())
    found = predictions(round_, torch.stack(states), 3)
    assert found is not None and torch.allclose(found, predicted, atol=1e-3)
    assert predictions(round_, torch.stack(states), 4) is None  # another sample's noise


def test_rounds_from_before_the_mean_was_noted(view_data: Path, tmp_path: Path) -> None:
    """Stable Diffusion's schedule is recognised."""
    theirs, round_ = Experiment(view_data / "exp").round(0), Round(tmp_path)
    latents = read_tensors(theirs.trajectory(5))["latents"]
    expected = predictions(theirs, latents, 5)
    manifest = read_json(theirs.folder / "manifest.json")
    del manifest["mean"]
    write_json(tmp_path / "manifest.json", manifest)
    found = predictions(round_, latents, 5)
    assert found is not None and expected is not None
    assert torch.allclose(found, expected, atol=1e-3)
    made = manifest["made_with"]
    assert schedule(made["timesteps"], [2 * s for s in made["sigmas"]]) == []


def said_by_network(policy: Policy, states: Tensor, text: str) -> Tensor:
    """x̂_0 (T, C, h, w) of the network at these states, by closed form."""
    cond = policy.model.encode([text])
    found = []
    for i, x in enumerate(states[:-1]):
        with torch.no_grad():
            out, _ = policy.predict(x[None], i, cond)
        t = float(policy.sampler.timesteps[i])
        if policy.model.layers.blocks[0].startswith("transformer"):
            found.append(x - t / 1000 * out[0])
        else:
            a = float(ALPHAS[int(t)])
            found.append((x - math.sqrt(1 - a) * out[0]) / math.sqrt(a))
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["flow", "branch", "renoise"])
def test_it_is_what_the_network_says(settings: Settings, tmp_path: Path, kind: str) -> None:
    """Also of targets that have other noise than their base from a step on."""
    chosen = small(settings, 1, "run")
    if kind == "flow":
        make_sd3(tmp_path).save_pretrained(tmp_path / "sd3")
        chosen.pretrained = dataclasses.replace(chosen.pretrained, model=str(tmp_path / "sd3"))
        chosen.mask.layers, chosen.fusion.layers, chosen.sample.noise = "0", "all", "fused"
    else:
        chosen.fusion.kind = kind
    round_ = Experiment(sample_rounds(chosen)).round(0)
    policy = open_session(chosen).policy(0)
    pair = (round_.pairs() or ())[1]
    base = read_tensors(round_.trajectory(pair.base))["latents"]
    by_network = said_by_network(policy, base, pair.prompt)
    shown = predictions(round_, base, pair.base)
    assert shown is not None and torch.allclose(shown, by_network, atol=2e-3)
    if kind != "flow":
        target = read_tensors(round_.target(1))["latents"]
        shown = of_target(round_, target, pair.base)
        by_network[1:] = said_by_network(policy, target, pair.prompt)[1:]
        assert shown is not None and torch.allclose(shown, by_network, atol=2e-3)
