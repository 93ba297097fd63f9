"""The ways to train that are compared: which pairs, which loss, what else differs from the preset.

Runs are named <recipe>_t<template>_s<seed>.
"""

from dataclasses import dataclass

BOTH_WAYS = ("pair.rule=both_ways", "train.timestep_fraction=0.25")  # twice the pairs
# Controls without the reference; the testbed decides what is where at steps 20 and 19.
BRANCH = ("fusion.kind=branch", "fusion.steps=19-1")
RENOISE = ("fusion.kind=renoise", "fusion.steps=19-1")
# Template 1's mistakes are all in the prop. With it as the only item, the actor stays the base's.
PROP = (
    "item_idx_file=config/prompt/testbed1_prop_item.json",
    "mask_thr_file=config/prompt/testbed1_prop_mask.json",
)
# Of losses on final images; chosen for Diffusion-DPO, not searched for the others (PLAN.md).
FINAL_RATE = 3e-3
# The released code's rule: each of a prompt's best quarter is the reference of two bases.
QUARTER = ("pair.rule=quarter",)
Style = tuple[str, str, str]  # colour, marker, line


@dataclass(frozen=True)
class Recipe:
    """label: for tables and figures. pairs, method: as the settings. changes: other settings, as
    for --set. rate: the learning rate on the testbed, chosen on held-out prompts (PLAN.md); on
    other presets, the preset's. style: in the figures; without one, the recipe is in tables only.
    """

    label: str
    pairs: str = "dfusion"
    method: str = "dpo"
    changes: tuple[str, ...] = ()
    rate: float = 1e-3
    style: Style | None = None

    def settings(self, preset: str) -> list[str]:
        """What differs from the preset, as for --set."""
        rate = [f"train.learning_rate={self.rate}"] if preset.startswith("testbed") else []
        kind = [f"train.method={self.method}", f"train.pairs={self.pairs}"]
        return [*kind, *rate, *self.changes]


def diffusion_dpo(
    label: str,
    pairs: str = "dfusion",
    changes: tuple[str, ...] = (),
    style: Style | None = None,
) -> Recipe:
    """A recipe with Diffusion-DPO's loss, at the rate that was chosen for it."""
    return Recipe(label, pairs, "diffusion_dpo", changes, FINAL_RATE, style)


