// Pairs of a round: base, reference, mask and target; sorted and filtered; samples as well.

import { blank, get, h, image, lazily, number, select, signed } from "./dom.js";
import { maskTile } from "./tiles.js";
import { openPair } from "./pair.js";

const SORTS = [
  ["order", "as paired", () => 0],
  ["gain", "score gain, best first", (a, b) => known(b.gain) - known(a.gain)],
  ["loss", "score gain, worst first", (a, b) => known(a.gain, 1e9) - known(b.gain, 1e9)],
  ["target", "target score", (a, b) => known(b.target.score) - known(a.target.score)],
  ["reference", "reference score", (a, b) => known(b.reference.score) - known(a.reference.score)],
];
const ADOPTED = [["", "all pairs"], ["yes", "adopted"], ["no", "not adopted"], ["open", "not decided"]];
const known = (value, otherwise = -1e9) => value ?? otherwise;

export async function show(root, params, remember) {
  const found = (await get("catalogue")).filter((e) => e.rounds.length);
  if (!found.length) {
    root.append(h("h1", {}, "Pairs"), blank("No rounds here yet", "They appear as soon as a run has begun to sample."));
    return null;
  }
  const chosen = {
    exp: params.get("exp") ?? found[0].name, round: params.get("round"), show: params.get("show") ?? "pairs",
    prompt: params.get("prompt") ?? "", adopted: params.get("adopted") ?? "", sort: params.get("sort") ?? "order",
  };
  const tools = h("div", { class: "bar" }), list = h("div", { class: "cards" });
  const count = h("p", { class: "dim count", role: "status" });
  let data, where, shown = [], stop = null, turn = 0; // where: the round that data are of

  function experiment() {
    return found.find((e) => e.name === chosen.exp) ?? found[0];
  }

  async function load() {
    const e = experiment(), rounds = e.rounds.map((k) => `epoch${k}`);
    chosen.exp = e.name;
    if (!rounds.includes(chosen.round)) chosen.round = rounds.at(-1);
    const mine = ++turn, asked = { exp: chosen.exp, round: chosen.round };
    const got = await get("round", asked);
    if (mine !== turn) return; // something else was chosen meanwhile
    data = got;
    where = asked;
    if (!data.pairs.length) chosen.show = "samples";
    if (!data.prompts.some((p) => p.text === chosen.prompt)) chosen.prompt = "";
    bar(rounds);
    draw();
  }

  const set = (key, reload) => async (value) => {
    chosen[key] = value;
    if (reload) { if (key === "exp") { chosen.round = null; chosen.prompt = ""; chosen.show = "pairs"; } await load(); } else draw();
  };

  function bar(rounds) {
    tools.replaceChildren(
      select("Experiment", found.map((e) => [e.name, e.name]), chosen.exp, set("exp", true)),
      select("Round", rounds.map((r) => [r, r.replace("epoch", "round ")]), chosen.round, set("round", true)),
      select("Show", [["pairs", "pairs"], ["samples", "all samples"]], chosen.show, set("show")),
      select("Prompt", [["", "all prompts"], ...data.prompts.map((p) => [p.text, p.text])], chosen.prompt, set("prompt")),
      select("Adopted", ADOPTED, chosen.adopted, set("adopted")),
      select("Sort", SORTS.map(([id, text]) => [id, text]), chosen.sort, set("sort")));
  }

  function draw() {
    remember(chosen);
    stop?.();
    list.replaceChildren();
    list.className = chosen.show === "pairs" ? "cards" : "tiles";
    const prompt = data.prompts.findIndex((p) => p.text === chosen.prompt);
    const here = (row) => prompt < 0 || row.prompt === prompt;
    if (chosen.show === "pairs") {
      const fits = { "": () => true, yes: (p) => p.adopted === true, no: (p) => p.adopted === false, open: (p) => p.adopted === null };
      shown = data.pairs.filter((p) => here(p) && fits[chosen.adopted](p)).sort(SORTS.find(([id]) => id === chosen.sort)[2]);
      count.textContent = `${shown.length} of ${data.pairs.length} pairs`;
      stop = lazily(list, shown, card);
    } else {
      const samples = data.samples.filter(here).sort((a, b) =>
        a.prompt - b.prompt || (chosen.sort === "order" ? a.i - b.i : known(b.score) - known(a.score)));
      count.textContent = `${samples.length} of ${data.planned} samples`;
      stop = lazily(list, samples, sample, 60);
    }
    if (!list.children.length) list.append(blank("Nothing fits", "Choose other filters, or wait for the run."));
  }

  function card(pair, at) {
    const text = data.prompts[pair.prompt]?.text ?? "";
    const source = (kind, i) => image(where.exp, where.round, kind, i);
    const state = pair.adopted === null ? "not decided" : pair.adopted ? "adopted" : "not adopted";
    const button = h("button", { class: "open", onclick: () => open(at) }, text);
    return h("article", { class: `card ${pair.adopted ? "adopted" : ""}`, "data-pair": pair.n },
      h("header", {}, h("h3", {}, button), h("span", { class: "marks" },
        pair.gain === null ? null : h("span", { class: "num dim", title: "target's score less the base's" }, `gain ${signed(pair.gain)}`),
        h("span", { class: "badge" }, state))),
      h("div", { class: "four" },
        picture("base", source("images", pair.base.i), number(pair.base.score)),
        picture("reference", source("images", pair.reference.i), number(pair.reference.score)),
        h("figure", { class: "mask" },
          pair.mask ? maskTile(source("masks", pair.n), data, pair, middle(data.fused), 0, undefined, "lazy") : h("div", { class: "pic none" }, "not yet"),
          h("figcaption", {}, h("b", {}, "mask"), h("span", {}, `t = ${middle(data.fused)}`))),
        picture("target", pair.target.there ? source("target_images", pair.n) : null,
          number(pair.target.score))));
  }

  function open(at) {
    openPair({ ...chosen, ...where, data, pairs: shown, at });
  }

  function sample({ i, prompt, score }) {
    return picture(`${i}`, image(where.exp, where.round, "images", i), number(score), data.prompts[prompt].text);
  }

  await load();
  const news = h("button", { class: "news", hidden: true, onclick: async () => { news.hidden = true; await load(); } });
  root.append(h("h1", {}, "Pairs"), tools, h("div", { class: "counts" }, count, news), list);
  const timer = setInterval(async () => {
    if (document.hidden || data.pairs.length && data.pairs.every((p) => p.adopted !== null)) return;
    const now = await get("round", { exp: chosen.exp, round: chosen.round }).catch(() => null);
    if (now && JSON.stringify([now.samples, now.pairs]) !== JSON.stringify([data.samples, data.pairs])) {
      news.hidden = false;
      news.textContent = "There is more now: show it";
    }
  }, 5000);
  return () => { clearInterval(timer); stop?.(); };
}

const middle = (fused) => fused[Math.floor(fused.length / 2)] ?? 1;

function picture(name, source, caption, title = name) {
  const shown = source
    ? h("img", { src: source, loading: "lazy", alt: title, decoding: "async" })
    : h("div", { class: "none" }, "not yet");
  return h("figure", { class: name }, h("div", { class: "pic" }, shown),
    h("figcaption", {}, h("b", {}, name), h("span", { class: "num" }, caption)));
}
