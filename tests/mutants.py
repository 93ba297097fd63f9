# ruff: noqa: E501
"""Planted bugs: each must turn some test red.

    python -m tests.mutants            all of them, in a copy of the repository
    python -m tests.mutants ddim       those whose file name contains "ddim"

A suite that stays green with a sign flipped in the sampler proves nothing; this shows that ours
does not. Add a line here with every test that guards a formula.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("dfusion", "diffusers_patched", "config", "tests", "testbed", "experiments",
          "pyproject.toml")  # fmt: skip

# (file, what stands there, the bug, tests that must notice)
MUTANTS = [
    ("dfusion/method/ddim.py", "eta**2 * (1 - a_prev)", "eta * (1 - a_prev)", "method/test_ddim"),
    ("dfusion/method/ddim.py", "direction - (a_prev / a_t", "direction + (a_prev / a_t", "method/test_ddim"),
    ("dfusion/method/ddim.py", "previous >= 0, alphas", "previous > 1, alphas", "method/test_ddim"),
    ("dfusion/method/sampler.py", "- std.log()", "+ std.log()", "method/test_ddim"),
    ("dfusion/method/sampler.py", "return 0.5 * ((mean_p", "return ((mean_p", "method/test_ddim"),
    ("dfusion/method/masks.py", "% 2 == 1", ">= 1", "method/test_masks"),
    ("dfusion/method/masks.py", "item >= (otsu", "item > (otsu", "method/test_masks"),
    ("dfusion/method/masks.py", ".mean(-3) for tokens", ".sum(-3) for tokens", "method/test_masks"),
    ("dfusion/method/masks.py", "below * (cells - below) *", "below *", "method/test_masks"),
    ("dfusion/method/pairing/contract.py", "key=lambda n: -self.scores[n]", "key=lambda n: self.scores[n]", "method/test_pairing"),
    ("dfusion/method/pairing/halves.py", "zip(group.ranked[:half], bases", "zip(group.ranked[half:], bases", "method/test_pairing"),
    ("dfusion/method/pairing/adoption.py",
     "sign * (target - base) >= threshold", "sign * target >= threshold", "method/test_pairing"),
    ("dfusion/method/pairing/adoption.py", "-1 if reference < base", "1 if reference < base", "method/test_pairing"),
    ("dfusion/training/pairs.py", "(base, other) if reference < base", "(other, base) if reference < base", "training/test_both_ways"),
    ("dfusion/training/pairs.py", "append(0 if reference < base", "append(1 if reference < base", "training/test_both_ways"),
    ("dfusion/training/gradients.py", "[self.data.base_side(step.pair) == 1", "[self.data.base_side(step.pair) == 0", "training/test_both_ways"),
    ("dfusion/training/gradients.py", "log_prob[n, side]", "log_prob[n, 1]", "training/test_both_ways"),
    ("experiments/runs/table.py", "computation(other) / computation(run)", "computation(run) / computation(other)", "experiments/test_table"),
    ("experiments/runs/table.py", "found.append(ours - its)", "found.append(ours)", "experiments/test_table"),
    ("experiments/runs/leads.py", "if len(v) == len(self.templates)", "", "experiments/test_table"),
    ("experiments/runs/leads.py", "self.against_rounds or self.rounds", "self.rounds", "experiments/test_table"),
    ("experiments/runs/table.py", 'if k != "comparing"', "", "experiments/test_table"),
    ("dfusion/api/trainer.py", "return 0 if self.preferences[p].base_preferred", "return 1 if self.preferences[p].base_preferred", "test_api"),
    ("dfusion/method/prompts.py", "starts = [1 + sum", "starts = [sum", "method/test_prompts"),
    ("dfusion/method/prompts.py", ">= max_length - 1", ">= max_length + 9", "method/test_prompts"),
    ("dfusion/method/noise.py", "(seed, round_, index, *more))", "(seed + index, round_, *more))", "method/test_sampling"),
    ("dfusion/models/diffusion_model.py", "guidance * (text - uncond)", "guidance * (uncond - text)", "method/test_sampling"),
    ("dfusion/models/diffusion_model.py", "/ 2 + 0.5).clamp", "/ 2 + 0.4).clamp", "method/test_sampling"),
    ("dfusion/method/sampling.py", "x = policy.rounded(mean", "x = (mean", "method/test_sampling"),
    ("dfusion/method/sampling.py", "first_row=len(prompts) if", "first_row=0 if", "method/test_released"),
    ("dfusion/method/noise.py", "OTHER, FORWARD = 1, 2", "OTHER, FORWARD = 0, 2", "method/test_controls"),
    ("dfusion/method/controls.py", "pair.base.latents[first] for", "pair.base.latents[first - 1] for", "method/test_controls"),
    ("dfusion/method/controls.py", "+ policy.sampler.noise[level]", "+ policy.sampler.signal[level]", "method/test_controls"),
    ("dfusion/training/learner.py", "else data.begins(p)", "else 0", "rounds/test_target_kinds"),
    ("dfusion/rounds/runner.py", '"target kind": self.plan.kind', '"target kind": "attention"', "rounds/test_target_kinds"),
    ("dfusion/method/fusion.py", "references[:, i], x]", "references[:, i + 1], x]", "method/test_released"),
    ("dfusion/method/fusion.py", "half + 2 * pairs", "half", "method/test_released"),
    ("dfusion/method/fusion.py", "total - i in plan.steps for i in range(total)]\n    first",
     "total - i - 1 in plan.steps for i in range(total)]\n    first", "method/test_sampling"),
    ("dfusion/method/fusion.py", "policy.noise([pair.base_index", "policy.noise([1 + pair.base_index",
     "method/test_sampling"),
    ("dfusion/storage/round_files.py", "for i in (pair.base, pair.reference))",
     "for i in (pair.reference, pair.base))", "rounds/test_runner"),
    ("dfusion/rounds/scoring.py", "set(there) - round_.scores(kind, name).keys()", "set(there)",
     "rounds/test_scoring"),
    ("dfusion/rounds/scoring.py", "if size == 1 else there", "if size else there", "rounds/test_runner"),
    ("dfusion/rounds/scoring.py", "with writing or nullcontext():", "with nullcontext():", "rounds/test_runner"),
    ("dfusion/rounds/scoring.py", ".index(pair.base)", ".index(pair.reference)", "rounds/test_kinds_of_reward"),
    ("dfusion/rounds/scoring.py", "and all(path.exists() for path in call.pictures)", "", "rounds/test_kinds_of_reward"),
    ("dfusion/rounds/scoring.py", "if anew else {**new, **old}", "if not anew else {**new, **old}", "rounds/test_kinds_of_reward"),
    ("dfusion/rewards/image_reward.py", "[:, 0] - MEAN) / STD", "[:, 0] - MEAN) * STD", "rounds/test_published_rewards"),
    ("dfusion/rewards/image_reward.py", "is_decoder=False,  #", "is_decoder=True,  #", "rounds/test_published_rewards"),
    ("dfusion/rewards/vlm.py", 'found["yes"] / total', 'found["yes"]', "rounds/test_vlm"),
    ("dfusion/rewards/vlm.py", "self._pause * 2**attempt", "self._pause", "rounds/test_vlm"),
    ("dfusion/rewards/registry.py", '(("eval.reward", settings.reward), ("eval.watch", settings.watch))', '(("eval.reward", settings.reward),)', "rounds/test_kinds_of_reward"),
    ("dfusion/rewards/weighted_sum.py", "sum(w * v for", "sum(v for", "rounds/test_kinds_of_reward"),
    ("dfusion/api/samples.py", "base = id(s.base_sample)", "base = id(s.reference_sample)", "test_api"),
    ("diffusers_patched/attention_processor.py", "x[fusion.source], x)", "x, x[fusion.source])",
     "method/test_overlay"),
    ("diffusers_patched/attention_processor.py", 'v = _take(v, fusion) if "self_v"',
     'v = _take(k, fusion) if "self_v"', "method/test_overlay"),
    ("diffusers_patched/attention_processor.py", "* attn.scale).softmax", ").softmax", "method/test_overlay"),
    ("diffusers_patched/attention_processor.py", ".softmax(-1).mean(1)", ".softmax(-1)[:, 0]",
     "method/test_overlay"),
    ("diffusers_patched/attention_processor.py", "inside == inside.transpose(1, 2)",
     "inside | ~inside.transpose(1, 2)", "method/test_overlay"),
    ("diffusers_patched/control.py", "(self.source != own)[:, None]", "(own >= 0)[:, None]",
     "method/test_overlay"),
    ("diffusers_patched/control.py", ".float(), size)", ".float().flip(2), size)", "method/test_overlay"),
    ("diffusers_patched/layers.py", "levels - 1 - i) for i", "i) for i", "method/test_overlay"),
    ("dfusion/method/losses/dpo.py", "-F.logsigmoid(self.beta *", "-F.logsigmoid(-self.beta *", "method/test_losses"),
    ("dfusion/method/objective.py", "Value(value.loss * steps.weight", "Value(value.loss", "method/test_objective"),
    ("dfusion/method/step_weights.py", "(sampler.std / sampler.output_scale.abs())", "sampler.std", "method/test_objective"),
    ("dfusion/method/losses/ddpo.py", "torch.maximum(free, held)", "torch.minimum(free, held)", "method/test_losses"),
    ("dfusion/method/losses/dpok.py", "policy.loss + self.dpok_beta", "policy.loss - self.dpok_beta", "method/test_losses"),
    ("dfusion/method/losses/dpo.py", "(kept.log() if", "(ratio.log() if", "method/test_losses"),
    ("dfusion/method/losses/diffusion_dpo.py", "(self.diffusion_beta / 2 *", "(self.diffusion_beta *", "method/test_losses"),
    ("dfusion/method/losses/diffusion_kto.py", "self.diffusion_beta * (", "self.diffusion_beta / 2 * (", "method/test_losses"),
    ("dfusion/method/losses/diffusion_kto.py", ".clamp(min=0)", "", "method/test_losses"),
    ("dfusion/method/losses/diffusion_kto.py", "sigmoid(-disliked)", "sigmoid(disliked)", "method/test_losses"),
    ("dfusion/method/losses/fdfo.py", "noised.uphill * self.pull", "self.pull", "method/test_losses"),
    ("dfusion/method/losses/fdfo.py", "return half / (half.square().mean((2, 3, 4), keepdim=True) + FLOOR)", "return half", "method/test_losses"),
    ("dfusion/method/losses/fdfo.py", " + FLOOR", " + 1e-12", "method/test_losses"),
    ("dfusion/method/losses/fdfo.py", ".clamp(-self.adv_clip_max, self.adv_clip_max)", "", "method/test_losses"),
    ("dfusion/method/step_weights.py", "weighed * (sampler.std > 0)", "weighed", "method/test_objective"),
    ("dfusion/method/fusion.py", "*policy.origin(pair.base_index)", "policy.seed, policy.round, pair.base_index", "test_api"),
    ("dfusion/training/gradients.py", "self._whole(steps) if steps and", "self._whole(steps) if", "training/test_forward"),
    ("dfusion/training/gradients.py", "else whole.slopes[:, 0]", "else whole.slopes[:, 1]", "training/test_pair_options"),
    ("dfusion/training/gradients.py", "grad(value.loss.sum(), log_prob)[0]", "grad(value.loss.sum(), log_prob)[0].flip(1)", "training/test_pair_options"),
    ("diffusers_patched/control.py", "-(-height // 2), -(-width // 2)", "height // 2, width // 2", "method/test_overlay"),
    ("dfusion/method/losses/fdfo.py", "gain - weight.abs()", "gain + weight.abs()", "method/test_losses"),
    ("dfusion/method/advantages.py", "np.std(scores)", "np.std(scores, ddof=1)", "method/test_losses"),
    ("dfusion/settings/steps.py", "range(min(ends), max(ends) + 1)", "range(*ends)", "method/test_sampling"),
    ("dfusion/training/pairs.py", "return self._fused_from if", "return self._fused_from + 1 if",
     "training/test_gradients"),
    ("dfusion/training/pairs.py", "else kept[rows]", "else kept[rows].flip(0)", "training/test_gradients"),
    ("dfusion/training/pairs.py", "return fused and step.i >= self._fused_from",
     "return fused and step.i > self._fused_from", "training/test_gradients"),
    ("dfusion/method/sampler.py", "self.output_scale_still[i] * output.float()",
     "self.output_scale[i] * output.float()", "method/test_inversion"),
    ("dfusion/method/ddim.py", "+ direction * (1 - a_t).sqrt()", "- direction * (1 - a_t).sqrt()", "method/test_ddim"),
    ("dfusion/method/ddim.py", "direction * (a_t / (1 - a_t)).sqrt()", "direction * a_t.sqrt()", "method/test_ddim"),
    ("dfusion/method/flow.py", "(1 - now) / (now * (1 - then))", "/ now", "method/test_flow"),
    ("dfusion/method/flow.py", "then.square() - std.square()", "then.square()", "method/test_flow"),
    ("diffusers_patched/joint_attention.py", "torch.where(rows, k[fusion.source], k)", "torch.where(rows, k, k[fusion.source])", "models/test_families"),
    ("diffusers_patched/joint_attention.py", "image_out, text_out = out[:, :size], out[:, size:]", "image_out, text_out = out[:, -size:], out[:, :-size]", "models/test_families"),
    ("diffusers_patched/joint_attention.py", "_item_maps(image[0][rows], image[1][rows], text[1][rows], control)", "_item_maps(image[0][rows], image[1][rows], text[1], control)", "models/test_joint_attention"),
    ("diffusers_patched/joint_attention.py", "logits.masked_fill(~control.keys[:, None], -torch.inf)", "logits", "models/test_joint_attention"),
    ("diffusers_patched/joint_attention.py", "[..., others.shape[-1] :]", "[..., : -others.shape[-1]]", "models/test_joint_attention"),
    ("diffusers_patched/joint_attention.py", "_, k, v = _joined(image, text)", "_, k, v = both", "models/test_joint_attention"),
    ("dfusion/models/sd3.py", "self.clip_tokens - 1 + column", "self.clip_tokens + column", "models/test_families"),
    ("dfusion/models/sd3.py", "min(T5_TOKENS, tokenizer.model_max_length)", "T5_TOKENS", "testbed/test_training"),
    ("testbed/models/exchange_joint.py", "key.index_select(0, source), value.index_select(0, source)", "key.index_select(0, source), value", "testbed/test_training"),
    ("testbed/models/exchange_joint.py", "logits[:, :, :size, size:]", "logits[:, :, -size:, size:]", "testbed/test_training"),
    ("testbed/training/noise.py", "return (x - aim) / (t / 1000)", "return (x + aim) / (t / 1000)", "testbed/test_training"),
    ("dfusion/models/sdxl.py", "torch.zeros_like(pooled)", "pooled", "models/test_families"),
    ("dfusion/models/sdxl.py", "[height, width, 0, 0, height, width]", "[width, height, 0, 0, 0, 0]", "models/test_families"),
    ("dfusion/models/diffusion_model.py", "/ config.scaling_factor + shift", "/ config.scaling_factor", "models/test_families"),
    ("dfusion/method/sampler.py", "std=self.std.masked_fill(still, 0)", "std=self.std", "models/test_families"),
    ("dfusion/method/flow.py", "(scale * now)", "(scale * then)", "method/test_flow"),
    ("dfusion/method/inversion.py", "guidance=None", "guidance=policy.guidance", "method/test_inversion"),
    ("dfusion/method/objective.py", "self.kl_initial * kl_initial.sum(-1)",
     "self.kl_initial * kl_initial.mean(-1)", "method/test_objective"),
    ("dfusion/method/objective.py", "return self.loss.pairwise and not self.forward and self.kl_initial == 0",
     "return self.loss.pairwise and not self.forward", "method/test_objective"),
    ("dfusion/training/gradients.py", "(minimised.sum() * self.loss_scale)", "(minimised.mean() * self.loss_scale)", "training/test_gradients"),
    ("dfusion/training/gradients.py", "slopes * torch.stack", "slopes.sign() * torch.stack", "training/test_gradients"),
    ("dfusion/training/forward.py", "step.pair, step.i, FORWARD)", "step.pair, 1, FORWARD)", "training/test_forward"),
    ("dfusion/training/forward.py", "if old is None else old", "", "training/test_forward"),
    ("dfusion/training/forward.py", "timestep, cond, None, network", "timestep, cond, policy.guidance, network", "training/test_forward"),
    ("dfusion/training/gradients.py", "cells = None if batch.cells is None", "cells = None if batch is not None", "training/test_pair_options"),
    ("dfusion/method/masks.py", "inside + outside * (1 - inside)", "inside * outside + (1 - inside)", "training/test_pair_options"),
    ("dfusion/training/pairs.py", 'if not self.fused[p] or self._inverted or', "if not self.fused[p] or", "training/test_pair_options"),
    ("dfusion/method/safeguard.py", "winner.square().sum(1)", "loser.square().sum(1)", "training/test_pair_options"),
    ("dfusion/method/safeguard.py", "limit * slopes[:, 0].abs()", "limit * slopes[:, 1].abs()", "training/test_pair_options"),
    ("dfusion/method/safeguard.py", "fixed + scale * (loser - fixed)", "scale * loser", "training/test_pair_options"),
    ("dfusion/training/gradients.py", "/ std - z", "/ std", "training/test_gradients"),
    ("dfusion/training/gradients.py", "with self.initial() as network:", "if network := self.network:",
     "training/test_gradients"),
    ("dfusion/training/optimiser_step.py", "factor = 1 / (pairs", "factor = self.processes / (pairs", "training/test_processes"),
    ("dfusion/training/optimiser_step.py", "update.pairs * update.fraction", "update.pairs", "training/test_optimiser_step"),
    ("dfusion/training/order.py", "fraction + rng.random())", "fraction)", "training/test_order"),
    ("dfusion/training/order.py", "default_rng(key)", "default_rng((*key, rank))", "training/test_processes"),
    ("dfusion/training/order.py", "np.sort(part)[rank::size]", "np.sort(part)[0::size]", "training/test_processes"),
    ("dfusion/training/trainer.py", "self.checkpoints.load_known(", "len(", "training/test_checkpoints"),
    ("dfusion/training/gradients.py", "        self.zero()\n", "", "training/test_checkpoints"),
    ("dfusion/training/optimiser.py", "rows.setdefault(places[name], {})", "rows.setdefault(0, {})",
     "training/test_checkpoints"),
    ("dfusion/training/gradients.py", "-0.5 * (z[0, step.i]", "-0.4 * (z[0, step.i]", "training/test_gradients"),
    ("dfusion/training/gradients.py", "cond = model.encode([text for text in batch.texts for _ in range(2)])",
     "cond = model.encode(batch.texts * 2)", "training/test_gradients"),
    ("dfusion/models/lora.py", ", LORA_ADAPTER_METADATA_KEY: json.dumps(plain, sort_keys=True)", "",
     "models/test_stable_diffusion"),
    ("dfusion/models/diffusion_model.py", 'k.replace(".base_layer.", ".")', "k", "models/test_stable_diffusion"),
    ("dfusion/storage/files.py", "os.replace(aside, path)", "aside.rename(path)", "storage/test_files"),
    ("dfusion/storage/experiment.py", "before.get(k) != v]", "before.get(k) == 0]", "rounds/test_runner"),
    ("dfusion/storage/experiment.py", '"last": end - 1', '"last": end', "storage/test_keep"),
    ("dfusion/storage/experiment.py", "if number in dropped or not round_.states_kept:", "if number in dropped:",
     "storage/test_keep"),
    ("dfusion/rounds/sharing.py", "if a.get(key) != value", "if key == value", "rounds/test_sharing"),
    ("dfusion/rounds/runner.py", '"fusion text": fusion.text', '"fusion text": "fused"', "rounds/test_target_kinds"),
    ("dfusion/method/sampling.py", '[*size] if size else None', 'None', "rounds/test_sharing"),
    ("dfusion/commands/verify.py", 'size not in (None, [height, width])', 'False', "commands/test_verify"),
    ("dfusion/training/estimate.py", "(n or objective.forward)", "(n or True)", "training/test_estimate"),
    ("dfusion/training/estimate.py", "(sampled + shown) * times.watching", "(sampled + fused + shown) * times.watching", "training/test_estimate"),
    ("diffusers_patched/sd3_transformer_2d.py", "block.forward = torch.compile(block.forward, *args, **kwargs)", "block.compile(*args, **kwargs)", "models/test_compile"),
    ("dfusion/method/sampler.py", "self.aim_x0 - of_noise * self.signal", "self.aim_x0 - of_noise", "view/test_trajectory"),
    ("dfusion/method/sampler.py", "self.x_scale + self.output_scale * of_noise", "self.x_scale", "view/test_trajectory"),
    ("dfusion/view/trajectory.py", "[before[:first], own[first:]]", "[own[:first], own[first:]]", "view/test_trajectory"),
    ("dfusion/view/trajectory.py", "other_noise=True", "other_noise=False", "view/test_trajectory"),
    ("dfusion/method/sampling.py", 'if self.maps == "prompt" else None', 'if self.maps == "all" else None', "models/test_families"),
    ("dfusion/rounds/session.py", "maps=settings.mask.maps,", "", "rounds/test_target_kinds"),
    ("dfusion/rounds/sharing.py", 'found["prompts"] == manifest["prompts"]', "True", "rounds/test_sharing"),
    ("dfusion/rounds/sharing.py", "theirs.pairs_made_with() != fused_with", "not fused_with", "rounds/test_sharing"),
    ("dfusion/rounds/sharing.py", 'to.folder.with_name(f".{to.folder.name}.tmp")', "to.folder", "rounds/test_sharing"),
    ("dfusion/rounds/sharing.py", "        shutil.rmtree(aside)\n", "        pass\n", "rounds/test_sharing"),
    ("dfusion/rounds/session.py", "    session.runner.check_samples_from(first, session.policy(first))\n", "",
     "rounds/test_sharing"),
    ("dfusion/training/trainer.py", "            self._drop_states(done)\n", "", "storage/test_keep"),
    ("dfusion/training/trainer.py", "            self._drop_states(number)\n", "", "storage/test_keep"),
    ("dfusion/rounds/scorer.py", "    sweep(folder)\n", "", "storage/test_faults"),
    ("dfusion/training/checkpoints.py", '["round"] <= number', '["round"] < number', "training/test_checkpoints"),
    ("dfusion/view/strengths.py", "share - p, p - share", "p - share, share - p", "view/test_two"),
    ("dfusion/view/strengths.py", "over_reference - 0.5", "over_reference", "view/test_two"),
    ("dfusion/view/duels.py", "float(better == a)", "float(better == b)", "view/test_two"),
    ("dfusion/view/duels.py", "digest(data, round_, kind, index) == seen", "True", "view/test_two"),
    ("dfusion/settings/presets.py", 'settings.mask.merge = "or"', 'settings.mask.merge = "xor"', "method/test_released"),
    ("dfusion/api/pipeline.py", "bases = [base for base, _ in pairs]", "bases = [base for _, base in pairs]", "test_api"),
    ("dfusion/api/trainer.py", "latents = preference.base.latents if is_base", "latents = preference.base.latents if not is_base", "test_api"),
    ("dfusion/api/samples.py", "(samples[p.base], samples[p.reference])", "(samples[p.reference], samples[p.base])", "test_api"),
    ("dfusion/models/diffusion_model.py", "self.pipe = copy.copy(pipe)", "self.pipe = pipe", "test_api"),
    ("dfusion/models/diffusion_model.py", "self.encode([negative] * rows)", 'self.encode([""] * rows)', "test_api"),
    ("dfusion/training/learner.py", "updater.remember([step", "len([step", "test_api"),
]  # fmt: skip


def tested(tests: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a test file, but for the test that this list's places are there: it sees any bug."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/{tests}.py"]
    command += ["--deselect", "tests/storage/test_faults.py::test_every_planted_bug_has_its_place"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def survives(file: str, old: str, new: str, tests: str, folder: Path) -> bool:
    """Whether the named tests stay green under the bug."""
    path = folder / file
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{file}: '{old}' stands there {text.count(old)} times; mend this list")
    path.write_text(text.replace(old, new))
    try:
        done = tested(tests, folder)
    except subprocess.TimeoutExpired:  # a round that waits for ever is noticed too
        return False
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest failed to run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> int:
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(w in m[0] for w in sys.argv[1:])]
    alive = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        for tests in sorted({m[3] for m in wanted}):
            if tested(tests, folder).returncode:
                raise SystemExit(f"tests/{tests}.py: red without any bug; mend that first")
        for number, mutant in enumerate(wanted, 1):
            lives = survives(*mutant, folder)
            alive += [mutant] if lives else []
            word = "NOT NOTICED" if lives else "noticed"
            print(f"{number}/{len(wanted)} {word}: {mutant[0]}: {mutant[2]!r}", flush=True)
    print(f"{len(wanted) - len(alive)} of {len(wanted)} planted bugs noticed.")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
