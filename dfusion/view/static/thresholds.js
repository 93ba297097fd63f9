// Thresholds by eye: a slider per item, the mask over every sample, saved into the mask file.

import { blank, get, h, image, number, percent, post, say, select } from "./dom.js";

const STEPS = 400; // positions of a slider, of equal ratio
const HEAT = [["item0", [227, 119, 194]], ["item1", [64, 201, 214]], ["item2", [240, 178, 74]], ["item3", [160, 160, 255]]];

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
  let view, values = [], prompts = [], busy = false, again = false, otsu = [], dirty = false, turn = 0;

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
      select("Prompt", prompts.map((p) => [p, p]), chosen.prompt, (v) => { chosen.prompt = v; open(); }));
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
    sliders.replaceChildren(steps(), ...view.items.map(item));
    list.replaceChildren(...view.samples.map(sample));
    footer();
    await update();
  }

  // Which step's mask is shown: one, or the mean over the fused ones.
  function steps() {
    const t = [["fused", "all fused steps"], ...Array.from({ length: view.steps }, (_, i) => [String(view.steps - i), `t = ${view.steps - i}`])];
    const looks = [["mask", "mask over the image"], ["maps", "item maps"]];
    return h("div", { class: "bar" },
      select("Step", t, chosen.t, (v) => { chosen.t = v; update(); }),
      select("Show", looks, chosen.look, (v) => { chosen.look = v; update(); }),
      h("p", { class: "dim" }, `merged by ${view.merge}`));
  }

  const toValue = (item, place) => item.low * (item.high / item.low) ** (place / STEPS);
  const toPlace = (item, value) => Math.max(0, Math.min(STEPS, Math.round((Math.log(value / item.low) / Math.log(item.high / item.low)) * STEPS)));

  function item(one, i) {
    const id = `thr-${i}`;
    const slider = h("input", { type: "range", id, min: 0, max: STEPS, class: "thr", oninput: (e) => set(toValue(one, +e.target.value)) });
    const typed = h("input", { type: "number", min: 0, max: 1, step: "any", "aria-label": `Threshold of ${one.word}`, onchange: (e) => {
      const value = Number(e.target.value);
      if (e.target.value !== "" && value >= 0 && value <= 1) set(value); else paint();
    } });
    const auto = h("input", { type: "checkbox", onchange: (e) => set(e.target.checked ? null : otsu[i] || toValue(one, STEPS / 2)) });
    const most = Math.max(...one.counts, 1);
    const bars = h("div", { class: "bars", "aria-hidden": "true" }, one.counts.map((c) => h("i", { style: { height: `${c ? Math.max(4, (100 * c) / most) : 0}%` } })));
    function set(value) {
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
      slider.setAttribute("aria-valuetext", value === null ? "automatic" : String(value));
      const cut = (slider.value / STEPS) * one.counts.length;
      [...bars.children].forEach((b, n) => b.classList.toggle("in", n >= cut));
    }
    one.paint = paint;
    paint();
    return h("div", { class: "item", style: { "--c": `var(--${HEAT[i % HEAT.length][0]})` } },
      h("label", { for: id, class: "word" }, one.word), h("div", { class: "slide" }, bars, slider), typed,
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
    one.box.classList.toggle("heat", maps);
    const steps = chosen.t === "fused" ? view.fused : [Number(chosen.t)];
    for (let c = 0; c < cells; c++) {
      if (!maps) {
        pixels.data.set([10, 12, 18, Math.round((255 - mask[c]) * 0.82)], 4 * c);
        continue;
      }
      const colour = [0, 0, 0];
      view.items.forEach((_, i) => {
        let sum = 0;
        for (const t of steps) sum += one.bytes[((view.steps - t) * view.items.length + i) * cells + c];
        HEAT[i % HEAT.length][1].forEach((v, k) => { colour[k] += (v * sum) / steps.length / 255; });
      });
      pixels.data.set([...colour.map((v) => Math.min(255, v)), 255], 4 * c);
    }
    context.putImageData(pixels, 0, 0);
    one.covered.textContent = percent(coverage);
    one.covered.title = "of the grid is inside the mask";
  }

  function footer() {
    const where = view.in_config ? [h("code", {}, view.file)] :
      
      [h("code", {}, view.file), h("span", { class: "dim" }, ". This run has no mask file; begin others with ", h("code", { class: "line" }, `--config.mask_thr_file ${view.file}`))];
    foot.replaceChildren(
      h("button", { class: "primary", onclick: save }, "Save (s)"),
      h("p", {}, dirty ? "Not saved yet. " : view.saved ? "As saved in " : "Not in the file yet: ", where));
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
      say("Saved. Runs begun from now on use it.");
    } catch (error) {
      say(error.message, true);
    }
  }

  function keys(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest?.("select, input[type=number]")) return;
    if (e.key === "s") { e.preventDefault(); save(); }
    const by = { "[": -1, "]": 1 }[e.key];
    if (!by) return;
    chosen.prompt = prompts[(prompts.indexOf(chosen.prompt) + by + prompts.length) % prompts.length];
    bar.querySelectorAll("select")[2].value = chosen.prompt;
    open();
  }

  root.append(bar, h("div", { class: "workbench" }, h("div", { class: "side" }, sliders, foot,
    h("p", { class: "dim keys" }, "Keys: Tab to a slider, ← → move it, s saves, [ ] previous and next prompt.")), list));
  document.addEventListener("keydown", keys);
  await load();
  return () => document.removeEventListener("keydown", keys);
}

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
