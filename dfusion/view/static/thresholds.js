// Thresholds by eye: a slider per item, the mask over every sample, saved into the run's folder.

import { blank, get, h, image, number, percent, post, say, select } from "./dom.js";
import { keysButton, showKeys } from "./keys.js";
import { colourOf, TINTS } from "./tiles.js";
import { keeps } from "./words.js";

const STEPS = 400; // positions of a slider, of equal ratio
const KEYS = [[["Tab"], "to a slider"], [["←", "→"], "move it"], [["s"], "save"], [["u"], "undo"], [["[", "]"], "previous and next prompt"]];

export async function show(root, params, remember) {
  const found = (await get("catalogue")).filter((e) => e.rounds.length);
  root.append(h("h1", {}, "Thresholds"));
  if (!found.length) {
    root.append(blank("No samples here yet", "Item maps are kept with every sample of a run."));
    return null;
  }
  const chosen = {
    exp: params.get("exp") ?? found[0].name, round: params.get("round"), prompt: params.get("prompt") ?? "",
    t: params.get("t") ?? "fused", look: params.get("look") ?? "mask",
  };
  const bar = h("div", { class: "bar" }), sliders = h("section", { class: "items", "aria-label": "Items" });
  const list = h("section", { class: "masks", "aria-label": "Samples" }), foot = h("div", { class: "savebar" });
  let view, values = [], prompts = [], busy = false, again = false, otsu = [], shares = [], dirty = false, turn = 0;
  let past = [], moved = null; // values before each change; the item that is being moved

  async function load() {
    const e = found.find((one) => one.name === chosen.exp) ?? found[0];
    const rounds = e.rounds.map((k) => `epoch${k}`);
    chosen.exp = e.name;
    if (!rounds.includes(chosen.round)) chosen.round = rounds.at(-1);
    const mine = ++turn;
    const { prompts: listed } = await get("round", { exp: chosen.exp, round: chosen.round });
    if (mine !== turn) return; // something else was chosen meanwhile
    prompts = listed.map((p) => p.text);
    if (!prompts.includes(chosen.prompt)) chosen.prompt = prompts[0] ?? "";
    bar.replaceChildren(
      select("Experiment", found.map((one) => [one.name, one.name]), chosen.exp, (v) => { chosen.exp = v; chosen.round = null; load(); }),
      select("Round", rounds.map((r) => [r, r.replace("epoch", "round ")]), chosen.round, (v) => { chosen.round = v; load(); }),
      select("Prompt", prompts.map((p) => [p, p]), chosen.prompt, (v) => { chosen.prompt = v; open(); }), keysButton(KEYS));
    await open();
  }

  async function open() {
    const mine = ++turn, asked = { exp: chosen.exp, round: chosen.round, prompt: chosen.prompt };
    let got;
    view = null; // until the answer is there, sliders are of another prompt: nothing is saved
    try {
      got = await get("thresholds", asked);
    } catch (error) {
      if (mine !== turn) return;
      sliders.replaceChildren(); foot.replaceChildren();
      list.replaceChildren(blank("No maps to show", error.message));
      return;
    }
    if (mine !== turn) return;
    view = { ...got, asked };
    if (chosen.t !== "fused" && !(+chosen.t >= 1 && +chosen.t <= view.steps)) chosen.t = "fused";
    values = view.items.map((item, i) => (view.saved?.length === view.items.length ? view.saved[i] : item.threshold));
    dirty = false;
    past = []; moved = null;
    sliders.replaceChildren(steps(), ...view.items.map(item));
    list.replaceChildren(...view.samples.map(sample));
    footer();
    await update();
  }

  // Which step's mask is shown: one, or the mean over the fused ones.
  function steps() {
    const t = [["fused", "all fused steps"], ...Array.from({ length: view.steps }, (_, i) => [String(view.steps - i), `t = ${view.steps - i}`])];
    const looks = [["mask", "mask over the image"], ["maps", "maps as heat over it"]];
    return h("div", { class: "bar" },
      select("Step", t, chosen.t, (v) => { chosen.t = v; update(); }),
      select("Show", looks, chosen.look, (v) => { chosen.look = v; update(); }),
      h("p", { class: "dim" }, view.items.length > 1 ? `items merged by ${view.merge}` : ""));
  }

  const toValue = (item, place) => item.low * (item.high / item.low) ** (place / STEPS);
  const toPlace = (item, value) => Math.max(0, Math.min(STEPS, Math.round((Math.log(value / item.low) / Math.log(item.high / item.low)) * STEPS)));

  function item(one, i) {
    const id = `thr-${i}`;
    const slider = h("input", { type: "range", id, min: 0, max: STEPS, class: "thr", oninput: (e) => set(toValue(one, +e.target.value)), onchange: () => { moved = null; } });
    const kept = h("output", { class: "kept", for: id });
    const typed = h("input", { type: "number", min: 0, max: 1, step: "any", "aria-label": `Threshold of ${one.word}`, onchange: (e) => {
      const value = Number(e.target.value);
      if (e.target.value !== "" && value >= 0 && value <= 1) set(value); else paint();
    } });
    const auto = h("input", { type: "checkbox", onchange: (e) => set(e.target.checked ? null : otsu[i] || toValue(one, STEPS / 2)) });
    const most = Math.max(...one.counts, 1);
    const bars = h("div", { class: "bars", "aria-hidden": "true" }, one.counts.map((c) => h("i", { style: { height: `${c ? Math.max(4, (100 * c) / most) : 0}%` } })));
    function set(value) {
      if (moved !== slider) past.push([...values]);
      moved = document.activeElement === slider ? slider : null;
      values[i] = value === null ? null : Number(value.toPrecision(3));
      dirty = true;
      paint();
      footer();
      update();
    }
    function paint() {
      const value = values[i];
      auto.checked = value === null;
      slider.value = toPlace(one, Math.max(value ?? otsu[i] ?? one.low, one.low));
      typed.value = value === null ? "" : value;
      typed.placeholder = otsu[i] ? `≈ ${otsu[i].toPrecision(3)}` : "auto";
      kept.textContent = shares[i] === undefined ? "" : `keeps ${keeps(shares[i])}`;
      slider.setAttribute("aria-valuetext", `${value === null ? "automatic" : value}, ${kept.textContent}`);
      const cut = (slider.value / STEPS) * one.counts.length;
      [...bars.children].forEach((b, n) => b.classList.toggle("in", n >= cut));
    }
    one.paint = paint;
    paint();
    return h("div", { class: "item", style: { "--c": colourOf(i + 1) } },
      h("label", { for: id, class: "word" }, one.word), h("div", { class: "slide" }, kept, bars, slider), typed,
      h("label", { class: "check" }, auto, "auto (Otsu)"));
  }

  function sample(one) {
    one.canvas = h("canvas", { width: view.grid[1], height: view.grid[0] });
    one.covered = h("span", { class: "num" });
    one.bytes = bytes(one.maps);
    one.box = h("div", { class: "pic over" },
      h("img", { src: image(chosen.exp, chosen.round, "images", one.i), alt: `sample ${one.i}` }), one.canvas);
    return h("figure", {}, one.box, h("figcaption", {}, h("span", { class: "num dim" }, number(one.score)), one.covered));
  }

  // One request at a time; the last position of a slider is always asked for.
  async function update() {
    remember(chosen);
    if (!view) return;
    if (busy) { again = true; return; }
    busy = true;
    const mine = view;
    try {
      const found = await get("masks", { ...mine.asked,
        thr: values.map((v) => (v === null ? "auto" : v)), t: chosen.t });
      if (mine === view) {
        otsu = found.otsu;
        shares = found.shares;
        for (const one of view.items) one.paint();
        view.samples.forEach((one, n) => draw(one, bytes(found.masks[n]), found.coverage[n]));
      }
    } catch (error) {
      say(error.message, true);
    }
    busy = false;
    if (again) { again = false; await update(); }
  }

  function draw(one, mask, coverage) {
    const context = one.canvas.getContext("2d"), [high, wide] = view.grid, cells = high * wide;
    const pixels = context.createImageData(wide, high), maps = chosen.look === "maps";
    one.box.classList.toggle("smooth", maps);
    const steps = chosen.t === "fused" ? view.fused : [Number(chosen.t)];
    for (let c = 0; c < cells; c++) {
      if (!maps) {
        pixels.data.set([10, 12, 18, Math.round((255 - mask[c]) * 0.82)], 4 * c);
        continue;
      }
      // Of the items here, the strongest gives the colour, and how strong it is the opacity.
      let strongest = 0, colour = TINTS[0];
      view.items.forEach((_, i) => {
        let sum = 0;
        for (const t of steps) sum += one.bytes[((view.steps - t) * view.items.length + i) * cells + c];
        if (sum / steps.length > strongest) [strongest, colour] = [sum / steps.length, TINTS[i % TINTS.length]];
      });
      pixels.data.set([...colour, Math.round(strongest * 0.9)], 4 * c);
    }
    context.putImageData(pixels, 0, 0);
    one.covered.textContent = percent(coverage);
    one.covered.title = "of the grid is inside the mask";
  }

  function footer() {
    const state = dirty ? "Not saved yet." : view.saved ? "Saved in " : "Not changed.";
    const own = values.every((v, i) => v === view.items[i].threshold);
    foot.replaceChildren(h("p", { class: "actions" },
      h("button", { class: "primary", onclick: save }, "Save (s)"), h("button", { onclick: undo, disabled: !past.length }, "Undo (u)"),
      h("button", { onclick: () => restore(view.items.map((item) => item.threshold)), disabled: own }, "As the run had them")),
    h("p", {}, state, !dirty && view.saved ? h("code", {}, view.file) : ""),
    view.saved ? h("p", { class: "dim" }, view.given ? h("span", {}, h("code", {}, view.given), " stays as it was. ") : "", "A new run with them:",
      h("code", { class: "line" }, view.command)) :
      h("p", { class: "dim" }, "Saving writes ", h("code", {}, view.file), view.given ? h("span", {}, ", a copy of ", h("code", {}, view.given), " with these values.") : "."));
  }

  function undo() {
    if (past.length) become(past.pop());
  }

  function restore(to) {
    past.push([...values]);
    become(to);
  }

  function become(to) {
    values = [...to];
    moved = null;
    dirty = values.some((v, i) => v !== (view.saved ?? view.items.map((item) => item.threshold))[i]);
    for (const one of view.items) one.paint();
    footer();
    update();
  }

  async function save() {
    const mine = view, saved = [...values];
    if (!mine) return;
    try {
      await post("thresholds", { ...mine.asked, thresholds: saved });
      mine.saved = saved;
      if (mine === view) {
        dirty = values.some((v, i) => v !== saved[i]);
        footer();
      }
      say("Saved in the run's folder.");
    } catch (error) {
      say(error.message, true);
    }
  }

  function keys(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest?.("select, input[type=number]")) return;
    if (document.querySelector("dialog")) return;
    if (e.key === "s") { e.preventDefault(); save(); }
    if (e.key === "u" && view) undo();
    if (e.key === "?") showKeys(KEYS);
    const by = { "[": -1, "]": 1 }[e.key];
    if (!by) return;
    chosen.prompt = prompts[(prompts.indexOf(chosen.prompt) + by + prompts.length) % prompts.length];
    bar.querySelectorAll("select")[2].value = chosen.prompt;
    open();
  }

  root.append(bar, h("div", { class: "workbench" }, h("div", { class: "side" }, sliders, foot), list));
  document.addEventListener("keydown", keys);
  await load();
  return () => document.removeEventListener("keydown", keys);
}

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
