// Parts of wide pictures: a mask sheet has T tiles across, the mask on top and item maps below.

import { h } from "./dom.js";

// One tile of a sheet of `across` by `down` tiles; move(column) shows another one.
export function tile(source, across, down, column, row, name, loading = "eager") {
  const img = h("img", { src: source, alt: name, loading, decoding: "async", class: "sheet", style: {
    width: `${across * 100}%`, height: `${down * 100}%`, top: `${-row * 100}%`, left: `${-column * 100}%` } });
  const box = h("div", { class: "pic part" }, img);
  box.move = (to) => { img.style.left = `${-to * 100}%`; };
  return box;
}

export function maskTile(source, data, pair, t, row = 0, name = `mask at t = ${t}`, loading) {
  const items = data.prompts[pair.prompt]?.items.length ?? 1;
  const box = tile(source, data.steps, 1 + items, data.steps - t, row, name, loading);
  box.classList.add("crisp");
  return box;
}
