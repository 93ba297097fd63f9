// Runs: how far each is, and its curves over those of others.

import { blank, clock, get, h, percent } from "./dom.js";
import { STYLES, chart, swatch } from "./chart.js";

const CHARTS = [
  ["score_same_noise", "Mean score, same noise each time", "rounds of training", {}],
  ["judge_same_noise", "Right by the judge, same noise each time", "rounds of training", { percent: true }],
  ["score", "Mean score of a round's samples", "round", {}],
  ["judge", "Right by the judge, a round's samples", "round", { percent: true }],
  ["adopted", "Targets adopted (Eq. 7)", "round", { percent: true, zero: true }],
  ["coverage", "Share of the grid inside masks", "round", { percent: true, zero: true }],
  ["loss", "Loss", "update", {}],
  ["preferred", "Steps with the higher log-ratio for the preferred image", "update", {}],
  ["noise_norm", "Norm of predicted noise, over the initial model's", "round", {}],
  ["grad_norm", "Gradient norm before clipping", "update", { zero: true }],
];
const STATES = { running: "running", finished: "finished", stopped: "not running" };

export async function show(root, params, remember) {
  let seen = "", runs = [], chosen = params.getAll("run");
  const list = h("section", { class: "runlist", "aria-label": "Runs" });
  const charts = h("section", { class: "charts", "aria-label": "Curves" });

  async function look() {
    const found = await get("runs");
    const text = JSON.stringify(found.map((r) => ({ ...r, left: r.left && { ...r.left, seconds: null, run: null } })));
    runs = found;
    if (text === seen) { times(); return; }
    seen = text;
    const good = runs.filter((r) => !r.problem).map((r) => r.name);
    chosen = chosen.filter((name) => good.includes(name));
    if (!chosen.length) chosen = good.slice(0, STYLES.length);
    draw();
  }

  function draw() {
    const focus = document.activeElement?.id;
    list.replaceChildren(...runs.map(card));
    plot();
    if (focus) document.getElementById(focus)?.focus();
    if (!runs.length)
      list.append(blank("No runs here yet", "An experiment appears as soon as run_sample.py or run_train.py has begun."));
  }

  const style = (name) => runs.findIndex((r) => r.name === name) % STYLES.length;

  function card(run, n) {
    if (run.problem) return h("article", { class: "run" }, h("h2", {}, run.name), h("p", { class: "bad" }, run.problem));
    const box = h("input", {
      type: "checkbox", id: `run-${run.name}`, checked: chosen.includes(run.name),
      onchange: (e) => {
        chosen = e.target.checked ? [...chosen, run.name] : chosen.filter((c) => c !== run.name);
        remember({ run: chosen });
        plot();
      },
    });
    const rounds = `${run.rounds.done} of ${run.rounds.total} rounds done`;
    return h("article", { class: "run", "data-run": run.name },
      h("h2", {}, h("label", { for: box.id }, box, swatch(n), h("span", {}, run.name))),
      h("p", {}, h("span", { class: `state ${run.state}` }, STATES[run.state]), ` ${rounds}`),
      run.error ? h("p", { class: "bad" }, run.error) : null,
      h("p", { class: "dim" }, `${run.method}${run.method === "sampling only" ? "" : `, ${run.pairs} pairs`}, scores: ${run.reward}`),
      run.round === null ? null : h("div", { class: "stages", role: "group", "aria-label": `Round ${run.round}` },
        h("p", { class: "dim" }, `Round ${run.round}`), run.stages.map(stage)),
      run.state === "running" ? h("p", { class: "left", "data-left": run.name }, left(run)) : null,
      h("p", { class: "links" },
        run.round === null ? null : h("a", { href: `#/pairs?exp=${encodeURIComponent(run.name)}&round=epoch${run.round}` }, "Pairs"),
        run.curves.score_same_noise ? h("a", { href: `#/compare?exp=${encodeURIComponent(run.name)}` }, "Before and after") : null));
  }

  const left = (run) => [
    run.left.stage && run.left.seconds !== null ? `${run.left.stage}: ${clock(run.left.seconds)} left` : null,
    `whole run: ${run.left.run === null ? "known after the first round" : `about ${clock(run.left.run)} left`}`,
  ].filter(Boolean).join(" · ");

  function times() {
    for (const run of runs) {
      const line = list.querySelector(`[data-left="${CSS.escape(run.name)}"]`);
      if (line) line.textContent = left(run);
    }
  }

  function plot() {
    const lines = (key) => runs.filter((r) => chosen.includes(r.name) && r.curves?.[key])
      .map((r) => ({ name: r.name, style: style(r.name), points: r.curves[key] }));
    charts.replaceChildren(...CHARTS.filter(([key]) => lines(key).length)
      .map(([key, title, x, options]) => chart(title, x, lines(key), options)));
    if (!charts.children.length && runs.length) charts.append(blank("No curves yet", "Choose a run, or wait for its first scores."));
  }

  await look();
  root.append(h("h1", {}, "Runs"), h("div", { class: "split" }, list, charts));
  const timer = setInterval(() => { if (!document.hidden) look().catch(() => {}); }, 3000);
  return () => clearInterval(timer);
}

function stage({ name, done, total }) {
  return h("div", { class: "stage" }, h("span", {}, name),
    h("progress", { max: Math.max(1, total), value: done, "aria-label": name }),
    h("span", { class: "num" }, `${done}/${total}`), h("span", { class: "num dim" }, percent(total ? done / total : 0)));
}
