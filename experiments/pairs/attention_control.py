"""What fusing each component of attention does (the paper's Fig. 8), for any prompt and seeds.

    python -m experiments.pairs.attention_control --prompt "a star wearing a hat" --items star,hat

Without a mask: self-attention maps (Plug-and-Play), keys and values, cross-attention maps
(Prompt-to-Prompt) and others; with it: MasaCtrl, its two halves, and D-Fusion. Layers and steps are
the preset's. `fusion_grid` has the figures of the same variants over many pairs.
"""

from dataclasses import replace

import matplotlib.pyplot as plt

from experiments.pairs.chosen_pair import choose, parser, save, show

UNMASKED = {
    "self maps\n(Plug-and-Play)": "self_map",
    "self K and V": "self_k,self_v",
    "cross maps\n(Prompt-to-Prompt)": "cross_map",
    "self Q": "self_q",
    "self output": "self_out",
    "cross output": "cross_out",
}
MASKED = {
    "MasaCtrl": "masa_map,masa_out",
    "MasaCtrl's maps": "masa_map",
    "MasaCtrl's output": "masa_out",
    "self K and V\n(D-Fusion)": "self_k,self_v",
}


def main() -> None:
    args = parser(__doc__).parse_args()
    pair = choose(args)
    rows = [(False, UNMASKED), (True, MASKED)]
    wide = 2 + len(UNMASKED)
    figure, axes = plt.subplots(2, wide, figsize=(1.55 * wide, 4.3), layout="constrained")
    measured = {}
    for row, (masked, variants) in zip(axes, rows, strict=True):
        plans = [
            replace(pair.plan, parts=frozenset(parts.split(",")), masked=masked)
            for parts in variants.values()
        ]
        titles = ["base", "reference", *variants]
        pictures = [*pair.images, *pair.targets(plans)]
        for cell in row:
            cell.axis("off")
        for cell, title, picture in zip(row, titles, pictures, strict=False):
            cell.axis("on")
            found = pair.measure(picture)
            show(cell, picture, f"{title}\n{found['score']:.3f}")
            fused = f", {'with' if masked else 'without'} mask" if title in variants else ""
            measured[title.replace("\n", " ") + fused] = found
        row[0].set_ylabel("with mask" if masked else "without mask")
    t, layers = pair.settings.fusion.steps, pair.settings.fusion.layers
    figure.suptitle(
        f'"{pair.source.prompt.text}", images {pair.indices[0]} and {pair.indices[1]}, '
        f"layers {layers}, t = {t}; numbers are scores",
        fontsize=10,
    )
    save(figure, args, "attention_control", pair, measured)


if __name__ == "__main__":
    main()