# Colours that the colour-blind can tell apart (Okabe and Ito's first); markers for print in grey.
RECIPES = {
    "dpo_dfusion": Recipe("DPO + D-Fusion", style=("#0072B2", "o", "-")),
    "dpo_both_ways": Recipe(
        "DPO + D-Fusion both ways", changes=BOTH_WAYS, style=("#009E73", "D", "-")
    ),
    "dpo_naive": Recipe("naive DPO", "naive", rate=3e-3, style=("#E69F00", "s", "--")),
    "diffusion_dpo_dfusion": diffusion_dpo("Diffusion-DPO + D-Fusion", style=("#CC79A7", "^", "-")),
    "diffusion_dpo_all": diffusion_dpo(
        "Diffusion-DPO + D-Fusion, every target",
        changes=("pair.adoption=all",),
        style=("#882255", "*", "-"),
    ),
    "diffusion_dpo_prop": diffusion_dpo(
        "Diffusion-DPO + D-Fusion of the prop", changes=PROP, style=("#117733", "<", "-")
    ),
    "diffusion_dpo_prop_all": diffusion_dpo(
        "Diffusion-DPO + D-Fusion of the prop, every target",
        changes=(*PROP, "pair.adoption=all"),
        style=("#332288", ">", "-"),
    ),
    "diffusion_dpo_naive": diffusion_dpo(
        "Diffusion-DPO, naive pairs", "naive", style=("#D55E00", "P", "--")
    ),
    "ddpo_dfusion": Recipe("DDPO + D-Fusion", method="ddpo", style=("#56B4E9", "v", "-")),
    "ddpo_naive": Recipe("DDPO", "naive", "ddpo", style=("#56B4E9", "v", "--")),
    "ddpo_dfusion_fast": Recipe("DDPO + D-Fusion, rate 3e-3", method="ddpo", rate=3e-3),
    "ddpo_naive_fast": Recipe("DDPO, rate 3e-3", "naive", "ddpo", rate=3e-3),
    "ddpo_random": Recipe(
        "DDPO, mask at a random place", method="ddpo", changes=("mask.place=random",)
    ),
    "ddpo_branch": Recipe("DDPO, branches of the base", method="ddpo", changes=BRANCH),
    "dpok_dfusion": Recipe("DPOK + D-Fusion", method="dpok", style=("#000000", "X", "-")),
    "dpok_naive": Recipe("DPOK", "naive", "dpok", style=("#000000", "X", "--")),
    "dpo_inversion": Recipe("DPO, inverted trajectories", "inversion", style=("#999999", "*", ":")),
    # Controls and parts of the method.
    "dpo_random_mask": Recipe(
        "DPO + D-Fusion, mask at a random place", changes=("mask.place=random",)
    ),
    "dpo_all_adopted": Recipe("DPO + D-Fusion, every target", changes=("pair.adoption=all",)),
    "dpo_or": Recipe("DPO + D-Fusion, masks merged by OR", changes=("mask.merge=or",)),
    # Methods to compare with.
    "dpo_kl": Recipe("DPO + D-Fusion, KL to the initial model", changes=("train.kl_initial=0.02",)),
    "dpo_saturating": Recipe(
        "DPO + D-Fusion, beta 100, against the initial model",
        changes=("train.beta=100", "train.reference=initial"),
    ),
    "dpo_equal": Recipe(
        "DPO + D-Fusion, equal step weights", changes=("train.step_weights=equal:20-5",)
    ),
    "dpo_mask_only": Recipe(
        "DPO + D-Fusion, log-probs over the mask", changes=("train.outside_weight=0",)
    ),
    "dpo_safeguard": Recipe("DPO + D-Fusion, loser held back", changes=("train.loser_limit=1",)),
    "dpo_branch": Recipe("DPO, branches of the base", changes=BRANCH),
    "dpo_renoise": Recipe("DPO, the base noised again", changes=RENOISE),
    # Controls and options of the recipe that did best.
    "diffusion_dpo_random": diffusion_dpo(
        "Diffusion-DPO, mask at a random place", changes=("mask.place=random",)
    ),
    "diffusion_dpo_branch": diffusion_dpo("Diffusion-DPO, branches of the base", changes=BRANCH),
    "diffusion_dpo_renoise": diffusion_dpo("Diffusion-DPO, the base noised again", changes=RENOISE),
    "diffusion_dpo_safeguard": diffusion_dpo(
        "Diffusion-DPO + D-Fusion, loser held back", changes=("train.loser_limit=1",)
    ),
    "diffusion_dpo_quarter_naive": diffusion_dpo(
        "Diffusion-DPO, naive pairs, best quarter", "naive", QUARTER
    ),
    "diffusion_dpo_quarter_all": diffusion_dpo(
        "Diffusion-DPO + D-Fusion, best quarter, every target",
        changes=(*QUARTER, "pair.adoption=all"),
    ),
    "diffusion_dpo_quarter_prop_all": diffusion_dpo(
        "Diffusion-DPO + D-Fusion of the prop, best quarter, every target",
        changes=(*QUARTER, *PROP, "pair.adoption=all"),
    ),
    "diffusion_dpo_early": diffusion_dpo(
        "Diffusion-DPO + D-Fusion, fused steps 20-11", changes=("fusion.steps=20-11",)
    ),
    "diffusion_kto_dfusion": Recipe(
        "Diffusion-KTO + D-Fusion", method="diffusion_kto", rate=FINAL_RATE
    ),
    "fdfo_dfusion": Recipe("FDFO + D-Fusion", method="fdfo", rate=FINAL_RATE),
    "fdfo_naive": Recipe("FDFO, naive pairs", "naive", "fdfo", rate=FINAL_RATE),
    "fdfo_prop_all": Recipe(
        "FDFO + D-Fusion of the prop, every target",
        method="fdfo",
        changes=(*PROP, "pair.adoption=all"),
        rate=FINAL_RATE,
    ),
    "grpo": Recipe("GRPO", "naive", "grpo"),
}
