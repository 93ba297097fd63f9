// Before and after: images of the same noise under any checkpoints, side by side.

import { answers, blank, get, h, image, lazily, number, openDialog, select } from "./dom.js";
import { sourcePicker } from "./sources.js";

export async function show(root, params, remember) {
  const found = (await get("catalogue")).filter((e) => e.comparisons.length);
  const all = found.flatMap((e) => e.comparisons.map((k) => ({ name: e.name, k, id: `${e.name}|compare/epoch${k}` })));
  root.append(h("h1", {}, "Before and after"));
  if (!all.length) {
    root.append(blank("Nothing to compare yet", "run_train.py samples the same noise before, during and after training (--config.train.compare_images)."));
    return null;
  }
  const asked = params.getAll("source").filter((s) => all.some((a) => a.id === s));
  const of = all.filter((a) => a.name === (params.get("exp") ?? all.at(-1).name));
  const own = of.length ? of : all;
  let chosen = asked.length ? asked : [...new Set([own[0].id, own.at(-1).id])];
  let prompt = params.get("prompt") ?? "", sort = params.get("sort") ?? "order", data, stop = null, rows = [];
  let drawn = [], turn = 0; // drawn: the checkpoints that data are of
  const list = h("div", { class: "grid" }), bar = h("div", { class: "bar" });
  const head = h("div", { class: "gridhead" }), count = h("p", { class: "dim count", role: "status" });
  const label = (id) => { const a = all.find((one) => one.id === id); return [a.name, a.k ? `after ${a.k} round${a.k > 1 ? "s" : ""}` : "before training"]; };

  // As short as the choice allows: the experiment is named where there are several.
  function brief(id) {
    const a = all.find((one) => one.id === id), when = a.k ? `after ${a.k}` : "before";
    return new Set(drawn.map((c) => label(c)[0])).size > 1 ? `${a.name}, ${when}` : when;
  }

  const picker = sourcePicker(found.map((e) => ({ name: e.name, sources: e.comparisons.map((k) =>
    [`${e.name}|compare/epoch${k}`, k ? `after ${k}` : "before"]) })), chosen, (ids) => { chosen = ids; load(); });

  async function load() {
    const mine = ++turn, asked = [...chosen];
    const got = !asked.length ? { columns: [], rows: [] } : answers ? only(await get("comparisons"), asked) : await get("comparisons", { source: asked });
    if (mine !== turn) return; // something else was chosen meanwhile
    data = got;
    drawn = asked;
    const prompts = [...new Set(data.rows.map((r) => r.prompt))];
    if (!prompts.includes(prompt)) prompt = "";
    bar.replaceChildren(...picker.fields,
      select("Prompt", [["", "all prompts"], ...prompts.map((p) => [p, p])], prompt, (v) => { prompt = v; draw(); }),
      select("Sort", [["order", "by prompt"], ["gain", "most gained"], ["loss", "most lost"]], sort, (v) => { sort = v; draw(); }));
    draw();
  }

  const gained = (row) => {
    const scores = row.cells.map((c) => c?.score).filter((s) => s !== null && s !== undefined);
    return scores.length > 1 ? scores.at(-1) - scores[0] : 0;
  };

  function draw() {
    remember({ source: chosen, prompt, sort });
    stop?.();
    rows = data.rows.filter((r) => !prompt || r.prompt === prompt);
    if (sort !== "order") rows.sort((a, b) => (sort === "gain" ? 1 : -1) * (gained(b) - gained(a)));
    list.style.setProperty("--columns", Math.max(1, drawn.length));
    list.classList.toggle("several", new Set(drawn.map((c) => label(c)[0])).size > 1);
    head.replaceChildren(...drawn.map((id, c) => {
      const scores = rows.map((r) => r.cells[c]?.score).filter((s) => s !== null && s !== undefined);
      const mean = scores.length ? scores.reduce((a, b) => a + b, 0) / scores.length : null;
      return h("span", {}, `${brief(id)} `, h("b", { class: "num" }, `mean ${number(mean)}`));
    }));
    list.replaceChildren();
    count.textContent = `${rows.length} images of each, same noise side by side`;
    stop = lazily(list, rows, row, 16);
    if (!rows.length) list.append(blank("Choose checkpoints", "Press two or more above; other runs are under “Beside other runs”."));
  }

  function row(r, at) {
    return h("article", { class: "same" }, h("h3", {}, h("button", { class: "open", onclick: () => open(at) }, r.prompt)),
      h("div", { class: "cells" }, r.cells.map((cell, c) => h("figure", {},
        h("div", { class: "pic" }, cell?.there
          ? h("img", { src: src(c, cell), loading: "lazy", alt: `${r.prompt}, ${label(drawn[c]).join(" ")}` })
          : h("div", { class: "none" }, cell ? "not yet" : "other noise")),
        h("figcaption", {}, h("span", { class: "dim" }, brief(drawn[c])), h("span", { class: "num" }, number(cell?.score)))))));
  }

  const src = (c, cell) => image(...drawn[c].split("|"), "images", cell.i);

  // Large, one at a time in the same place: changes are easy to see.
  function open(from) {
    let at = from, c = 0;
    const picture = h("img", { class: "large" }), says = h("p", { class: "num center" });
    const strip = h("div", { class: "flip", role: "group", "aria-label": "Checkpoints" });
    const { heading } = openDialog("", h("div", { class: "flipbody" }, strip, picture, says,
      h("p", { class: "dim keys" }, "Keys: ← → checkpoint, j k next and previous noise, Esc closes.")), { keys });
    function keys(e) {
      const act = { ArrowLeft: [0, -1], ArrowRight: [0, 1], j: [1, 0], k: [-1, 0] }[e.key];
      if (!act) return;
      e.preventDefault();
      at = (at + act[0] + rows.length) % rows.length;
      c = (c + act[1] + drawn.length) % drawn.length;
      paint();
    }
    function paint() {
      const r = rows[at], cell = r.cells[c];
      heading.replaceChildren(r.prompt);
      strip.replaceChildren(...drawn.map((id, n) => h("button", { "aria-pressed": String(n === c), onclick: () => { c = n; paint(); } }, label(id).join(", "))));
      strip.children[c].focus(); // the one that had the focus is gone
      if (cell?.there) picture.src = src(c, cell); else picture.removeAttribute("src");
      picture.alt = `${r.prompt}, ${label(drawn[c]).join(" ")}`;
      says.textContent = `score ${number(cell?.score)}`;
    }
    paint();
  }

  await load();
  root.append(bar, picker.others, h("div", { class: "counts" }, count, head), list);
  return () => stop?.();
}

// Some columns of an answer that has all.
function only({ columns, rows }, sources) {
  const kept = sources.map((id) => columns.findIndex((c) => `${c.name}|${c.round}` === id));
  return { columns: kept.map((c) => columns[c]),
    rows: rows.map((r) => ({ ...r, cells: kept.map((c) => r.cells[c]) })).filter((r) => r.cells.some(Boolean)) };
}
