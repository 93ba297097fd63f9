// Panes that are zoomed and moved together, to 1 : 1 (one pixel of the image on one of the screen) and beyond.

import { h } from "./dom.js";

const LEVELS = [0, 1, 2, 4, 8]; // pixels of the screen per pixel of the image; 0: the whole image
const CLICK_PX = 5; // a shorter drag is a click

export function zoomable() {
  let panes = [], level = 0, x = 0.5, y = 0.5; // x, y: what is in the middle, from 0 to 1

  const sizeOf = (pane) => pane.box.getBoundingClientRect().width;
  const scaleOf = (pane, at = level) => at === 0 ? 1 : (at * (pane.image.naturalWidth || sizeOf(pane))) / sizeOf(pane);

  function apply() {
    for (const pane of panes) {
      const size = sizeOf(pane), scale = scaleOf(pane);
      if (!size) continue;
      const shift = (middle) => scale <= 1 ? (size - size * scale) / 2
        : Math.min(0, Math.max(size - size * scale, size / 2 - middle * size * scale));
      pane.inner.style.transform = level ? `translate(${shift(x)}px, ${shift(y)}px) scale(${scale})` : "";
      pane.box.classList.toggle("near", level > 1);
      pane.box.classList.toggle("zoomed", scale > 1);
    }
    [...buttons.children].forEach((b, n) => b.setAttribute("aria-pressed", String(LEVELS[n] === level)));
  }

  function set(to, middle) {
    level = to;
    if (middle) [x, y] = middle;
    apply();
  }

  const by = (step) => set(LEVELS[Math.max(0, Math.min(LEVELS.length - 1, LEVELS.indexOf(level) + step))]);

  const buttons = h("div", { class: "group", role: "group", "aria-label": "Zoom" }, LEVELS.map((at) =>
    h("button", { onclick: () => set(at) }, at ? `${at}:1` : "Fit")));

  // A pane of `inner`, whose first image has the size that counts.
  function pane(inner) {
    const box = h("div", { class: "zoom" }, inner), one = { box, inner, image: inner.querySelector("img") };
    panes.push(one);
    one.image.addEventListener("load", apply);
    let from = null;
    const where = (e) => {
      const r = box.getBoundingClientRect(), scale = scaleOf(one), size = r.width;
      const at = (px, middle) => scale <= 1 ? (px - (size - size * scale) / 2) / (size * scale)
        : (px - Math.min(0, Math.max(size - size * scale, size / 2 - middle * size * scale))) / (size * scale);
      return [at(e.clientX - r.left, x), at(e.clientY - r.top, y)];
    };
    box.addEventListener("pointerdown", (e) => { from = { px: e.clientX, py: e.clientY, x, y, far: 0 }; box.setPointerCapture(e.pointerId); });
    box.addEventListener("pointermove", (e) => {
      if (!from) return;
      const dx = e.clientX - from.px, dy = e.clientY - from.py, whole = sizeOf(one) * scaleOf(one);
      from.far = Math.max(from.far, Math.hypot(dx, dy));
      if (scaleOf(one) <= 1) return;
      const half = sizeOf(one) / 2 / whole, keep = (v) => Math.max(half, Math.min(1 - half, v));
      [x, y] = [keep(from.x - dx / whole), keep(from.y - dy / whole)];
      apply();
    });
    box.addEventListener("pointerup", (e) => {
      const click = from && from.far < CLICK_PX;
      from = null;
      if (!click) return;
      set(level ? 0 : LEVELS.find((at) => at && scaleOf(one, at) > 1.2) ?? 8, where(e));
    });
    box.addEventListener("pointercancel", () => { from = null; });
    return box;
  }

  return { pane, buttons, by, set, apply, clear: () => { panes = []; } };
}
