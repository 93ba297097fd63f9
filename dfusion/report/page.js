"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SIDES = ["base", "reference", "mask", "target"];
/** An element; a child that is a string becomes text, never markup. */
function el(tag, attrs = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (k.startsWith("--")) node.style.setProperty(k, v);
    else if (v !== null && v !== false) node.setAttribute(k, v);
  }
  node.append(...children.filter((c) => c !== null));
  return node;
}
const digits = (v) => Math.abs(v) < 10 ? 3 : 1;
const num = (v) => v === null ? "–" : v.toFixed(digits(v)).replace("-", "−");
const signed = (v) => v === null ? "–" : (v >= 0 ? "+" : "") + num(v);
const percent = (v) => v === null ? "–" : (100 * v).toFixed(v < 0.1 && v > 0 ? 1 : 0) + " %";
const text = (p) => D.prompts[p].text;
const state = (p) => p.adopted === null ? "undecided" : p.adopted ? "adopted" : "fallback";
const gain = (p) => p.target.score === null || p.base.score === null ? null : p.target.score - p.base.score;
const key = (p) => `#r${p.round}p${p.n}`;
const pairs = D.rounds.flatMap((r) => r.pairs);
for (const r of D.rounds) for (const p of r.pairs) p.round = r.number;

// Pictures
function picture(src, alt, name = "") {
  if (!src) return el("div", { class: "pic " + name }, "not yet");
  const img = el("img", { src, alt, loading: "lazy", decoding: "async" });
  img.addEventListener("load", () => img.classList.toggle("crisp", img.naturalWidth < 40));
  return el("div", { class: "pic " + name }, img);
}
function meanMask(mask) {
  const canvas = el("canvas", { width: mask.gw, height: mask.gh, role: "img", "aria-label": "mean mask" });
  const pixels = new ImageData(mask.gw, mask.gh);
  for (let i = 0; i < mask.mean.length; i++)
    pixels.data.set([0, 1, 2].map(() => 17 * parseInt(mask.mean[i], 16)).concat(255), 4 * i);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
/** A piece of the sprite sheet: one row of it, and one step or (step = null) all of them. */
function mapPiece(mask, rows, row, step) {
  const node = el("div", row ? { class: "map heat", "--h": `var(--heat${(row - 1) % 4})` } : { class: "map" });
  node.style.backgroundImage = `url("${mask.src}")`;
  node.style.backgroundSize = `${step === null ? 100 : mask.steps * 100}% ${rows * 100}%`;
  const x = step === null || mask.steps < 2 ? 0 : 100 * step / (mask.steps - 1);
  node.style.backgroundPosition = `${x}% ${rows < 2 ? 0 : 100 * row / (rows - 1)}%`;
  if (step === null) node.style.aspectRatio = `${mask.steps * mask.gw} / ${mask.gh}`;
  return node;
}
function over(pair, map) {
  const plain = $("masks").value === "plain" || !pair.reference.src;
  if (plain) return el("div", { class: "pic" }, map);
  const box = picture(pair.reference.src, "reference under the mask", "over");
  box.append(map);
  return box;
}
function panel(pair, side) {
  const it = pair[side], alt = `${side}: ${text(pair.prompt)}`;
  const box = side !== "mask" ? picture(it.src, alt, side)
    : it ? over(pair, meanMask(it)) : picture(null);
  const value = side === "mask" ? (it ? percent(it.coverage) : "") : num(it.score);
  return el("figure", { "--c": `var(--${side})` }, box,
    el("figcaption", {}, side, el("span", { class: "num" }, value)));
}
/** Scores on a line that all pairs share. */
function axis(values, low, high, span) {
  const at = (v) => `${100 * (high > low ? (v - low) / (high - low) : 0.5)}%`;
  const line = el("div", { class: "axis", "aria-hidden": "true" });
  const [a, b] = span ? [values.base, values.target] : [null, null];
  if (span && a !== null && b !== null) {
    const bar = el("i", { class: "span", "--c": b >= a ? "var(--target)" : "var(--base)" });
    bar.style.left = at(Math.min(a, b));
    bar.style.width = `calc(${at(Math.max(a, b))} - ${at(Math.min(a, b))})`;
    line.append(bar);
  }
  for (const [name, v] of Object.entries(values)) if (v !== null) {
    const dot = el("i", { "--c": `var(--${name})`, title: `${name} ${num(v)}` });
    dot.style.left = at(v);
    line.append(dot);
  }
  return line;
}
const known = pairs.flatMap((p) => [p.base.score, p.reference.score, p.target.score]).filter((v) => v !== null);
const LOW = known.reduce((a, b) => Math.min(a, b), Infinity), HIGH = known.reduce((a, b) => Math.max(a, b), -Infinity);
const pairAxis = (p) => axis({ base: p.base.score, reference: p.reference.score, target: p.target.score }, LOW, HIGH, true);
function card(pair) {
  const s = state(pair), g = gain(pair);
  return el("article", { class: `card ${s}` },
    el("header", {},
      el("h3", { title: text(pair.prompt) }, el("a", { href: key(pair) }, text(pair.prompt))),
      g === null ? null : el("span", { class: "num", title: "target − base" }, signed(g)),
      el("span", { class: "badge " + s }, s),
      el("span", { class: "num" }, `${$("round").value === "all" ? `r${pair.round} ` : ""}#${pair.n}`)),
    el("div", { class: "row" }, ...SIDES.map((side) => panel(pair, side))),
    known.length ? pairAxis(pair) : null);
}

// Summary
const COLUMNS = [["images", (s) => s.images], ["pairs", (s) => s.pairs], ["all", (s) => num(s.mean.images)],
  ["base", (s) => num(s.mean.base)], ["reference", (s) => num(s.mean.reference)], ["target", (s) => num(s.mean.target)],
  ["gain", (s) => signed(s.gain)], ["adopted", (s) => s.decided ? `${s.adopted} / ${s.decided}` : "–"],
  ["mask", (s) => percent(s.coverage)]];
function table(head, rows) {
  return el("div", { class: "scroll" }, el("table", { class: "num" },
    el("thead", {}, el("tr", {}, ...[head, ...COLUMNS.map((c) => c[0])].map((c) => el("th", { scope: "col" }, c)))),
    el("tbody", {}, ...rows.map(([name, press, s]) => el("tr", {}, el("td", {}, el("button", { onclick: press }, name)),
      ...COLUMNS.map((c) => el("td", {}, String(c[1](s)))))))));
}
function tile(value, label, share = null) {
  const bar = share === null ? null : el("div", { class: "bar" }, el("i"));
  if (bar) bar.firstChild.style.width = 100 * share + "%";
  return el("div", { class: "tile" }, el("b", { class: "num" }, value), el("span", {}, label), bar);
}
function scoresTile(round) {
  const m = round.summary.mean, shown = Object.entries(m).filter((e) => e[1] !== null);
  if (!shown.length) return null;
  const all = round.images.map((i) => i.score).concat(shown.map((e) => e[1])).filter((v) => v !== null);
  return el("div", { class: "tile wide" }, el("span", {}, `Mean score${round.reward ? ` (${round.reward})` : ""}`),
    axis(m, Math.min(...all), Math.max(...all), false),
    el("div", { class: "keys num" }, ...shown.map(([name, v]) => el("span", { "--c": `var(--${name})` },
      name === "images" ? "all " : name + " ", el("b", {}, num(v))))));
}
function chart() {
  const W = Math.max(300, Math.min(640, innerWidth - 80)), H = 170, lines = ["images", "base", "reference", "target"], svg = "http://www.w3.org/2000/svg";
  const all = D.rounds.flatMap((r) => lines.map((l) => r.summary.mean[l])).filter((v) => v !== null);
  const low = Math.min(...all), high = Math.max(...all), node = document.createElementNS(svg, "svg");
  const x = (i) => 56 + i * (W - 150) / (D.rounds.length - 1);
  const y = (v) => high > low ? H - 24 - (v - low) / (high - low) * (H - 44) : H / 2;
  const add = (tag, attrs, content = "") => {
    const part = node.appendChild(document.createElementNS(svg, tag));
    for (const [k, v] of Object.entries(attrs)) part.setAttribute(k, v);
    part.textContent = content;
  };
  for (const v of new Set([low, high])) add("text", { x: 0, y: y(v) + 4, "font-size": 12, fill: "var(--dim)" }, num(v));
  D.rounds.forEach((r, i) => add("text", { x: x(i), y: H - 4, "font-size": 12, fill: "var(--dim)", "text-anchor": "middle" },
    "round " + r.number));
  const ends = [];
  for (const l of lines) {
    const points = D.rounds.map((r, i) => [x(i), r.summary.mean[l]]).filter((p) => p[1] !== null).map((p) => [p[0], y(p[1])]);
    if (!points.length) continue;
    add("polyline", { points: points.map((p) => p.join()).join(" "), fill: "none", stroke: `var(--${l})`, "stroke-width": 2 });
    for (const p of points) add("circle", { cx: p[0], cy: p[1], r: 3.5, fill: `var(--${l})` });
    ends.push([l, ...points.at(-1)]);
  }
  let free = 0; // labels at the line ends, from the top, none over another
  for (const [l, ex, ey] of ends.sort((a, b) => a[2] - b[2])) {
    const at = Math.max(ey, free);
    free = at + 14;
    add("text", { x: ex + 10, y: at + 4, "font-size": 12, fill: `var(--${l})` }, l === "images" ? "all" : l);
  }
  for (const [k, v] of Object.entries({ viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": "Mean scores by round" }))
    node.setAttribute(k, v);
  return all.length ? el("div", { class: "scroll" }, node) : "";
}
function samples(round) {
  const box = el("details", {}, el("summary", {}, `All ${round.images.length} samples, by prompt`));
  box.addEventListener("toggle", () => {
    for (const s of box.children.length > 1 ? [] : round.by_prompt) box.append(el("div", { class: "strip" },
      el("h4", {}, text(s.prompt)), el("div", {}, ...round.images.filter((i) => i.prompt === s.prompt)
        .sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity) || a.index - b.index)
        .map((i) => el("a", { href: i.src, target: "_blank", class: "num" }, picture(i.src, `sample ${i.index}`), num(i.score))))));
  });
  box.open = !round.pairs.length;
  return box;
}
/** The same noise before and after training: a column for each comparison. */
function compared() {
  const last = D.comparisons.at(-1), groups = new Map();
  last.images.forEach((image, i) => groups.set(image.prompt, [...(groups.get(image.prompt) ?? []), i]));
  const name = (c) => c.number ? `after ${c.number} round${c.number > 1 ? "s" : ""}` : "before";
  const head = D.comparisons.map((c) => el("span", {}, name(c) + " ", el("b", {}, num(c.mean))));
  const box = el("details", { open: "" }, el("summary", {}, "Before and after training, same noise"),
    el("p", { class: "scroll keys num" }, "Mean score: ", ...head));
  for (const [prompt, members] of groups) box.append(el("div", { class: "strip" }, el("h4", {}, text(prompt)),
    el("div", {}, ...members.map((i) => el("div", { class: "same" }, ...D.comparisons.map((c) => {
      const it = c.images[i] ?? { src: null, score: null };
      return el("figure", {}, picture(it.src, `${name(c)}: ${text(prompt)}`),
        el("figcaption", {}, name(c), el("span", { class: "num" }, num(it.score))));
    }))))));
  return box;
}
function drawSummary() {
  const round = D.rounds.find((r) => String(r.number) === $("round").value);
  const parts = [];
  if (round) {
    const s = round.summary, part = s.images < round.planned ? ` of ${round.planned}` : "";
    parts.push(el("div", { class: "tiles" }, tile(s.images + part, `images of ${round.by_prompt.length} prompts`),
      tile(String(s.pairs), s.pairs && s.targets < s.pairs ? `pairs, ${s.targets} fused so far` : "pairs"), scoresTile(round),
      s.decided ? tile(percent(s.rate), `adopted: ${s.adopted} of ${s.decided}`, s.rate) : null,
      s.coverage === null ? null : tile(percent(s.coverage), "of the cells in the mask, fused steps", s.coverage)));
    for (const node of parts[0].children) if (!node.textContent) node.remove();
  }
  if (D.rounds.length > 1) parts.push(el("details", { open: "" }, el("summary", {}, "Rounds"), el("div", { class: "rounds" }, chart(),
    table("round", D.rounds.map((r) => [`round ${r.number}`, () => choose("round", r.number), r.summary])))));
  if (D.comparisons.length > 1) parts.push(compared());
  if (round) parts.push(el("details", {}, el("summary", {}, `By prompt (${round.by_prompt.length})`),
    table("prompt", round.by_prompt.map((s) => [text(s.prompt), () => choose("prompt", text(s.prompt)), s]))));
  if (round?.images.length) parts.push(samples(round));
  $("summary").replaceChildren(...parts);
}
function choose(id, value) {
  $(id).value = value;
  $(id).dispatchEvent(new Event("input"));
  $("tools").scrollIntoView();
}

// List
let shown = [], drawn = 0;
function list() {
  const wanted = $("prompt").value.trim().toLowerCase(), round = $("round").value, sort = $("sort").value;
  const here = pairs.filter((p) => round === "all" || String(p.round) === round);
  const match = here.filter((p) => text(p.prompt).toLowerCase().includes(wanted));
  const counts = { all: match.length, adopted: 0, fallback: 0, undecided: 0 };
  for (const p of match) counts[state(p)]++;
  for (const option of $("state").options) option.textContent = `${option.value} (${counts[option.value]})`;
  shown = match.filter((p) => $("state").value === "all" || state(p) === $("state").value);
  const sign = sort === "up" ? -1 : 1, by = (p) => gain(p) === null ? Infinity : sign * gain(p);
  if (sort === "prompt") shown.sort((a, b) => text(a.prompt).localeCompare(text(b.prompt)));
  else if (sort !== "n") shown.sort((a, b) => by(a) === by(b) ? 0 : by(a) - by(b));
  $("count").textContent = `${shown.length} of ${here.length} pairs`;
  $("none").hidden = shown.length > 0;
  $("none").textContent = here.length ? "No pair matches." : D.rounds.length ? "No pairs yet in this round." : "Nothing here yet.";
  $("cards").replaceChildren();
  drawn = 0;
  more();
}
function more() {
  const next = shown.slice(drawn, drawn + 36);
  drawn += next.length;
  $("cards").append(...next.map(card));
  watch.unobserve($("more"));
  if (drawn < shown.length) watch.observe($("more"));
}
const watch = new IntersectionObserver((seen) => seen.some((s) => s.isIntersecting) && more(), { rootMargin: "1200px" });

// One pair
let current = null, timer = 0, step = null; // the step is kept from pair to pair
/** The prompt with its item words marked. */
function marked(prompt) {
  const parts = [], words = prompt.items.map((i) => i.word.split("#")[0].toLowerCase());
  for (const piece of prompt.text.split(/(\s+)/)) {
    const bare = piece.toLowerCase().replace(/^\W+|\W+$/g, "");
    const i = words.findIndex((w) => bare && w.split(" ").includes(bare));
    parts.push(i < 0 ? piece : el("span", { class: "item", "--c": `var(--item${i % 4})` }, piece));
  }
  return parts;
}
function verdict(p) {
  const a = gain(p), r = p.reference.score === null || p.base.score === null ? null : p.reference.score - p.base.score;
  const threshold = D.settings.pair?.adoption_threshold, all = D.settings.pair?.adoption === "all";
  const facts = `The target gains ${signed(a)} on the base; the reference ${signed(r)}`
    + (threshold === undefined || all ? "." : ` (needed: ${threshold} × that).`);
  if (p.adopted === null) return a === null ? "The target is not scored yet." : facts + " Not decided yet.";
  return facts + (p.adopted ? " Adopted." : " Not adopted: the reference takes its place in training.");
}
function open_(pair) {
  const prompt = D.prompts[pair.prompt], d = $("dialog"), mask = pair.mask;
  const order = shown.includes(pair) ? shown : pairs.filter((p) => p.round === pair.round), at = order.indexOf(pair);
  const go = (by, label, sign) => el("button", { "aria-label": label, title: label, ...(order[at + by] ? {} : { disabled: "" }),
    id: "go" + by, onclick: () => { location.hash = key(order[at + by]); } }, sign);
  const focused = document.activeElement?.id;
  clearInterval(timer);
  current = pair;
  d.className = state(pair);
  d.replaceChildren(
    el("header", {}, el("h2", { id: "title", tabindex: -1, autofocus: "" }, ...marked(prompt),
      el("small", { class: "num" }, `round ${pair.round} · pair ${pair.n} · base ${pair.base.index}, reference ${pair.reference.index}`)),
      go(-1, "Previous pair (←)", "←"), go(1, "Next pair (→)", "→"),
      el("button", { "aria-label": "Close", title: "Close (Esc)", onclick: () => d.close() }, "✕")),
    el("main", {}, el("div", { class: "row" }, ...SIDES.map((side) => panel(pair, side))), pairAxis(pair),
      el("p", { class: "says num" }, verdict(pair)),
      el("div", { class: "chips num" }, ...prompt.items.map((item, i) => el("span", { "--c": `var(--item${i % 4})` },
        `${item.word}: threshold ${item.threshold ?? "auto (Otsu)"}`))),
      mask ? overTime(pair, mask, prompt.items) : null));
  if (!d.open) {
    d.showModal();
    d.scrollTop = 0;
    return;
  }
  $("title").focus();
  if (focused) $(focused)?.focus();
}
function overTime(pair, mask, items) {
  const T = mask.steps, names = ["fusion mask", ...items.map((i) => i.word)], rows = names.length;
  const colour = (i) => i ? `var(--item${(i - 1) % 4})` : "var(--mask)";
  const says = el("output", { class: "num" }), now = el("div", { class: "now", "--n": rows }), here = el("div", { class: "here" });
  const slider = el("input", { type: "range", min: 0, max: T - 1, id: "step", "aria-label": "denoising step",
    value: Math.min(T - 1, step ?? T - (mask.fused[Math.floor(mask.fused.length / 2)] ?? T)) });
  const show = () => {
    const i = Number(slider.value), t = T - i;
    step = i;
    says.textContent = `t = ${t} · ${mask.fused.includes(t) ? "fused" : "not fused"}`;
    slider.setAttribute("aria-valuetext", says.textContent);
    here.style.left = `${100 * i / T}%`;
    now.replaceChildren(...names.map((name, r) => el("figure", { "--c": colour(r) },
      over(pair, mapPiece(mask, rows, r, i)), el("figcaption", {}, name))));
  };
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "▶ Play"; };
  const play = el("button", { onclick: () => {
    if (timer) return stop();
    play.textContent = "❚❚ Pause";
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % T; show(); }, 220);
  } }, "▶ Play");
  const flip = el("input", { type: "checkbox", id: "flip", ...($("masks").value === "over" ? { checked: "" } : {}), onchange: () => {
    $("masks").value = flip.checked ? "over" : "plain";
    list();
    open_(pair);
  } });
  slider.addEventListener("input", () => { stop(); show(); });
  const reel = el("div", { class: "reel", onclick: (e) => {
    const box = reel.getBoundingClientRect();
    slider.value = Math.floor((e.clientX - box.left) / box.width * T); stop(); show();
  } }, here, ...names.flatMap((name, r) => [el("div", { class: "name", "--c": colour(r) }, name), mapPiece(mask, rows, r, null)]));
  const ticks = Array.from({ length: T }, (_, i) => el("span", {}, T > 30 && (T - i) % 5 && i ? "" : String(T - i)));
  timer = 0;
  show();
  return el("section", {}, el("h3", {}, "Mask and cross-attention over time"), el("div", { class: "time" }, play, says, el("label", {}, flip, " over the reference")), now,
    el("div", { class: "film" }, el("div", { "--T": T }, slider, el("div", { class: "ticks num", "aria-hidden": "true" }, ...ticks), reel)));
}
function follow() {
  const pair = pairs.find((p) => key(p) === location.hash);
  if (pair) open_(pair);
  else if ($("dialog").open) $("dialog").close();
}
$("dialog").addEventListener("close", () => {
  clearInterval(timer);
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  document.querySelector(`#cards a[href="${key(current)}"]`)?.focus();
});
$("dialog").addEventListener("click", (e) => { if (e.target === $("dialog")) $("dialog").close(); });
$("dialog").addEventListener("keydown", (e) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
  if (by && e.target.type !== "range") $("go" + by).click();
});
addEventListener("hashchange", follow);

