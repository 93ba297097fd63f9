// A run at work: its stages, the time left, what it waits for, its latest images, and a way to stop it.

import { clock, h, image, post, say } from "./dom.js";

// A card that is kept while its run is at work; update(run) changes only what is new.
export function card(open) {
  const title = h("button", { class: "link", onclick: open });
  const round = h("p", { class: "dim" });
  const left = h("p", { class: "left" });
  const waits = h("p", { class: "waits", hidden: true });
  const stages = h("div", { class: "stages", role: "group" });
  const strip = h("div", { class: "strip" });
  const what = h("p", { class: "dim" });
  const stop = h("button", { class: "stop", hidden: true }, "Stop");
  const links = h("span", { class: "links" });
  const element = h("article", { class: "run" },
    h("div", { class: "about" }, h("header", {}, h("h2", {}, title), stop), round, left, waits, stages, links),
    h("div", { class: "made" }, what, strip));
  let shown = "";

  function update(run) {
    element.dataset.run = run.name;
    title.textContent = run.name;
    round.textContent = run.round === null ? "loading" : `round ${run.round}, ${run.rounds.done} of ${run.rounds.total} done`;
    left.textContent = timeLeft(run.left);
    waits.hidden = !run.waits;
    waits.textContent = run.waits ?? "";
    stages.setAttribute("aria-label", `Round ${run.round}`);
    stages.replaceChildren(...run.stages.map(stage));
    links.replaceChildren(run.round === null ? "" : h("a", { href: `#/pairs?exp=${encodeURIComponent(run.name)}&round=epoch${run.round}` }, "Pairs of this round"));
    stop.hidden = !run.stoppable;
    stop.onclick = () => askToStop(run.name, stop);
    images(run);
  }

  function images(run) {
    const text = JSON.stringify(run.latest);
    if (text === shown) return;
    shown = text;
    const { round: place, kind, images: numbers } = run.latest ?? { images: [] };
    what.textContent = numbers.length ? `Latest ${kind === "images" ? "samples" : "targets"}, newest first` : "The first images appear here.";
    strip.replaceChildren(...numbers.map((i) => h("div", { class: "pic" },
      h("img", { src: image(run.name, place, kind, i), alt: `${kind === "images" ? "sample" : "target"} ${i}`, loading: "lazy", decoding: "async" }))));
  }
  return { element, update };
}

export function stage({ name, done, total }) {
  return h("div", { class: "stage" }, h("span", {}, name),
    h("progress", { max: Math.max(1, total), value: done, "aria-label": name }), h("span", { class: "num" }, `${done}/${total}`));
}

const timeLeft = (left) => [
  left.stage && left.seconds !== null ? `${left.stage}: ${clock(left.seconds)} left` : null,
  left.run === null ? "time left of the run: known after its first round" : `run: about ${clock(left.run)} left`,
].filter(Boolean).join(" · ");

// The first press asks, the second one stops.
async function askToStop(name, button) {
  if (button.dataset.sure !== "yes") {
    button.dataset.sure = "yes";
    button.textContent = "Press again to stop";
    setTimeout(() => { button.dataset.sure = ""; button.textContent = "Stop"; }, 4000);
    return;
  }
  try {
    await post("stop", { exp: name });
    say(`${name} is asked to stop, as by Ctrl-C; the same command continues it`);
    button.disabled = true;
  } catch (error) {
    say(error.message, true);
  }
}
