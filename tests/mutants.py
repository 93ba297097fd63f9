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
    ("dfusion/ddim.py", "eta**2 * (1 - a_prev)", "eta * (1 - a_prev)", "ddim"),
    ("dfusion/ddim.py", "(direction - (a_prev", "(direction + (a_prev", "ddim"),
    ("dfusion/ddim.py", "previous >= 0, alphas", "previous > 1, alphas", "ddim"),
    ("dfusion/ddim.py", "- std.log()", "+ std.log()", "ddim"),
    ("dfusion/ddim.py", "return 0.5 * ((mean_p", "return ((mean_p", "ddim"),
    ("dfusion/masks.py", "% 2 == 1", ">= 1", "masks"),
    ("dfusion/masks.py", "item >= (otsu", "item > (otsu", "masks"),
    ("dfusion/masks.py", ".mean(-3) for tokens", ".sum(-3) for tokens", "masks"),
    ("dfusion/masks.py", "below * (cells - below) *", "below *", "masks"),
    ("dfusion/pairing.py", "key=lambda i: -scores[i]", "key=lambda i: scores[i]", "pairing"),
    ("dfusion/pairing.py", "ranked[len(ranked) - half :]", "ranked[half : 2 * half]", "pairing"),
    ("dfusion/pairing.py", "target - base >= threshold", "target >= threshold", "pairing"),
    ("dfusion/prompts.py", "starts = [1 + sum", "starts = [sum", "prompts"),
    ("dfusion/prompts.py", ">= max_length - 1", ">= max_length + 9", "prompts"),
    ("dfusion/rng.py", "(seed, round_, index))", "(seed + index, round_))", "sampling"),
    ("dfusion/models.py", "guidance * (text - uncond)", "guidance * (uncond - text)", "sampling"),
    ("dfusion/models.py", "/ 2 + 0.5).clamp", "/ 2 + 0.4).clamp", "sampling"),
    ("dfusion/sampling.py", "x = policy.rounded(mean", "x = (mean", "sampling"),
    ("dfusion/sampling.py", "first_row=len(prompts) if", "first_row=0 if", "released"),
    ("dfusion/fusion.py", "references[:, i], x]", "references[:, i + 1], x]", "released"),
    ("dfusion/fusion.py", "half + 2 * pairs", "half", "released"),
    ("dfusion/fusion.py", "total - i in plan.steps for i in range(total)]\n    first",
     "total - i - 1 in plan.steps for i in range(total)]\n    first", "sampling"),
    ("dfusion/fusion.py", "policy.noise([pair.base_index", "policy.noise([1 + pair.base_index",
     "sampling"),
    ("dfusion/round_files.py", "for i in (pair.base, pair.reference))",
     "for i in (pair.reference, pair.base))", "rounds"),
    ("dfusion/scoring.py", "set(there) - round_.scores(kind, name).keys()", "set(there)",
     "scoring"),
    ("dfusion/scoring.py", "if size == 1 else there", "if size else there", "rounds"),
    ("dfusion/scoring.py", "with writing or nullcontext():", "with nullcontext():", "rounds"),
    ("diffusers_patched/attention_processor.py", "x[fusion.source], x)", "x, x[fusion.source])",
     "overlay"),
    ("diffusers_patched/attention_processor.py", 'v = _take(v, fusion) if "self_v"',
     'v = _take(k, fusion) if "self_v"', "overlay"),
    ("diffusers_patched/attention_processor.py", "* attn.scale).softmax", ").softmax", "overlay"),
    ("diffusers_patched/attention_processor.py", ".softmax(-1).mean(1)", ".softmax(-1)[:, 0]",
     "overlay"),
    ("diffusers_patched/attention_processor.py", "inside == inside.transpose(1, 2)",
     "inside | ~inside.transpose(1, 2)", "overlay"),
    ("diffusers_patched/control.py", "(self.source != own)[:, None]", "(own >= 0)[:, None]",
     "overlay"),
    ("diffusers_patched/control.py", ".float(), size)", ".float().flip(2), size)", "overlay"),
    ("diffusers_patched/layers.py", "levels - 1 - i) for i", "i) for i", "overlay"),
    ("dfusion/losses.py", "-F.logsigmoid(beta", "-F.logsigmoid(-beta", "losses"),
    ("dfusion/losses.py", "torch.maximum(free, held)", "torch.minimum(free, held)", "losses"),
    ("dfusion/losses.py", "alpha * policy.value + beta", "alpha * policy.value - beta", "losses"),
    ("dfusion/losses.py", "kept.log() if", "ratio.log() if", "losses"),
    ("dfusion/advantages.py", "np.std(scores)", "np.std(scores, ddof=1)", "losses"),
    ("dfusion/steps.py", "range(min(ends), max(ends) + 1)", "range(*ends)", "sampling"),
    ("dfusion/transitions.py", "return self._fused_from if", "return self._fused_from + 1 if",
     "updates"),
    ("dfusion/transitions.py", "else kept[rows]", "else kept[rows].flip(0)", "updates"),
    ("dfusion/transitions.py", "return fused and step.i >= self._fused_from",
     "return fused and step.i > self._fused_from", "updates"),
    ("dfusion/ddim.py", "self.quiet_scale[i] * eps.float()) / self.x_scale[i]",
     "self.eps_scale[i] * eps.float()) / self.x_scale[i]", "inversion"),
    ("dfusion/inversion.py", "guidance=None", "guidance=policy.guidance", "inversion"),
    ("dfusion/objective.py", "self.kl_initial * kl_initial.sum(-1)",
     "self.kl_initial * kl_initial.mean(-1)", "objective"),
    ("dfusion/objective.py", "return self.method == \"dpo\" and self.kl_initial == 0",
     "return self.method == \"dpo\"", "objective"),
    ("dfusion/updates.py", "(loss.value * weight).sum()", "loss.value.sum()", "updates"),
    ("dfusion/updates.py", "/ std - z", "/ std", "updates"),
    ("dfusion/updates.py", "with self.initial() as network:", "if network := self.network:",
     "updates"),
    ("dfusion/stepper.py", "factor = 1 / (pairs", "factor = self.processes / (pairs", "processes"),
    ("dfusion/stepper.py", "update.pairs * update.fraction", "update.pairs", "stepper"),
    ("dfusion/orders.py", "fraction + rng.random())", "fraction)", "orders"),
    ("dfusion/orders.py", "default_rng(key)", "default_rng((*key, rank))", "processes"),
    ("dfusion/orders.py", "np.sort(part)[rank::size]", "np.sort(part)[0::size]", "processes"),
    ("dfusion/training.py", "updater.remember(", "len(", "training"),
    ("dfusion/training.py", "self.checkpoints.load_known(", "len(", "checkpoints"),
    ("dfusion/updates.py", "        self.zero()\n", "", "checkpoints"),
    ("dfusion/optimiser.py", "rows.setdefault(places[name], {})", "rows.setdefault(0, {})",
     "checkpoints"),
    ("dfusion/updates.py", "-0.5 * (z[0, step.i]", "-0.4 * (z[0, step.i]", "updates"),
    ("dfusion/updates.py", "cond = model.encode([text for text in batch.texts for _ in range(2)])",
     "cond = model.encode(batch.texts * 2)", "updates"),
    ("dfusion/lora.py", ", LORA_ADAPTER_METADATA_KEY: json.dumps(plain, sort_keys=True)", "",
     "models"),
    ("dfusion/models.py", 'k.replace(".base_layer.", ".")', "k", "models"),
    ("dfusion/files.py", "os.replace(aside, path)", "aside.rename(path)", "files"),
    ("dfusion/store.py", "before.get(k) != v]", "before.get(k) == 0]", "rounds"),
    ("dfusion/store.py", '"last": end - 1', '"last": end', "keep"),
    ("dfusion/store.py", "if number in dropped or not round_.states_kept:", "if number in dropped:",
     "keep"),
    ("dfusion/sharing.py", "if a.get(key) != value", "if key == value", "sharing"),
    ("dfusion/sharing.py", 'found["prompts"] == manifest["prompts"]', "True", "sharing"),
    ("dfusion/sharing.py", "theirs.pairs_made_with() != fused_with", "not fused_with", "sharing"),
    ("dfusion/sharing.py", 'to.folder.with_name(f".{to.folder.name}.tmp")', "to.folder", "sharing"),
    ("dfusion/sharing.py", "        shutil.rmtree(aside)\n", "        pass\n", "sharing"),
    ("dfusion/runs.py", "    session.runner.check_samples_from(first, session.policy(first))\n", "",
     "sharing"),
    ("dfusion/training.py", "            self._drop_states(done)\n", "", "keep"),
    ("dfusion/training.py", "            self._drop_states(number)\n", "", "keep"),
    ("dfusion/scorer.py", "    sweep(folder)\n", "", "faults"),
    ("dfusion/checkpoints.py", '["round"] <= number', '["round"] < number', "checkpoints"),
    ("dfusion/view/strengths.py", "share - p, p - share", "p - share, share - p", "view_two"),
    ("dfusion/view/strengths.py", "over_reference - 0.5", "over_reference", "view_two"),
    ("dfusion/view/duels.py", "float(better == a)", "float(better == b)", "view_two"),
    ("dfusion/view/duels.py", "digest(data, round_, kind, index) == seen", "True", "view_two"),
    ("config/config.py", 'settings.mask.merge = "or"', 'settings.mask.merge = "xor"', "released"),
]  # fmt: skip


def tested(tests: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a test file, but for the test that this list's places are there: it sees any bug."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/test_{tests}.py"]
    command += ["--deselect", "tests/test_faults.py::test_every_planted_bug_has_its_place"]
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
                raise SystemExit(f"tests/test_{tests}.py: red without any bug; mend that first")
        for number, mutant in enumerate(wanted, 1):
            lives = survives(*mutant, folder)
            alive += [mutant] if lives else []
            word = "NOT NOTICED" if lives else "noticed"
            print(f"{number}/{len(wanted)} {word}: {mutant[0]}: {mutant[2]!r}", flush=True)
    print(f"{len(wanted) - len(alive)} of {len(wanted)} planted bugs noticed.")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
