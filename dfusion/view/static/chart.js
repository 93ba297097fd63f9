// Line charts. Lines differ by dash and marker as well as colour; the values under the pointer are shown.

const NS = "http://www.w3.org/2000/svg";
const WIDE = 460, HIGH = 250, RIGHT = 14, TOP = 10, BOTTOM = 42;
const COLOURS = 7;
const DASHES = ["", "7 4", "2 4", "9 3 2 3", "4 2"];
const SHAPES = ["circle", "square", "triangle", "diamond"];
export const MOST = 7; // lines that differ in colour

function styleOf(n) {
  return { colour: `var(--c${n % COLOURS})`, dash: DASHES[n % DASHES.length], shape: SHAPES[n % SHAPES.length] };
}

function s(tag, attributes, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function marker(shape, x, y, colour, r = 4) {
  const points = {
    square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], triangle: [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
    diamond: [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]],
  }[shape];
  if (!points) return s("circle", { cx: x, cy: y, r, fill: colour });
  return s("polygon", { points: points.map(([a, b]) => `${x + a * r},${y + b * r}`).join(" "), fill: colour });
}

export function swatch(n) {
  const { colour, dash, shape } = styleOf(n);
  return s("svg", { viewBox: "0 0 34 12", width: 34, height: 12, "aria-hidden": "true", class: "swatch" },
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

// The mean over several lines at each x, and one standard deviation to either side.
export function overSeeds(lines) {
  const at = new Map();
  for (const [x, y] of lines.flatMap((line) => line.points)) at.set(x, [...(at.get(x) ?? []), y]);
  const points = [], band = [];
  for (const [x, ys] of [...at].sort((a, b) => a[0] - b[0])) {
    const mean = ys.reduce((a, b) => a + b) / ys.length;
    points.push([x, mean]);
    if (ys.length < 2) continue;
    const sd = Math.sqrt(ys.reduce((sum, y) => sum + (y - mean) ** 2, 0) / (ys.length - 1));
    band.push([x, mean - sd, mean + sd]);
  }
  return { points, band };
}

// What the axes span, and where a value is.
function scales(lines, { zero, percent }) {
  const xs = lines.flatMap((line) => line.points.map((p) => p[0]));
  const ys = lines.flatMap((line) => [...line.points.map((p) => p[1]), ...(line.band ?? []).flatMap((b) => b.slice(1))]);
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
  let [x0, x1] = [least(xs), most(xs)];
  let [y0, y1] = [zero ? 0 : least(ys), most(ys)];
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const room = (y1 - y0) * 0.08 || Math.abs(y1) * 0.1 || 0.1;
  y0 = zero ? 0 : y0 - room;
  y1 = percent ? Math.min(1.02, y1 + room) : y1 + room;
  const across = ticks(x0, x1), up = ticks(y0, y1);
  const text = (v, digits) => (percent ? `${(v * 100).toFixed(Math.max(0, digits - 2))} %` : v.toFixed(digits)).replace("-", "−");
  const left = 16 + 7.8 * Math.max(...up.values.map((v) => text(v, up.digits).length));
  return {
    across, up, left, text,
    x: (v) => left + ((v - x0) / (x1 - x0)) * (WIDE - left - RIGHT),
    y: (v) => HIGH - BOTTOM - ((v - y0) / (y1 - y0)) * (HIGH - TOP - BOTTOM),
  };
}

function axes(svg, scale, xTitle) {
  for (const v of scale.up.values)
    svg.append(
      s("line", { x1: scale.left, x2: WIDE - RIGHT, y1: scale.y(v), y2: scale.y(v), class: "rule" }),
      s("text", { x: scale.left - 7, y: scale.y(v) + 4, "text-anchor": "end" }, scale.text(v, scale.up.digits)));
  for (const v of scale.across.values.filter(Number.isInteger))
    svg.append(s("text", { x: scale.x(v), y: HIGH - BOTTOM + 17, "text-anchor": "middle" }, String(v)));
  svg.append(s("text", { x: (scale.left + WIDE - RIGHT) / 2, y: HIGH - 6, "text-anchor": "middle" }, xTitle));
}

const path = (points, { x, y }) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");

function draw(svg, line, scale) {
  const { colour, dash, shape } = styleOf(line.style);
  if (line.band?.length > 1) {
    const low = line.band.map(([x, a]) => [x, a]), high = line.band.map(([x, , b]) => [x, b]).reverse();
    svg.append(s("polygon", { class: "band", fill: colour, points: [...low, ...high].map(([a, b]) => `${scale.x(a)},${scale.y(b)}`).join(" ") }));
  }
  svg.append(s("path", { d: path(line.points, scale), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
  if (line.points.length <= 40)
    for (const [a, b] of line.points) svg.append(marker(shape, scale.x(a), scale.y(b), colour));
}

// The values of all lines at the x that is nearest to the pointer, or that the arrow keys choose.
function readings(svg, box, lines, scale, xTitle) {
  const xs = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const rule = s("line", { y1: TOP, y2: HIGH - BOTTOM, class: "cursor", visibility: "hidden" });
  let at = -1;
  svg.append(rule);
  const hide = () => { rule.setAttribute("visibility", "hidden"); box.hidden = true; at = -1; };
  function show(n) {
    at = Math.max(0, Math.min(xs.length - 1, n));
    const x = xs[at], place = scale.x(x);
    rule.setAttribute("x1", place); rule.setAttribute("x2", place); rule.setAttribute("visibility", "visible");
    const rows = lines.map((line) => [line, line.points.find((p) => p[0] === x), line.band?.find((b) => b[0] === x)])
      .filter(([, point]) => point).sort((a, b) => b[1][1] - a[1][1]);
    box.replaceChildren(Object.assign(document.createElement("b"), { textContent: `${xTitle} ${x}` }),
      ...rows.map(([line, point, band]) => {
        const row = document.createElement("span");
        const value = scale.text(point[1], 4) + (band ? ` ± ${scale.text(band[2] - point[1], 4)}` : "");
        row.append(swatch(line.style), `${value}  ${line.name}`);
        return row;
      }));
    box.hidden = false;
    box.classList.toggle("left", place > WIDE / 2);
  }
  const near = (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * WIDE;
    show(xs.reduce((best, v, n) => (Math.abs(scale.x(v) - x) < Math.abs(scale.x(xs[best]) - x) ? n : best), 0));
  };
  svg.addEventListener("pointermove", near);
  svg.addEventListener("pointerdown", near);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(at + 1);
    else if (event.key === "ArrowLeft") show(at < 0 ? xs.length - 1 : at - 1);
    else return;
    event.preventDefault();
  });
}

// lines: [{ name, style, points: [[x, y] …], band: [[x, low, high] …] }]
export function chart(title, xTitle, lines, options = {}) {
  const scale = scales(lines, options);
  const last = lines.map((l) => `${l.name}: ${scale.text(l.points.at(-1)[1], 3)}`).join(", ");
  const svg = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", tabindex: 0, "aria-label": `${title} by ${xTitle}. Last: ${last}` });
  axes(svg, scale, xTitle);
  for (const line of lines) draw(svg, line, scale);
  const figure = document.createElement("figure"), caption = document.createElement("figcaption"), box = document.createElement("div");
  caption.textContent = title;
  figure.className = "chart";
  box.className = "reading";
  box.hidden = true;
  readings(svg, box, lines, scale, xTitle);
  figure.append(caption, svg, box);
  return figure;
}
