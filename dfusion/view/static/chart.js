// Line charts. Lines differ by dash and marker as well as colour.

const NS = "http://www.w3.org/2000/svg";
const WIDE = 460, HIGH = 240, RIGHT = 14, TOP = 10, BOTTOM = 42;
export const STYLES = [
  ["var(--c0)", "", "circle"], ["var(--c1)", "7 4", "square"], ["var(--c2)", "2 4", "triangle"],
  ["var(--c3)", "9 3 2 3", "diamond"], ["var(--c4)", "4 2", "circle"], ["var(--c5)", "1 3", "square"],
];

function s(tag, attributes, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function marker(shape, x, y, colour, r = 4) {
  const points = {
    square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], triangle: [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
    diamond: [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]],
  }[shape];
  if (!points) return s("circle", { cx: x, cy: y, r, fill: colour });
  return s("polygon", { points: points.map(([a, b]) => `${x + a * r},${y + b * r}`).join(" "), fill: colour });
}

export function swatch(n) {
  const [colour, dash, shape] = STYLES[n % STYLES.length];
  return s("svg", { viewBox: "0 0 34 12", width: 34, height: 12, "aria-hidden": "true" },
    s("line", { x1: 1, x2: 33, y1: 6, y2: 6, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }),
    marker(shape, 17, 6, colour));
}

// Round numbers from low to high: as few as there are with at least three.
export function ticks(low, high) {
  const top = Math.ceil(Math.log10(high - low || 1));
  const steps = [0, 1, 2].flatMap((k) => [10, 5, 2].map((m) => m * 10 ** (top - k - 1)));
  const between = (step) => {
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  };
  const step = steps.find((one) => between(one).length >= 3);
  return { values: between(step), digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

// lines: [{ name, style, points: [[x, y] …] }]
export function chart(title, xTitle, lines, { zero = false, percent = false } = {}) {
  const points = lines.flatMap((line) => line.points);
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [zero ? 0 : Math.min(...ys), Math.max(...ys)];
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const room = (y1 - y0) * 0.08 || Math.abs(y1) * 0.1 || 0.1;
  y0 = zero ? 0 : y0 - room;
  y1 = y1 + room;
  if (percent) y1 = Math.min(1.02, y1);
  const across = ticks(x0, x1), up = ticks(y0, y1);
  const text = (v, digits) => (percent ? `${Math.round(v * 100)} %` : v.toFixed(digits));
  const left = 16 + 7.8 * Math.max(...up.values.map((v) => text(v, up.digits).length));
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (WIDE - left - RIGHT);
  const y = (v) => HIGH - BOTTOM - ((v - y0) / (y1 - y0)) * (HIGH - TOP - BOTTOM);
  const said = lines.map((l) => `${l.name}: ${l.points.map((p) => text(p[1], 3)).join(", ")}`).join(". ");
  const svg = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title} by ${xTitle}. ${said}` });
  for (const v of up.values)
    svg.append(
      s("line", { x1: left, x2: WIDE - RIGHT, y1: y(v), y2: y(v), class: "rule" }),
      s("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, text(v, up.digits)));
  for (const v of across.values.filter(Number.isInteger))
    svg.append(s("text", { x: x(v), y: HIGH - BOTTOM + 17, "text-anchor": "middle" }, String(v)));
  svg.append(s("text", { x: (left + WIDE - RIGHT) / 2, y: HIGH - 6, "text-anchor": "middle" }, xTitle));
  for (const line of lines) {
    const [colour, dash, shape] = STYLES[line.style % STYLES.length];
    const path = line.points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    svg.append(s("path", { d: path, fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
    if (line.points.length <= 60)
      for (const [a, b] of line.points) {
        const dot = marker(shape, x(a), y(b), colour);
        dot.append(s("title", {}, `${line.name}, ${xTitle} ${a}: ${text(b, 4)}`));
        svg.append(dot);
      }
  }
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  figure.className = "chart";
  figure.append(caption, svg);
  return figure;
}
