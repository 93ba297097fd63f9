// A round in figures: counts and means, and the same by prompt.

import { h, number, percent, signed } from "./dom.js";

const COLUMNS = [
  ["images", (s) => s.images], ["pairs", (s) => s.pairs], ["all images", (s) => number(s.mean.images)], ["base", (s) => number(s.mean.base)],
  ["reference", (s) => number(s.mean.reference)], ["target", (s) => number(s.mean.target)], ["gain", (s) => (s.gain === null ? "–" : signed(s.gain))],
  ["adopted", (s) => (s.decided ? `${s.adopted} of ${s.decided}` : "–")], ["mask", (s) => percent(s.coverage)]];

export function figures(data) {
  const s = data.summary, shown = [
    [`${s.images} of ${data.planned}`, `images of ${data.prompts.length} prompt${data.prompts.length === 1 ? "" : "s"}`],
    s.mean.images !== null && [number(s.mean.images), `mean score (${data.reward})`],
    s.mean.target !== null && [`${number(s.mean.base)} → ${number(s.mean.target)}`, "base → target, mean score"],
    s.decided > 0 && [percent(s.adopted / s.decided), `adopted: ${s.adopted} of ${s.decided}`],
    s.coverage !== null && [percent(s.coverage), "of the cells in the mask"]];
  return h("div", { class: "figures" }, shown.filter(Boolean).map(([value, name]) => h("p", {}, h("b", { class: "num" }, value), h("span", { class: "dim" }, name))));
}

// press(text): a prompt was chosen.
export function byPrompt(data, press) {
  return h("details", { class: "byprompt" }, h("summary", {}, `Scores by prompt (${data.prompts.length})`), h("div", { class: "scroll" }, h("table", { class: "num" },
    h("thead", {}, h("tr", {}, ["prompt", ...COLUMNS.map(([name]) => name)].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, data.by_prompt.map((s) => h("tr", {}, h("th", { scope: "row" }, h("button", { class: "plain", onclick: () => press(data.prompts[s.prompt].text) }, data.prompts[s.prompt].text)),
      COLUMNS.map(([, of]) => h("td", {}, String(of(s))))))))));
}
