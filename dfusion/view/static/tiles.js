// Parts of wide pictures: a mask sheet has T tiles across, the mask on top and item maps below.

import { h } from "./dom.js";

// Colours of the items over pictures: bright, whatever the page's own colours are.
export const TINTS = [[227, 119, 194], [64, 201, 214], [240, 178, 74], [160, 160, 255]];
export const colourOf = (row) => (row ? `var(--item${(row - 1) % TINTS.length})` : "var(--mask)");

// One tile of a sheet of `across` by `down` tiles; move(column) shows another one.
export function tile(source, across, down, column, row, name, loading = "eager") {
  const img = h("img", { src: source, alt: name, loading, decoding: "async", class: "sheet", style: {
    width: `${across * 100}%`, height: `${down * 100}%`, top: `${-row * 100}%`, left: `${-column * 100}%` } });
  const box = h("div", { class: "pic part" }, img);
  box.move = (to) => { img.style.left = `${-to * 100}%`; };
  return box;
}

const items = (data, pair) => data.prompts[pair.prompt]?.items.length ?? 0;

export function maskTile(source, data, pair, t, row = 0, name = `mask at t = ${t}`, loading) {
  const box = tile(source, data.steps, 1 + items(data, pair), data.steps - t, row, name, loading);
  box.classList.add("crisp");
  return box;
}

// The same as a layer over a picture: dark outside the mask, or an item's map in its colour.
export function layer(source, data, pair, t, row, loading) {
  const box = maskTile(source, data, pair, t, row, "", loading);
  box.classList.add("layer");
  box.style.filter = `url(#${row ? `tint${(row - 1) % TINTS.length}` : "veil"})`;
  filters();
  return box;
}

// A whole row of a sheet: every step, t = T on the left.
export function film(source, data, pair, row, name) {
  const box = tile(source, 1, 1 + items(data, pair), 0, row, name);
  box.classList.add("crisp", "film");
  box.style.aspectRatio = `${data.steps} / 1`;
  box.style.gridRow = row + 1;
  return box;
}

// Filters that turn a sheet's brightness into opacity. They are of the page itself: a script may not read the
// pixels of a picture from file://, but may show it through these.
function filters() {
  if (document.getElementById("veil")) return;
  const svg = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const filter = (id, [r, g, b], alpha) => svg("filter", { id, x: 0, y: 0, width: 1, height: 1, "color-interpolation-filters": "sRGB" },
    svg("feColorMatrix", { values: [r, g, b].map((v) => `0 0 0 0 ${v / 255}`).join(" ") + ` ${alpha}` }));
  document.body.append(svg("svg", { width: 0, height: 0, "aria-hidden": "true", class: "defs" },
    filter("veil", [10, 12, 18], "-1 0 0 0 1"), ...TINTS.map((tint, i) => filter(`tint${i}`, tint, "1 0 0 0 0"))));
}
