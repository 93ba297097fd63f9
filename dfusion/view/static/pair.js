// One pair: its images large, over time and beside the same pair of another run, with the mask and items over them.

import { address, answers, get, h, image, number, openDialog, select, signed, typing } from "./dom.js";
import { keysButton, showKeys } from "./keys.js";
import { colourOf, film, layer, tile } from "./tiles.js";
import { files, marked, state, thresholdText, verdict } from "./words.js";
import { zoomable } from "./zoom.js";

const PLAY_MS = 350;
const SIDES = ["base", "reference", "target"];
const SHOWN = "Steps show the image the network predicts from each state (x̂₀), decoded roughly, by least squares on this round.";
const DROPPED = "This round's trajectories were not kept after training (--config.keep_trajectories), so every step shows the finished images.";
const ALONE = "Every step shows the finished images; the app (dfusion view) shows them at each step.";
const KEYS = [
  [["j", "k"], "next and previous pair"], [["←", "→"], "denoising step"], [["space"], "play the steps"],
  [["m"], "mask over the images"], [["i"], "items over the images"], [["+", "−"], "zoom; a click on an image zooms there, dragging moves all"],
  [["1", "2", "3"], "base, reference or target alone"], [["0"], "all three"], [["Esc"], "close"]];

// view: { exp, round, data, pairs, at, step, found, place, closed }. place(n, step) notes what is shown.
export function openPair(view) {
  const { pairs, found } = view;
  const main = { exp: view.exp, round: view.round, data: view.data }, { steps } = view.data;
  let at = view.at, step = view.step ?? steps, timer = null, moving = [], other = null, alone = null, turns = 0;
  const over = new Set(), opacity = { mask: 0.75, items: 0.7 };
  const zoom = zoomable(), body = h("div", { class: "pairbody" });
  const { dialog, heading, tools } = openDialog("", body, { keys, closed: () => {
    clearInterval(timer);
    sizes.disconnect();
    view.closed(at);
  } });
  dialog.classList.add("pair");
  const save = h("a", { class: "button", download: "", title: "Base, reference, mask and target in one picture" }, h("span", { class: "wide" }, "Save as "), "PNG");
  tools.append(
    h("button", { onclick: () => turn(-1), title: "Previous pair (k)", "aria-label": "Previous pair" }, "‹", h("span", { class: "wide" }, " Previous")),
    h("button", { onclick: () => turn(1), title: "Next pair (j)", "aria-label": "Next pair" }, h("span", { class: "wide" }, "Next "), "›"),
    answers ? "" : save, keysButton(KEYS));
  const slider = h("input", { type: "range", min: 0, max: steps, value: step, oninput: (e) => move(+e.target.value), "aria-label": "Denoising step" });
  const when = h("output", {}), play = h("button", { onclick: toggle }, "Play");
  const time = h("div", { class: "time" }, play, slider, when);
  const panes = h("div", { class: "panes" }), layers = h("div", { class: "group layers", role: "group", "aria-label": "Over the images" });
  const strength = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.75, "aria-label": "Opacity", oninput: (e) => shade(+e.target.value) });
  const which = h("div", { class: "group", role: "group", "aria-label": "Images" }, [null, ...SIDES].map((side) =>
    h("button", { "data-side": side ?? "", onclick: () => choose(side) }, side ?? "all")));
  const beside = h("div", { class: "beside" }), reel = h("div", { class: "reel" }), says = h("p", { class: "says" });
  const chips = h("div", { class: "chips" }), where = h("details", { class: "files" });
  const sizes = new ResizeObserver(() => zoom.apply());
  sizes.observe(panes);
  body.append(h("div", { class: "viewbar" }, which, zoom.buttons, layers, h("label", { class: "opacity" }, "Opacity ", strength), beside),
    panes, time, says, chips, reel, h("p", { class: "dim" }, `${main.data.kept ? SHOWN : answers ? ALONE : DROPPED} The mask and the item maps are the reference's.`), where);

  function keys(e) {
    if (typing(e)) return;
    const act = { ArrowLeft: () => move(step - 1), ArrowRight: () => move(step + 1), j: () => turn(1), k: () => turn(-1),
      m: () => cover(0), i: () => cover(...prompt().items.map((_, n) => n + 1)), "+": () => zoom.by(1), "=": () => zoom.by(1), "-": () => zoom.by(-1),
      0: () => choose(null), 1: () => choose("base"), 2: () => choose("reference"), 3: () => choose("target"), "?": () => showKeys(KEYS) };
    if (e.key === " " && e.target.tagName !== "BUTTON") { e.preventDefault(); toggle(); return; }
    if (!act[e.key] || e.target.type === "range" && e.key.startsWith("Arrow")) return;
    e.preventDefault();
    act[e.key]();
  }

  const pair = () => pairs[at];
  const prompt = () => main.data.prompts[pair().prompt] ?? { text: "", items: [] };

  function turn(by) {
    at = (at + by + pairs.length) % pairs.length;
    draw();
  }

  function choose(side) {
    alone = side;
    dialog.classList.toggle("alone", side !== null);
    for (const figure of panes.querySelectorAll("figure")) figure.hidden = side !== null && !figure.classList.contains(side);
    for (const b of which.children) b.setAttribute("aria-pressed", String(b.dataset.side === (side ?? "")));
    zoom.apply();
  }

  // Row 0 is the mask, the others are items: shown if one of them is not, else hidden.
  function cover(...rows) {
    const all = rows.every((row) => over.has(row));
    for (const row of rows) if (all) over.delete(row); else over.add(row);
    veil();
  }

  function veil() {
    for (const part of panes.querySelectorAll(".layer")) {
      const row = Number(part.dataset.row);
      part.hidden = !over.has(row);
      part.style.opacity = row ? opacity.items : opacity.mask;
    }
    for (const b of layers.children) b.setAttribute("aria-pressed", String(over.has(Number(b.dataset.row))));
  }

  function shade(value) {
    opacity.mask = opacity.items = value;
    veil();
  }

  function toggle() {
    if (timer) { clearInterval(timer); timer = null; play.textContent = "Play"; return; }
    play.textContent = "Stop";
    if (step === steps) move(0);
    timer = setInterval(() => { if (step === steps) toggle(); else move(step + 1); }, PLAY_MS);
  }

  // Places 0 … T-1 of the slider are the steps t = T … 1; T is the finished image.
  function move(to) {
    step = Math.max(0, Math.min(steps, to));
    slider.value = step;
    const done = step === steps, t = steps - step;
    const notes = [main.data.fused.includes(t) ? "" : " (not fused)", main.data.kept || answers ? "" : ": trajectories not kept"];
    when.textContent = done ? "finished images" : `step t = ${t}${notes.join("")}`;
    slider.setAttribute("aria-valuetext", when.textContent);
    // A finished image has no mask of its own: that of the middle fused step stands for it.
    const fused = main.data.fused, column = done ? steps - (fused[Math.floor(fused.length / 2)] ?? 1) : step;
    for (const part of moving) part.move(column);
    body.classList.toggle("done", done);
    body.style.setProperty("--T", steps);
    body.style.setProperty("--here", `${(100 * column) / steps}%`);
    view.place(pair().n, done ? null : t);
  }

  // One image of a pair of `of`, with the steps before it and the layers over it.
  function side(of, one, name) {
    const [kind, i] = name === "target" ? ["target_images", one.n] : ["images", one[name].i];
    const caption = h("figcaption", {}, h("b", {}, name), h("span", { class: "num" }, number(one[name].score)));
    if (name === "target" && !one.target.there)
      return h("figure", { class: name }, h("div", { class: "pic" }, h("div", { class: "none" }, "not yet")), caption);
    const stack = h("div", { class: "stack" }, h("div", { class: "pic final" }, h("img", { src: image(of.exp, of.round, kind, i), alt: name, draggable: "false" })));
    if (of.data.kept) {
      const walk = tile(address("/strip", { exp: of.exp, round: of.round, kind, i }), of.data.steps, 1, 0, 0, `${name} at this step`);
      walk.firstChild.addEventListener("load", () => walk.classList.add("loaded"));
      stack.append(walk);
      moving.push(walk);
    }
    if (one.mask !== null) for (let row = 0; row <= of.data.prompts[one.prompt].items.length; row++) {
      const part = layer(image(of.exp, of.round, "masks", one.n), of.data, one, 1, row);
      part.dataset.row = row;
      stack.append(part);
      moving.push(part);
    }
    return h("figure", { class: name }, zoom.pane(stack), caption);
  }

  function row(of, one, title) {
    return h("div", { class: "row" }, title ? h("p", { class: "rowname" }, h("b", {}, title), ` pair ${one.n}, ${state(one)}${one.gain === null ? "" : `, gain ${signed(one.gain)}`}`) : null,
      h("div", { class: "three" }, SIDES.map((name) => side(of, one, name))));
  }

  function draw() {
    const mine = ++turns, one = pair(), { items } = prompt();
    moving = [];
    zoom.clear();
    heading.replaceChildren(...marked(prompt()), h("small", {}, `Pair ${one.n}, ${state(one)}${one.gain === null ? "" : `, gain ${signed(one.gain)}`}`));
    save.href = address("/sheet", { exp: main.exp, round: main.round, n: one.n });
    save.download = `${main.exp.replaceAll("/", "_")}_${main.round}_pair${one.n}.png`;
    const rows = [row(main, one, other ? `${main.exp}, ${roundName(main.round)}` : "")];
    if (other) rows.push(again(one));
    panes.replaceChildren(...rows);
    panes.classList.toggle("two", rows.length > 1);
    layers.replaceChildren(...(one.mask === null ? [] : ["mask", ...items.map((item) => item.word)].map((name, n) =>
      h("button", { "data-row": n, style: { "--c": colourOf(n) }, onclick: () => cover(n) }, name))));
    says.textContent = verdict(one, main.data.adoption);
    const names = items.map((item, n) => h("span", { style: { "--c": colourOf(n + 1) } }, h("b", {}, item.word), ` ${thresholdText(item)}`));
    chips.replaceChildren(...names, one.mask === null ? "" : h("span", { style: { "--c": colourOf(0) } }, h("b", {}, "mask"), ` covers ${(100 * one.mask).toFixed(0)} % of the cells, mean of the fused steps`));
    if (!answers && items.length) get("pair", { exp: main.exp, round: main.round, n: one.n }).then(({ shares }) => {
      if (mine === turns && shares) names.forEach((node, n) => { node.lastChild.textContent = ` ${thresholdText(items[n], shares[n])}`; });
    }).catch(() => {});
    reel.replaceChildren(...(one.mask === null ? [] : [...["mask", ...items.map((item) => item.word)].map((name, n) =>
      [h("span", { class: "name", style: { "--c": colourOf(n), "grid-row": n + 1 } }, name), film(image(main.exp, main.round, "masks", one.n), main.data, one, n, `${name}, every step`)]).flat(), marker(items.length + 1)]));
    where.replaceChildren(h("summary", {}, "Files and seed"), h("p", { class: "dim" }, seed()),
      h("ul", {}, files(main.data, main.round, one).map(([name, path]) => h("li", {}, `${name} `, answers ? h("a", { href: path }, path) : h("code", {}, path)))));
    choose(alone);
    veil();
    move(step);
  }

  function seed() {
    const { seed: s, round } = main.data.noise, [b, r] = [pair().base.i, pair().reference.i];
    return s === null || s === undefined ? `base is sample ${b}, reference sample ${r}`
      : `Noise: seed ${s}, round ${round}, sample ${b} (base and target) and ${r} (reference).`;
  }

  // Where the slider is, over the films; a click there moves it.
  function marker(rows) {
    return h("div", { class: "marker", style: { "grid-row": `1 / span ${rows}` }, onclick: (e) => {
      const r = e.currentTarget.getBoundingClientRect();
      move(Math.floor(((e.clientX - r.left) / r.width) * steps));
    } }, h("i", {}));
  }

  // The pair of the other run that started from the same noise, or else has the same number or prompt.
  function again(one) {
    const { noise } = other.data, text = prompt().text;
    const same = other.data.pairs.filter((p) => other.data.prompts[p.prompt]?.text === text);
    const alike = noise.seed === main.data.noise.seed && noise.round === main.data.noise.round;
    const found = (alike && same.find((p) => p.base.i === one.base.i)) || same.find((p) => p.n === one.n) || same[0];
    const title = `${other.exp}, ${roundName(other.round)}:`;
    if (!found) return h("p", { class: "rowname" }, h("b", {}, title), " no pair of this prompt");
    const how = alike && found.base.i === one.base.i ? "same noise of the base," : "other noise,";
    return row(other, found, `${title} ${how}`);
  }

  const runs = found.flatMap((e) => e.rounds.map((k) => [`${e.name}|epoch${k}`, `${e.name}, round ${k}`])).filter(([id]) => id !== `${main.exp}|${main.round}`);
  if (runs.length) beside.append(select("Beside", [["", "no other run"], ...runs], "", async (value) => {
    const [exp, round] = value.split("|");
    other = value ? { exp, round, data: await get("round", { exp, round }) } : null;
    draw();
  }));
  draw();
  slider.focus();
  return { dialog, show: (n, to) => { at = pairs.findIndex((p) => p.n === n); step = to ?? steps; draw(); } };
}

const roundName = (round) => round.replace("epoch", "round ");
