// Choosing what to compare: the checkpoints of one run as buttons; those of all runs fold away.

import { h, select } from "./dom.js";

// runs: rows { name, sources: [[id, label], …] }. changed(chosen): ids, in the order of the runs.
export function sourcePicker(runs, first, changed) {
  const order = runs.flatMap((run) => run.sources.map(([id]) => id));
  const runOf = (id) => runs.find((run) => run.sources.some(([one]) => one === id))?.name;
  let chosen = first, at = runOf(first[0]) ?? runs[0].name;

  function set(ids) {
    chosen = order.filter((id) => ids.includes(id));
    paint();
    changed(chosen);
  }

  const tick = (id) => set(chosen.includes(id) ? chosen.filter((c) => c !== id) : [...chosen, id]);
  const buttons = h("div", { class: "group", role: "group", "aria-label": "Checkpoints" });
  const list = runs.length < 2 ? "" : select("Experiment", runs.map(({ name }) => [name, name]), at, (name) => {
    at = name;
    set(ends(runs.find((run) => run.name === name).sources.map(([id]) => id)));
  });
  const others = h("details", { class: "sources" }, h("summary", {}), h("div", { class: "fieldsets" }, runs.map((run) =>
    h("fieldset", {}, h("legend", {}, run.name), run.sources.map(([id, label]) =>
      h("label", { class: "check" }, h("input", { type: "checkbox", value: id, onchange: () => tick(id) }), label))))));

  function paint() {
    buttons.replaceChildren(...runs.find((run) => run.name === at).sources.map(([id, label]) =>
      h("button", { "aria-pressed": String(chosen.includes(id)), onclick: () => tick(id) }, label)));
    for (const box of others.querySelectorAll("input")) box.checked = chosen.includes(box.value);
    const more = new Set(chosen.map(runOf).filter((name) => name !== at)).size;
    others.firstChild.textContent = more ? `Beside other runs (${more})` : "Beside other runs";
  }

  paint();
  return { fields: [list, h("div", { class: "field checkpoints" }, h("span", {}, "Checkpoints"), buttons)], others: runs.length < 2 ? "" : others };
}

// Before and after training, or else the first and the last.
function ends(ids) {
  const same = ids.filter((id) => id.includes("|compare/")), of = same.length ? same : ids;
  return [...new Set([of[0], of.at(-1)])];
}
