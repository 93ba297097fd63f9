// What the app says of a pair, in words.

import { answers, h, number, signed } from "./dom.js";
import { colourOf } from "./tiles.js";

export const state = (pair) => pair.adopted === null ? "not decided" : pair.adopted ? "adopted" : "not adopted";

// The prompt with its item words underlined in their colours.
export function marked(prompt) {
  if (!prompt) return [];
  const words = prompt.items.map((item) => item.word.split("#")[0].toLowerCase().split(" "));
  return prompt.text.split(/(\s+)/).map((piece) => {
    const bare = piece.toLowerCase().replace(/^\W+|\W+$/g, "");
    const item = words.findIndex((w) => bare && w.includes(bare));
    return item < 0 ? piece : h("span", { class: "itemword", style: { "--c": colourOf(item + 1) } }, piece);
  });
}

// Eq. 7 for this pair.
export function verdict(pair, { rule, threshold }) {
  const { base, reference, target } = pair;
  if (target.score === null) return "The target is not scored yet.";
  if (base.score === null || reference.score === null) return "Base and reference are not scored yet.";
  const reached = reference.score - base.score;
  const facts = `The target gains ${signed(pair.gain)} on the base, the reference ${signed(reached)}`;
  if (rule === "all") return `${facts}. Every target is adopted.`;
  const needed = threshold === 1 ? "at least as much" : `${threshold} × as much, ${signed(threshold * reached)}`;
  const end = { "not decided": "Not decided yet.", adopted: "Adopted.",
    "not adopted": "Not adopted: the reference takes its place in training." }[state(pair)];
  return `${facts}; Eq. 7 asks for ${needed}. ${end}`;
}

// A threshold as one would read it: with the share of the cells that it keeps, where that is known.
export function thresholdText(item, share) {
  const set = item.threshold === null ? "auto (Otsu)" : String(item.threshold);
  return share === undefined || share === null ? `threshold ${set}` : `keeps ${keeps(share)} (${set})`;
}

export const keeps = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} % of the cells`;

// Where the files of a pair are, relative to the page or as one would type it.
export function files(data, round, pair) {
  const folder = answers ? round : data.folder;
  const file = (kind, i) => `${folder}/${kind}/${String(i).padStart(5, "0")}.png`;
  return [["base", file("images", pair.base.i)], ["reference", file("images", pair.reference.i)],
    pair.target.there && ["target", file("target_images", pair.n)], pair.mask !== null && ["mask", file("masks", pair.n)]].filter(Boolean);
}

export function scoreLine(pair) {
  return ["base", "reference", "target"].map((side) => `${side} ${number(pair[side].score)}`).join(", ");
}
