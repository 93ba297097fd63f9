// One pair over time: what the network saw in it at every step, the mask and the item maps.

import { address, h, image, number, openDialog, signed } from "./dom.js";
import { maskTile, tile } from "./tiles.js";

const PLAY_MS = 350;
const SHOWN = "Steps show the image the network predicts from each state (x̂₀), decoded roughly, by least squares on this round.";
const DROPPED = "This round's trajectories were not kept after training (--config.keep_trajectories), so every step shows the finished images.";

export function openPair(view) {
  const { exp, round, data, pairs } = view;
  let at = view.at, step = data.steps, veiled = false, timer = null, moving = [], veils = [];
  const body = h("div", { class: "pairbody" });
  const { dialog, heading, tools } = openDialog("", body, { keys, closed: () => clearInterval(timer) });
  tools.append(
    h("button", { onclick: () => turn(-1), title: "Previous pair (k)" }, "‹ Previous"),
    h("button", { onclick: () => turn(1), title: "Next pair (j)" }, "Next ›"));
  const slider = h("input", { type: "range", min: 0, max: data.steps, value: step, oninput: (e) => move(+e.target.value), "aria-label": "Denoising step" });
  const when = h("output", {});
  const play = h("button", { onclick: toggle }, "Play");
  const veil = h("button", { "aria-pressed": "false", onclick: shade }, "Mask over images");
  const time = h("div", { class: "time" }, play, slider, when, veil);
  const help = h("p", { class: "dim keys" }, "Keys: ← → step, space plays, m mask over images, j k next and previous pair, Esc closes.");

  function keys(e) {
    const act = { ArrowLeft: () => move(step - 1), ArrowRight: () => move(step + 1), j: () => turn(1), k: () => turn(-1), m: shade };
    if (e.key === " " && e.target.tagName !== "BUTTON") { e.preventDefault(); toggle(); return; }
    if (!act[e.key] || e.target === slider && e.key.startsWith("Arrow")) return;
    e.preventDefault();
    act[e.key]();
  }

  function turn(by) {
    at = (at + by + pairs.length) % pairs.length;
    draw();
  }

  function shade() {
    veiled = !veiled;
    veil.setAttribute("aria-pressed", veiled);
    move(step);
  }

  function toggle() {
    if (timer) { clearInterval(timer); timer = null; play.textContent = "Play"; return; }
    play.textContent = "Stop";
    if (step === data.steps) move(0);
    timer = setInterval(() => { if (step === data.steps) toggle(); else move(step + 1); }, PLAY_MS);
  }

  // Places 0 … T-1 of the slider are the steps t = T … 1; T is the finished image.
  function move(to) {
    step = Math.max(0, Math.min(data.steps, to));
    slider.value = step;
    const done = step === data.steps, t = data.steps - step;
    const notes = [data.fused.includes(t) ? "" : " (not fused)", data.kept ? "" : ": trajectories not kept"];
    when.textContent = done ? "finished images" : `step t = ${t}${notes.join("")}`;
    slider.setAttribute("aria-valuetext", when.textContent);
    const column = Math.min(step, data.steps - 1);
    for (const part of moving) part.move(column);
    body.classList.toggle("done", done);
    for (const v of veils) v.hidden = !veiled;
  }

  function draw() {
    const pair = pairs[at], prompt = data.prompts[pair.prompt];
    const source = (kind, i) => image(exp, round, kind, i);
    const strip = (kind, i) => address("/strip", { exp, round, kind, i });
    const mask = () => maskTile(source("masks", pair.n), data, pair, 1);
    moving = []; veils = [];
    const state = pair.adopted === null ? "not decided" : pair.adopted ? "adopted" : "not adopted: the reference takes its place";
    heading.replaceChildren(prompt.text, h("small", {}, `Pair ${pair.n}, ${state}${pair.gain === null ? "" : `, gain ${signed(pair.gain)}`}`));

    function side(name, kind, i, score, there = true) {
      if (!there) return h("figure", { class: name }, h("div", { class: "pic" }, h("div", { class: "none" }, "not yet")), h("figcaption", {}, h("b", {}, name)));
      const box = h("div", { class: "stack" }, h("div", { class: "pic final" }, h("img", { src: source(kind, i), alt: name })));
      if (data.kept) {
        const walk = tile(strip(kind, i), data.steps, 1, 0, 0, `${name} at this step`);
        walk.firstChild.addEventListener("load", () => walk.classList.add("loaded"));
        box.append(walk);
        moving.push(walk);
      }
      if (pair.mask) {
        const over = mask();
        over.classList.add("veil");
        moving.push(over);
        veils.push(over);
        box.append(over);
      }
      return h("figure", { class: name }, box, h("figcaption", {}, h("b", {}, name), h("span", { class: "num" }, number(score))));
    }

    const rows = h("div", { class: "three" },
      side("base", "images", pair.base.i, pair.base.score),
      side("reference", "images", pair.reference.i, pair.reference.score),
      side("target", "target_images", pair.n, pair.target.score, pair.target.there));
    const maps = pair.mask ? ["mask", ...prompt.items].map((name, row) => {
      const box = maskTile(source("masks", pair.n), data, pair, 1, row, name);
      moving.push(box);
      return h("figure", { class: row ? "itemmap" : "mask" }, box, h("figcaption", {}, h("b", {}, name)));
    }) : [];
    body.replaceChildren(rows, time, h("div", { class: "maps" }, maps),
      h("p", { class: "dim" }, `${data.kept ? SHOWN : DROPPED} Item maps are the reference's.`), help);
    move(step);
  }

  draw();
  slider.focus();
  return dialog;
}
