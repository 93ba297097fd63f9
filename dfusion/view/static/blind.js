// Blind comparison: which image fits the prompt best? The app alone knows which model made it.

import { address, blank, get, h, percent, post, say, typing } from "./dom.js";
import { sourcePicker } from "./sources.js";

export async function showBlind(root, params, remember, rater) {
  const found = await get("catalogue");
  const runs = found.map((e) => ({ name: e.name, sources: [
    ...e.comparisons.map((k) => [`${e.name}|compare/epoch${k}`, k ? `after ${k}` : "before"]),
    ...e.rounds.map((k) => [`${e.name}|epoch${k}`, `samples of round ${k}`])] })).filter((run) => run.sources.length);
  const all = runs.flatMap((run) => run.sources.map(([id, text]) => [id, `${run.name}, ${text}`]));
  const title = (id) => all.find(([s]) => s === id)?.[1] ?? id;
  let chosen = params.getAll("source").filter((s) => all.some(([id]) => id === s));
  const same = found.map((e) => e.comparisons.map((k) => `${e.name}|compare/epoch${k}`)).find((of) => of.length > 1);
  if (!chosen.length) chosen = same ? [same[0], same.at(-1)] : [];
  if (!runs.length) {
    root.append(blank("Nothing to rate yet", "Images appear here as soon as a run has sampled some."));
    return null;
  }
  let state = null, last = null, who = "", busy = false;
  const setup = h("div", { class: "setup" }), stage = h("div", { class: "trial" }), results = h("section", { class: "results" });

  const picker = sourcePicker(runs, chosen, (ids) => {
    chosen = ids;
    remember({ source: chosen });
  });

  function choose() {
    setup.replaceChildren(
      h("p", {}, "Which model follows its prompts best? You see an image of each for the same prompt, in random order and without names, and choose. Anybody may rate; answers are kept in ", h("code", {}, "ratings/blind.jsonl"), " at once."),
      h("div", { class: "bar" }, picker.fields), picker.others,
    h("p", { class: "actions" }, h("button", { class: "primary", onclick: begin }, "Begin"),
      h("button", { onclick: tally }, "Results")));
  }

  async function guarded(work) {
    if (busy) return;
    busy = true;
    try { await work(); } catch (error) { say(error.message, true); }
    busy = false;
  }

  const begin = () => guarded(async () => {
    who = rater();
    state = await get("blind", { source: chosen, rater: who });
    last = null;
    results.replaceChildren();
    setup.hidden = true;
    paint();
  });

  const pick = (place) => guarded(async () => {
    if (!state?.trial) return;
    const { key } = state.trial;
    state = await post("blind", { sources: chosen, rater: who, trial: key, place });
    last = key;
    paint();
  });

  const back = () => guarded(async () => {
    if (!last) return;
    state = await get("blind", { source: chosen, rater: who, again: last });
    last = null;
    paint();
  });

  function end() {
    setup.hidden = false;
    state = null;
    stage.replaceChildren();
  }

  function paint() {
    const bar = h("header", { class: "trialbar" },
      h("progress", { max: Math.max(1, state.total), value: state.done, "aria-label": "Answered" }),
      h("span", { class: "num" }, `${state.done} of ${state.total}`),
      h("button", { onclick: back, disabled: !last }, "Undo (u)"), h("button", { onclick: end }, "Pause"));
    if (!state.trial) {
      stage.replaceChildren(bar, blank(state.total ? "All done. Thank you." : "No prompt has an image of each of these"));
      count().catch((error) => say(error.message, true));
      return;
    }
    const { key, prompt } = state.trial;
    const images = Array.from({ length: state.images }, (_, place) =>
      h("button", { class: "choice", onclick: () => pick(place), "aria-label": `Image ${place + 1}` },
        h("img", { src: address("/blind", { study: state.study, rater: who, trial: key, place }), alt: `Image ${place + 1}` }),
        h("kbd", {}, String(place + 1))));
    stage.replaceChildren(bar, h("p", { class: "question" }, "Which fits best?"), h("h2", { class: "prompt" }, prompt),
      h("div", { class: "choices", style: { "--n": state.images } }, images),
      h("p", { class: "actions" }, h("button", { onclick: () => pick(null) }, "No difference (0)")),
      h("p", { class: "dim keys" }, `Keys: 1 to ${state.images} choose, 0 no difference, u undoes the last answer.`));
  }

  async function count() {
    const found = await get("blind/results", { source: chosen });
    results.replaceChildren(h("h2", {}, "Results"),
      h("p", { class: "dim" }, `${found.answers} answers by ${found.raters.length} rater${found.raters.length === 1 ? "" : "s"}${found.raters.length ? ` (${found.raters.join(", ")})` : ""}; no difference: ${found.ties}. Bars are 95 % intervals (Wilson).`),
      h("h3", {}, "Chosen as best"), table(found.sources.map((s) => [title(s.source), s])),
      h("h3", {}, "One against another, all answers"), table(found.duels.map((d) => [`${title(d.a)} rather than ${title(d.b)}`, d.answers])),
      h("h3", {}, "One against another, paired by prompt"), table(found.duels.map((d) => [`${title(d.a)} on more prompts than ${title(d.b)}`, d.prompts])),
      h("p", { class: "dim" }, "Answers about one prompt are not independent. For new prompts, use the last table."));
  }

  const tally = () => guarded(count);

  function keys(e) {
    if (!state || typing(e)) return;
    if (/^[1-9]$/.test(e.key) && +e.key <= state.images) { e.preventDefault(); pick(+e.key - 1); }
    if (e.key === "0") pick(null);
    if (e.key === "u") back();
  }

  choose();
  root.append(setup, stage, results);
  document.addEventListener("keydown", keys);
  return () => document.removeEventListener("keydown", keys);
}

function table(rows) {
  return h("table", {}, h("tbody", {}, rows.map(([name, s]) => h("tr", {},
    h("th", { scope: "row" }, name), h("td", { class: "num" }, `${s.count} of ${s.total}`),
    h("td", { class: "num" }, percent(s.rate)),
    h("td", { class: "num dim" }, s.rate === null ? "" : `${Math.round(100 * s.low)}–${Math.round(100 * s.high)} %`),
    h("td", { class: "interval", "aria-hidden": "true" }, s.rate === null ? "" : h("div", {},
      h("i", { style: { left: `${100 * s.low}%`, width: `${100 * (s.high - s.low)}%` } }),
      h("b", { style: { left: `${100 * s.rate}%` } })))))));
}
