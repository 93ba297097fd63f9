// Scores for a run by comparing two images at a time; the app turns the answers into scores.

import { get, h, image, post, say } from "./dom.js";

// Shows the rater's comparisons in `stage`; returns what keys do.
export async function compareTwo(stage, job, who, leave, guarded) {
  const { exp, round, kind } = job;
  let task = null, at = 0, left = false;

  async function refresh() {
    task = await get("two/task", { exp, round, kind, rater: who });
    const open = task.items.findIndex((i) => i.mine === null);
    at = open < 0 ? task.items.length : open;
    paint();
  }

  const answer = (choice) => guarded(async () => {
    const number = at;
    if (number >= task.items.length) return;
    await post("two/answer", { exp, round, kind, number, rater: who, choice });
    task.items[number].mine = choice;
    if (left) return;
    at = number;
    do at += 1; while (at < task.items.length && task.items[at].mine !== null);
    if (at >= task.items.length) await refresh();
    else paint();
  });

  function move(by) {
    at = Math.max(0, Math.min(task.items.length, at + by));
    paint();
  }

  const pause = () => { left = true; leave(); };

  const handIn = () => guarded(async () => {
    await post("two/hand-in", { exp, round, kind });
    say("Handed in. The run continues by itself.");
    pause();
  });

  function paint() {
    const done = task.items.filter((i) => i.mine !== null).length;
    const bar = h("header", { class: "trialbar" }, h("b", {}, `${exp}: ${job.title}`),
      h("progress", { max: Math.max(1, task.items.length), value: done, "aria-label": "Compared by you" }),
      h("span", { class: "num" }, `${done} of ${task.items.length}`), h("button", { onclick: pause }, "Pause"));
    stage.replaceChildren(bar, ...(at < task.items.length ? question(task.items[at]) : [end()]));
    stage.querySelector(".primary")?.focus();
  }

  function question(item) {
    const sides = item.images.map((shown, n) => h("button", { class: "choice", onclick: () => answer(n), "aria-label": `Image ${n + 1}`, "aria-pressed": String(item.mine === n) },
      h("img", { src: image(exp, round, shown.kind, shown.i), alt: `Image ${n + 1}` }), h("kbd", {}, String(n + 1))));
    return [h("p", { class: "question" }, "Which fits better?"), h("h2", { class: "prompt" }, item.prompt),
      h("div", { class: "choices", style: { "--n": 2 } }, sides),
      h("p", { class: "actions" }, h("button", { onclick: () => answer(-1), "aria-pressed": String(item.mine === -1) }, "No difference (0)")),
      h("p", { class: "dim keys" }, "Keys: 1 left, 2 right, 0 no difference, ← back, → forward.")];
  }

  function end() {
    const given = Object.entries(task.raters).map(([name, n]) => `${name}: ${n}`).join(", ");
    return h("div", { class: "blank" }, h("h2", {}, "You have compared them all"), h("p", {}, `Answers: ${given}`),
      h("p", {}, "Let others compare too, or hand in: the answers become scores, and the run continues. This cannot be undone."),
      h("p", { class: "actions" }, h("button", { onclick: () => move(-1) }, "Back to the last (←)"),
        h("button", { class: "primary", onclick: handIn }, "Hand in the scores")));
  }

  await refresh();
  return (e) => {
    if (e.key === "1" || e.key === "2") { e.preventDefault(); answer(+e.key - 1); }
    if (e.key === "0") answer(-1);
    if (e.key === "ArrowLeft") move(-1);
    if (e.key === "ArrowRight" && at < task.items.length && task.items[at].mine !== null) move(1);
  };
}