// Start
const settings = D.settings, about = [
  settings.pretrained?.model, settings.sample && `${settings.sample.num_steps} steps`,
  settings.sample?.cfg && `guidance ${settings.sample.guidance_scale}`,
  settings.fusion && `fused at t = ${settings.fusion.steps.replaceAll("-", " … ")}, layers ${settings.fusion.layers}`,
  settings.seed !== undefined && `seed ${settings.seed}`];
document.title = `${D.name} · pairs`;
$("name").textContent = D.name;
$("sub").textContent = about.filter(Boolean).join(" · ");
$("prompts").append(...D.prompts.map((p) => el("option", { value: p.text })));
$("state").append(...["all", "adopted", "fallback", "undecided"].map((s) => el("option", { value: s }, s)));
$("round").append(...D.rounds.map((r) => el("option", { value: r.number }, String(r.number))), el("option", { value: "all" }, "all"));
$("round").value = (D.rounds.findLast((r) => r.pairs.length) ?? D.rounds.at(-1))?.number ?? "all";
$("roundbox").hidden = D.rounds.length < 2;
$("tools").hidden = !pairs.length;
for (const id of ["prompt", "state", "sort", "masks"]) $(id).addEventListener("input", list);
$("round").addEventListener("input", () => { drawSummary(); list(); });
drawSummary();
list();
follow();
