// Runs: what is at work, a table of all, the curves of those chosen.

import { blank, get, h, number, percent, signed } from "./dom.js";
import { MOST, swatch } from "./chart.js";
import * as curves from "./curves.js";
import { card } from "./work.js";
import { difference, open } from "./run.js";

const STATES = { running: "running", finished: "finished", stopped: "not running", failed: "failed" };
const PAGE = 30; // rows made at once
const short = (key) => key.split(".").at(-1);
const plain = (value) => String(value).split("/").at(-1) || "none";

// [key, title, what is shown, what is sorted by]; figures begin with the highest.
const COLUMNS = [
  ["name", "Run", null, (r) => r.name],
  ["differs", "What differs", null, (r, keys) => keys.map((k) => plain(r.settings?.[k])).join(" ")],
  ["state", "State", null, (r) => (r.problem ? "unreadable" : r.state)],
  ["rounds", "Rounds", (r) => `${r.rounds.done} / ${r.rounds.total}`, (r) => r.rounds?.done],
  ["score", "Score", (r) => number(r.score), (r) => r.score],
  ["judge", "Judge", (r) => percent(r.judge), (r) => r.judge],
  ["adopted", "Adopted", (r) => percent(r.adopted), (r) => r.adopted],
  ["gain", "Gain", (r) => (r.gain === null ? "–" : signed(r.gain)), (r) => r.gain],
];
const FIGURES = new Set(["rounds", "score", "judge", "adopted", "gain"]);
const MEANING = {
  score: "the latest mean score: of images with the same noise each time if there are some, else of a round's samples",
  judge: "the share of images that are right by the judge", adopted: "targets adopted in the latest round (Eq. 7)",
  gain: "how much the score has risen since the first one",
};

