// Rate: who rates, and what: images without knowing the model, or scores that a run waits for.

import { get, h } from "./dom.js";
import { showBlind } from "./blind.js";
import { showHuman } from "./human.js";

const NAME = "dfusion.rater";

export async function show(root, params, remember) {
  const jobs = await get("human");
  const mode = params.get("mode") ?? (jobs.length ? "scores" : "blind");
  const name = h("input", { id: "rater", value: localStorage.getItem(NAME) ?? "", autocomplete: "name", maxlength: 40,
    oninput: (e) => localStorage.setItem(NAME, e.target.value.trim()) });
  const place = h("div", {});
  let leave = null;

  const rater = () => {
    const given = name.value.trim();
    if (!given) { name.focus(); throw new Error("First enter a name: any name, the same each time."); }
    return given;
  };

  const modes = h("div", { class: "modes", role: "group", "aria-label": "What to rate" },
    [["blind", "Blind comparison"], ["scores", `Scores for a run${jobs.length ? ` (${jobs.length} waiting)` : ""}`]].map(([id, text]) =>
      h("button", { "data-mode": id, onclick: () => open(id) }, text)));

  async function open(id, keep = {}) {
    leave?.();
    for (const b of modes.children) b.setAttribute("aria-pressed", String(b.dataset.mode === id));
    if (!Object.keys(keep).length) remember({ mode: id });
    place.replaceChildren();
    const note = (chosen) => remember({ mode: id, ...chosen });
    leave = await (id === "blind" ? showBlind : showHuman)(place, params, note, rater);
  }

  root.append(h("h1", {}, "Rate"), h("div", { class: "bar" }, h("label", { class: "field" }, h("span", {}, "Your name"), name), modes), place);
  await open(mode, { first: true });
  return () => leave?.();
}
