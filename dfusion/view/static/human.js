// Scores for a run that waits for people: every image from 1 to 5, or two at a time; then handed in.

import { blank, get, h, image, post, say, typing } from "./dom.js";
import { compareTwo } from "./duels.js";

const WORDS = ["not at all", "poorly", "partly", "well", "fully"];
const KIND = { images: "samples", target_images: "targets" };

export async function showHuman(root, params, remember, rater) {
  const list = h("div", { class: "jobs" }), stage = h("div", { class: "trial" });
  let job = null, task = null, at = 0, who = "", busy = false, twoKeys = null;

  async function jobs() {
    const found = await get("human");
    if (job) return;
    list.replaceChildren(...found.map((one) => one.problem ? h("p", { class: "bad" }, `${one.name}: ${one.problem}`) : h("article", { class: "job" },
      h("h2", {}, one.name), h("p", {}, `${place(one)}: ${one.there} of ${one.total} images are there`),
      h("p", { class: "dim" }, raters(one.raters, one.total)),
      h("p", { class: "actions" }, !one.ways.includes("one") ? null : h("button", { class: "primary", onclick: () => begin(one) }, "Rate"),
        !one.ways.includes("two") || one.there < one.total ? null : h("button", { onclick: () => beginTwo(one) }, "Compare two")))));
    if (!found.length) list.append(blank("No run waits for scores",
      "A run with --config.eval.reward human stops after sampling until its images are rated here."));
  }

  const place = (one) => one.round.startsWith("compare/")
    ? `Comparison after ${one.round.replace("compare/epoch", "")} rounds of training`
    : `Round ${one.round.replace("epoch", "")}, ${KIND[one.kind]}`;
  const raters = (given, total) => Object.entries(given).map(([name, n]) => `${name}: ${n} of ${total}`).join(", ") || "nobody has rated them one by one yet";

  async function guarded(work) {
    if (busy) return;
    busy = true;
    try { await work(); } catch (error) { say(error.message, true); }
    busy = false;
  }

  const begin = (one) => guarded(async () => {
    who = rater();
    const chosen = { exp: one.name, round: one.round, kind: one.kind, title: place(one) };
    await refresh(chosen);
    job = chosen;
    const open = task.items.findIndex((i) => i.mine === null);
    at = open < 0 ? task.items.length : open;
    list.replaceChildren();
    paint();
  });

  const beginTwo = (one) => guarded(async () => {
    who = rater();
    const chosen = { exp: one.name, round: one.round, kind: one.kind, title: place(one) };
    twoKeys = await compareTwo(stage, chosen, who, leave, guarded);
    job = chosen;
    list.replaceChildren();
  });

  async function refresh({ exp, round, kind } = job) {
    task = await get("human/task", { exp, round, kind, rater: who });
  }

  const give = (score) => guarded(async () => {
    if (!job || at >= task.items.length) return;
    const { exp, round, kind } = job, item = task.items[at];
    await post("human/rate", { exp, round, kind, index: item.i, rater: who, score });
    item.mine = score;
    at += 1;
    while (at < task.items.length && task.items[at].mine !== null) at += 1;
    if (at >= task.items.length) {
      await refresh();
      const open = task.items.findIndex((i) => i.mine === null);
      at = open < 0 ? task.items.length : open;
    }
    paint();
  });

  function back(by) {
    if (!job) return;
    at = Math.max(0, Math.min(task.items.length, at + by));
    paint();
  }

  const handIn = () => guarded(async () => {
    const { exp, round, kind } = job;
    await post("human/hand-in", { exp, round, kind });
    say("Handed in. The run continues by itself.");
    leave();
  });

  function leave() {
    job = twoKeys = null;
    stage.replaceChildren();
    jobs();
  }

  function paint() {
    const done = task.items.filter((i) => i.mine !== null).length;
    const bar = h("header", { class: "trialbar" }, h("b", {}, `${job.exp}: ${job.title}`),
      h("progress", { max: Math.max(1, task.total), value: done, "aria-label": "Rated by you" }),
      h("span", { class: "num" }, `${done} of ${task.total}`), h("button", { onclick: leave }, "Pause"));
    if (at >= task.items.length) {
      const whole = task.items.length === task.total;
      stage.replaceChildren(bar, h("div", { class: "blank" },
        h("h2", {}, whole ? "You have rated every image" : "You have rated all images so far"),
        h("p", {}, raters(task.raters, task.total)),
        h("p", {}, whole ? "Let others rate too, or hand in: the means over raters become the scores, and the run continues. This cannot be undone."
          : "The run is still sampling; come back for the rest."),
        h("p", { class: "actions" }, h("button", { onclick: () => back(-1) }, "Back to the last (←)"),
          whole ? h("button", { class: "primary", onclick: handIn }, "Hand in the scores") : h("button", { onclick: () => guarded(async () => { await refresh(); const open = task.items.findIndex((i) => i.mine === null); at = open < 0 ? task.items.length : open; paint(); }) }, "Look again"))));
      stage.querySelector(".primary")?.focus();
      return;
    }
    const item = task.items[at];
    stage.replaceChildren(bar, h("p", { class: "question" }, "How well does the image fit?"), h("h2", { class: "prompt" }, item.prompt),
      h("img", { class: "large", src: image(job.exp, job.round, job.kind, item.i), alt: "the image to rate" }),
      h("div", { class: "scale", role: "group", "aria-label": "Score" }, WORDS.map((word, n) =>
        h("button", { onclick: () => give(n + 1), "aria-pressed": String(item.mine === n + 1) }, h("kbd", {}, String(n + 1)), h("span", {}, word)))),
      h("p", { class: "dim keys" }, "Keys: 1 to 5 score, ← back, → forward."));
  }

  function keys(e) {
    if (!job || typing(e)) return;
    if (twoKeys) return twoKeys(e);
    if (/^[1-5]$/.test(e.key)) { e.preventDefault(); give(+e.key); }
    if (e.key === "ArrowLeft") back(-1);
    if (e.key === "ArrowRight" && task.items[at]?.mine !== null) back(1);
  }

  remember({});
  await jobs();
  root.append(list, stage);
  document.addEventListener("keydown", keys);
  const timer = setInterval(() => { if (!document.hidden && !job) jobs().catch(() => {}); }, 3000);
  return () => { document.removeEventListener("keydown", keys); clearInterval(timer); };
}