export async function show(root, params, remember) {
  let runs = [], seen = "", chosen = params.getAll("run"), pinned = new Set(params.getAll("pin"));
  let sort = params.get("sort") || "name", down = params.get("down") === "1", text = params.get("q") || "", opened = params.get("open");
  let extra = { chart: params.getAll("chart"), seeds: params.get("seeds") };
  const rows = new Map(), cards = new Map();
  const keep = () => remember({ run: chosen, pin: [...pinned], sort: sort === "name" ? null : sort, down: down ? 1 : null, q: text, open: opened, ...extra });
  const plots = curves.panel(params, (now) => { extra = now; keep(); });
  const work = h("section", { class: "work", "aria-label": "At work", hidden: true });
  const body = h("tbody");
  const count = h("span", { class: "dim count" });
  const search = h("input", { type: "search", value: text, placeholder: "name, setting or state", oninput: (e) => { text = e.target.value; keep(); draw(); } });
  const order = h("select", { onchange: (e) => by(e.target.value, e.target.value !== "name") }, COLUMNS.map(([key, title]) => h("option", { value: key }, title)));
  const compare = h("button", { onclick: () => difference(chosen) }, "Compare settings");
  const heads = COLUMNS.map(([key, title]) => h("th", { scope: "col", class: key, title: MEANING[key] },
    h("button", { onclick: () => by(key, sort === key ? !down : FIGURES.has(key)) }, title)));
  const table = h("table", { class: "runtable" },
    h("thead", {}, h("tr", {}, h("th", { class: "ticks" }, h("span", { class: "unseen" }, "Plotted, pinned")), heads)), body);
  const bar = h("div", { class: "bar" },
    h("label", { class: "field grow" }, h("span", {}, "Filter"), search),
    h("label", { class: "field order" }, h("span", {}, "Sort"), order), compare, count);
  const none = h("div");
  const box = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of runs" }, table);
  let watch = null, filtered = text, close = null, left = false;
  const main = h("div", { class: "all" }, bar, box, none, plots.root);

  function by(key, descending) { sort = key; down = descending; keep(); draw(); }

  async function look() {
    const found = await get("runs");
    const now = JSON.stringify(found);
    if (now === seen) return;
    seen = now;
    runs = found;
    const good = runs.filter((r) => !r.problem);
    const names = new Set(good.map((r) => r.name));
    chosen = chosen.filter((name) => names.has(name));
    if (!chosen.length) chosen = latest(good).slice(0, MOST).map((r) => r.name);
    draw();
  }

  // Those at work, then those that changed last.
  const atWorkNow = (run) => run.state === "running";
  const latest = (good) => [...good].sort((a, b) => atWorkNow(b) - atWorkNow(a) || b.changed - a.changed);

  // The settings that are not the same in all of these runs.
  function differing(some) {
    const given = some.filter((r) => r.settings).map((r) => r.settings);
    return Object.keys(given[0] ?? {}).filter((key) => given.some((s) => s[key] !== given[0][key]));
  }

  const said = (run) => [run.name, run.problem ?? STATES[run.state], run.method, ...Object.entries(run.settings ?? {}).map(([k, v]) => `${k}=${v}`)].join(" ").toLowerCase();

  function shownRuns() {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = runs.filter((run) => { const all = said(run); return words.every((word) => all.includes(word)); });
    const keys = differing(shown);
    const value = COLUMNS.find(([key]) => key === sort)?.[3] ?? COLUMNS[0][3];
    const values = new Map(shown.map((run) => [run, value(run, keys)]));
    const missing = (v) => v === null || v === undefined;
    shown.sort((a, b) => {
      const pins = pinned.has(b.name) - pinned.has(a.name), [va, vb] = [values.get(a), values.get(b)];
      if (pins) return pins;
      if (missing(va) || missing(vb)) return missing(va) - missing(vb);
      const least = typeof va === "number" ? va - vb : va.localeCompare(vb, "en", { numeric: true });
      return (down ? -least : least) || a.name.localeCompare(b.name, "en", { numeric: true });
    });
    return { shown, keys };
  }

  function draw() {
    const { shown, keys } = shownRuns();
    const focus = document.activeElement?.id;
    fill(shown, keys);
    if (focus && document.activeElement?.id !== focus) document.getElementById(focus)?.focus();
    heads.forEach((head, n) => {
      if (COLUMNS[n][0] === sort) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    order.value = sort;
    table.classList.toggle("unjudged", !runs.some((r) => typeof r.judge === "number"));
    compare.disabled = chosen.length < 2;
    count.textContent = shown.length === runs.length ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}` : `${shown.length} of ${runs.length} runs`;
    none.replaceChildren(...(shown.length || !runs.length ? [] : [blank("No run matches", "Change the filter, or clear it.")]));
    atWork();
    plots.show(chosen.map((name) => runs.find((r) => r.name === name)).filter(Boolean));
    bar.hidden = box.hidden = plots.root.hidden = !runs.length;
    if (!runs.length) none.replaceChildren(begin());
  }

  // The first rows, and more as the end of the list comes near. Pages of rows that were shown stay.
  function fill(shown, keys) {
    const end = h("tr", { class: "end" });
    let done = 0;
    const more = (count) => {
      end.before(...shown.slice(done, done + count).map((run) => row(run, keys)));
      done += count;
      watch.unobserve(end);
      if (done >= shown.length) end.remove();
      else watch.observe(end);
    };
    watch?.disconnect();
    watch = new IntersectionObserver((seen) => { if (seen.some((s) => s.isIntersecting)) more(PAGE); }, { root: box, rootMargin: "400px" });
    const had = Math.max(PAGE, body.querySelectorAll("tr:not(.end)").length);
    body.replaceChildren(end);
    more(text === filtered ? had : PAGE);
    filtered = text;
  }

  // A row is made anew only if something in it has changed.
  function row(run, keys) {
    const at = chosen.indexOf(run.name);
    const state = JSON.stringify([run.state, run.error, run.problem, run.waits, run.rounds, run.score, run.judge, run.adopted, run.gain, at, pinned.has(run.name),
      keys.map((k) => [k, run.settings?.[k]])]);
    const known = rows.get(run.name);
    if (known?.state === state) return known.element;
    const element = make(run, keys, at);
    rows.set(run.name, { state, element });
    return element;
  }

  function make(run, keys, at) {
    const box = h("input", { type: "checkbox", id: `run-${run.name}`, checked: at >= 0, disabled: Boolean(run.problem), "aria-label": `Plot ${run.name}`, onchange: (e) => {
      chosen = e.target.checked ? [...chosen, run.name] : chosen.filter((c) => c !== run.name);
      keep();
      draw();
    } });
    const pin = h("button", { class: "pin", id: `pin-${run.name}`, "aria-pressed": String(pinned.has(run.name)), "aria-label": `Pin ${run.name}`, title: "Pinned runs stay on top", onclick: () => {
      if (!pinned.delete(run.name)) pinned.add(run.name);
      keep();
      draw();
    } }, pinned.has(run.name) ? "★" : "☆");
    const marks = h("td", { class: "ticks" }, h("span", {}, box, pin));
    if (run.problem)
      return h("tr", { "data-run": run.name }, marks, h("th", { scope: "row", class: "name" }, run.name), h("td", { class: "bad", colspan: 7 }, run.problem));
    return h("tr", { "data-run": run.name, class: at >= 0 ? "on" : null }, marks,
      h("th", { scope: "row", class: "name" }, h("button", { class: "link", onclick: () => openRun(run.name) }, run.name)),
      h("td", { class: "differs" }, differs(run, keys)),
      h("td", { class: "state" }, h("span", { class: `badge ${run.state}` }, STATES[run.state]),
        run.error ? h("span", { class: "bad why", title: run.error }, run.error.replace(/^the last run ended with an error \([^)]*\): /, "")) : null,
        run.waits ? h("span", { class: "dim why" }, run.waits) : null),
      COLUMNS.filter(([, , said]) => said).map(([key, title, said]) => h("td", { class: `num ${key}`, "data-label": title }, said(run))));
  }

  function differs(run, keys) {
    const most = 4, all = keys.map((key) => `${key} = ${run.settings[key]}`).join("\n");
    if (!keys.length) return h("span", { class: "dim" }, runs.length > 1 ? "nothing" : run.method);
    return h("span", { class: "sets", title: all }, keys.slice(0, most).map((key) => h("span", { class: "set" }, h("span", { class: "dim" }, `${short(key)} `), plain(run.settings[key]))),
      keys.length > most ? h("span", { class: "dim" }, `and ${keys.length - most} more`) : null);
  }

  function openRun(name) {
    opened = name;
    keep();
    close = open(name, runs.filter((r) => !r.problem).map((r) => r.name), () => { close = null; opened = null; if (!left) keep(); });
  }

  function atWork() {
    const some = runs.filter(atWorkNow);
    work.hidden = !some.length;
    for (const [name, one] of cards) if (!some.some((run) => run.name === name)) { one.element.remove(); cards.delete(name); }
    for (const run of some) {
      if (!cards.has(run.name)) { const one = card(() => openRun(run.name)); cards.set(run.name, one); work.append(one.element); }
      cards.get(run.name).update(run);
    }
  }

  await look();
  root.append(h("h1", {}, "Runs"), work, main);
  if (opened && runs.some((r) => r.name === opened && !r.problem)) openRun(opened);
  const timer = setInterval(() => { if (!document.hidden) look().catch(() => {}); }, 3000);
  return () => { left = true; clearInterval(timer); watch?.disconnect(); close?.(); };
}

function begin() {
  return blank("No runs here yet", "A run appears as soon as it has begun. With the included model, for example:",
    h("code", { class: "line" }, "python3 run_train.py --config testbed --config.exp_name first --config.eval.in_process=True"),
    "Then its progress, images and curves appear here by themselves.");
}
