// The curves of the chosen runs: what to plot, a legend, means over seeds.

import { blank, get, h } from "./dom.js";
import { chart, overSeeds, swatch } from "./chart.js";

// What is known of a curve: its title, and how it is drawn. Others are named as in metrics.jsonl.
const KNOWN = {
  score_same_noise: ["Mean score, same noise each time", { x: "rounds of training" }],
  judge_same_noise: ["Right by the judge, same noise each time", { x: "rounds of training", percent: true }],
  score: ["Mean score of a round's samples", {}],
  judge: ["Right by the judge, a round's samples", { percent: true }],
  "round.watch_mean": ["Mean score by the second scorer", {}],
  adopted: ["Targets adopted (Eq. 7)", { percent: true, zero: true }],
  "update.preferred": ["Steps that prefer the better image", { percent: true }],
  "update.margin": ["Margin: log-ratio of the better image over the worse", {}],
  "round.noise_norm": ["Norm of predicted noise, over the initial model's", {}],
  "update.loss": ["Loss", {}],
  "update.grad_norm": ["Gradient norm before clipping", { zero: true }],
  "round.mask_coverage": ["Share of the grid inside masks", { percent: true, zero: true }],
};
const FIRST = ["score_same_noise", "judge_same_noise", "score", "judge", "round.watch_mean", "adopted", "update.preferred",
  "update.margin", "round.noise_norm"];

const titleOf = (key) => KNOWN[key]?.[0] ?? key.replace(/^(round|update)\./, "").replaceAll("_", " ").replaceAll(".", ": ");
const unitOf = (key) => KNOWN[key]?.[1].x ?? (key.startsWith("update.") ? "update" : "round");

// "dpo_s41", "dpo_s42" -> "dpo"
function common(names) {
  let end = 0;
  while (names.every((name) => end < name.length && name[end] === names[0][end])) end++;
  return names[0].slice(0, end).replace(/[\W_]*(s|seed)?[\W_]*\d*$/, "") || names[0];
}

// remember({ chart: [keys], seeds: "apart" }) keeps what was chosen in the address.
export function panel(params, remember) {
  let runs = [], drawn = "", keys = params.getAll("chart"), apart = params.get("seeds") === "apart";
  const legend = h("ul", { class: "legend", "aria-label": "Legend" });
  const choice = h("div", { class: "keys-of" });
  const plots = h("div", { class: "charts" });
  const seeds = h("input", { type: "checkbox", checked: !apart, onchange: (e) => { apart = !e.target.checked; keep(); fetchAndDraw(); } });
  const seedsLabel = h("label", { class: "check", hidden: true }, seeds, "Mean over seeds");
  const root = h("section", { class: "curves", "aria-label": "Curves" },
    h("div", { class: "curvebar" }, legend, h("div", { class: "tools" }, seedsLabel,
      h("details", { class: "menu" }, h("summary", {}, "What to plot"), choice))), plots);

  const keep = () => remember({ chart: keys, seeds: apart ? "apart" : null });
  const wanted = () => (keys.length ? keys : FIRST);

  // Runs that differ in their seed only are one line, unless they are wanted apart.
  function groups() {
    if (apart) return runs.map((run) => [run]);
    const same = new Map();
    for (const run of runs) {
      const others = same.get(run.same) ?? [];
      if (others.some((one) => one.seed === run.seed)) same.set(run.name, [run]);
      else same.set(run.same, [...others, run]);
    }
    return [...same.values()];
  }

  function lines(key, found) {
    return groups().map((group, style) => {
      const members = group.map((run) => ({ points: found[run.name]?.curves[key] ?? [] })).filter((m) => m.points.length);
      return members.length < 2 ? { name: group[0].name, style, points: members[0]?.points ?? [] }
        : { name: nameOf(group), style, ...overSeeds(members) };
    }).filter((line) => line.points.length);
  }

  const nameOf = (group) => (group.length > 1 ? `${common(group.map((r) => r.name))} · mean ± s.d. of ${group.length} seeds` : group[0].name);

  function choose(found) {
    const every = [...new Set(Object.values(found).flatMap((one) => one.keys))];
    const rank = (key) => { const at = Object.keys(KNOWN).indexOf(key); return at < 0 ? 99 : at; };
    every.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    choice.replaceChildren(...every.map((key) => h("label", { class: "check" }, h("input", {
      type: "checkbox", checked: wanted().includes(key),
      onchange: (e) => {
        const now = every.filter((k) => wanted().includes(k));
        keys = e.target.checked ? [...now, key] : now.filter((k) => k !== key);
        keep();
        fetchAndDraw();
      },
    }), titleOf(key), h("span", { class: "dim" }, `by ${unitOf(key)}`))));
  }

  async function fetchAndDraw() {
    const asked = runs;
    const found = runs.length ? await get("curves", { run: runs.map((r) => r.name), key: wanted() }) : {};
    if (asked !== runs) return;
    seedsLabel.hidden = !apart && groups().length === runs.length;
    legend.replaceChildren(...groups().map((group, style) => h("li", {}, swatch(style), h("span", {}, nameOf(group)))));
    if (!choice.contains(document.activeElement)) choose(found);
    const shown = wanted().map((key) => [key, lines(key, found)]).filter(([, some]) => some.length);
    plots.replaceChildren(...shown.map(([key, some]) => chart(titleOf(key), unitOf(key), some, KNOWN[key]?.[1])));
    if (!shown.length) plots.append(blank("No curves yet", "Tick a run in the table, or wait for its first scores."));
  }

  // Draws anew if the runs, or what is known of them, have changed.
  function show(chosen) {
    const text = JSON.stringify(chosen.map((r) => [r.name, r.rounds, r.score, r.judge, r.adopted, r.changed]));
    if (text === drawn) return;
    drawn = text;
    runs = chosen;
    fetchAndDraw().catch(() => { drawn = ""; });
  }
  return { root, show };
}
