// Pairs of a round: base, reference, mask and target; sorted and filtered; samples as well.

import { answers, blank, get, h, image, lazily, number, select, signed, typing } from "./dom.js";
import { keysButton, showKeys } from "./keys.js";
import { openPair } from "./pair.js";
import { byPrompt, figures } from "./summary.js";
import { layer, maskTile } from "./tiles.js";
import { marked, scoreLine, state } from "./words.js";

const SORTS = [
  ["order", "as paired", () => 0],
  ["gain", "score gain, best first", (a, b) => known(b.gain) - known(a.gain)],
  ["loss", "score gain, worst first", (a, b) => known(a.gain, 1e9) - known(b.gain, 1e9)],
  ["target", "target score", (a, b) => known(b.target.score) - known(a.target.score)],
  ["reference", "reference score", (a, b) => known(b.reference.score) - known(a.reference.score)],
];
const ADOPTED = [["", "all pairs"], ["yes", "adopted"], ["no", "not adopted"], ["open", "not decided"]];
const KEYS = [[["/"], "search the prompts"], [["Tab", "Enter"], "to a pair, and open it"], [["?"], "these keys; an opened pair has more"]];
const STEP_NOTED_MS = 250; // browsers refuse an address that changes too often
const known = (value, otherwise = -1e9) => value ?? otherwise;

export async function show(root, params, remember) {
  const found = (await get("catalogue")).filter((e) => e.rounds.length);
  if (!found.length) {
    root.append(h("h1", {}, "Pairs"), blank("No rounds here yet", "They appear as soon as a run has begun to sample."));
    return null;
  }
  const chosen = {
    exp: params.get("exp") ?? found[0].name, round: params.get("round"), show: params.get("show") ?? "pairs",
    q: params.get("q") ?? "", adopted: params.get("adopted") ?? "", sort: params.get("sort") ?? "order", mask: params.get("mask") ?? "over",
  };
  const tools = h("div", { class: "bar" }), list = h("div", { class: "cards" }), about = h("div", {});
  const count = h("p", { class: "dim count", role: "status" });
  let data, where, shown = [], stop = null, turn = 0; // where: the round that data are of
  let opened = null, pushed = false, noting = null;

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
    bar(rounds);
    about.replaceChildren(figures(data), byPrompt(data, (text) => { search.value = chosen.q = text; draw(); }));
    draw();
  }

  const set = (key, reload) => async (value) => {
    chosen[key] = value;
    if (reload) { if (key === "exp") { chosen.round = null; chosen.q = ""; chosen.show = "pairs"; } await load(); } else draw();
  };

  const search = h("input", { type: "search", placeholder: "Words of the prompt", "aria-label": "Search", oninput: (e) => set("q")(e.target.value) });

  function bar(rounds) {
    search.value = chosen.q;
    const texts = h("datalist", { id: "prompts" }, data.prompts.map((p) => h("option", { value: p.text })));
    search.setAttribute("list", "prompts");
    tools.replaceChildren(
      ...(found.length > 1 ? [select("Experiment", found.map((e) => [e.name, e.name]), chosen.exp, set("exp", true))] : []),
      select("Round", rounds.map((r) => [r, r.replace("epoch", "round ")]), chosen.round, set("round", true)),
      h("label", { class: "field search" }, h("span", {}, "Search (/)"), search, texts),
      more, h("span", { class: "filters" },
        select("Show", [["pairs", "pairs"], ["samples", "all samples"]], chosen.show, set("show")),
        select("Adopted", ADOPTED, chosen.adopted, set("adopted")),
        select("Sort", SORTS.map(([id, text]) => [id, text]), chosen.sort, set("sort")),
        select("Mask", [["over", "over the reference"], ["plain", "plain"]], chosen.mask, set("mask"))), keysButton(KEYS));
  }

  // On a phone, filters fold away.
  const more = h("button", { class: "more", "aria-expanded": "false", onclick: () => {
    more.setAttribute("aria-expanded", String(tools.classList.toggle("whole")));
  } }, "Filters");

  function draw() {
    remember(chosen);
    stop?.();
    list.replaceChildren();
    list.className = chosen.show === "pairs" ? "cards" : "tiles";
    const wanted = chosen.q.trim().toLowerCase();
    const here = (row) => (data.prompts[row.prompt]?.text ?? "").toLowerCase().includes(wanted);
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
    if (!list.querySelector("article, figure")) list.append(blank("Nothing fits", "Choose other filters, or wait for the run."));
  }

  function card(pair) {
    const prompt = data.prompts[pair.prompt], source = (kind, i) => image(where.exp, where.round, kind, i);
    const button = h("button", { class: "open", onclick: () => open(pair.n, null, true), title: scoreLine(pair) }, marked(prompt));
    return h("article", { class: `card ${pair.adopted ? "adopted" : ""}`, "data-pair": pair.n },
      h("header", {}, h("h3", {}, button), h("span", { class: "marks" },
        pair.gain === null ? null : h("span", { class: "num dim", title: "target's score less the base's" }, `gain ${signed(pair.gain)}`),
        h("span", { class: "badge" }, state(pair)))),
      h("div", { class: "four" },
        picture("base", source("images", pair.base.i), number(pair.base.score)),
        picture("reference", source("images", pair.reference.i), number(pair.reference.score)),
        mask(pair, source),
        picture("target", pair.target.there ? source("target_images", pair.n) : null,
          number(pair.target.score))));
  }

  function mask(pair, source) {
    const t = middle(data.fused), sheet = pair.mask === null ? null : source("masks", pair.n);
    const plain = () => maskTile(sheet, data, pair, t, 0, undefined, "lazy");
    const over = () => h("div", { class: "pic" }, h("img", { src: source("images", pair.reference.i), loading: "lazy", decoding: "async", alt: "reference under the mask" }), layer(sheet, data, pair, t, 0, "lazy"));
    return h("figure", { class: "mask" },
      sheet === null ? h("div", { class: "pic none" }, "not yet") : chosen.mask === "plain" ? plain() : over(),
      h("figcaption", {}, h("b", {}, "mask"), h("span", { class: "num" }, `t = ${t}`)));
  }

  function open(n, t, push = false) {
    const at = shown.findIndex((p) => p.n === n), pairs = at < 0 ? data.pairs : shown;
    if (!data.pairs[n]) return;
    pushed = push;
    note(n, t, push);
    opened = openPair({ ...where, data, found, pairs, at: at < 0 ? data.pairs.findIndex((p) => p.n === n) : at,
      step: t === null ? null : data.steps - t, place: (k, step) => {
        clearTimeout(noting);
        noting = setTimeout(() => note(k, step), STEP_NOTED_MS);
      }, closed: (last) => {
        clearTimeout(noting);
        const back = opened && pushed;
        opened = null;
        if (back) history.back(); else remember(chosen);
        list.querySelector(`[data-pair="${pairs[last].n}"] .open`)?.focus();
      } });
  }

  const note = (n, t, push = false) => remember({ ...chosen, pair: n, t: t ?? "" }, push);

  // The address has changed within this tab: another pair, or none.
  function follow(to) {
    if ((to.get("exp") ?? where.exp) !== where.exp || (to.get("round") ?? where.round) !== where.round) return false;
    const [n, t] = at(to);
    pushed = false;
    if (n === null) close();
    else if (opened) opened.show(n, t === null ? null : data.steps - t);
    else open(n, t);
    return true;
  }

  function close() {
    if (!opened) return;
    const { dialog } = opened;
    opened = null;
    dialog.close();
  }

  function sample({ i, prompt, score }) {
    const file = image(where.exp, where.round, "images", i), shown = picture(`${i}`, file, number(score), data.prompts[prompt].text);
    shown.firstChild.replaceWith(h("a", { href: file, target: "_blank", title: data.prompts[prompt].text }, h("div", { class: "pic" }, shown.querySelector("img"))));
    return shown;
  }

  function keys(e) {
    if (document.querySelector("dialog") || typing(e)) return;
    if (e.key === "/") { e.preventDefault(); search.focus(); }
    if (e.key === "?") showKeys(KEYS);
  }

  await load();
  const news = h("button", { class: "news", hidden: true, onclick: async () => { news.hidden = true; await load(); } });
  root.append(h("h1", {}, answers ? where.exp : "Pairs"), about, tools, h("div", { class: "counts" }, count, news), list);
  document.addEventListener("keydown", keys);
  const [n, t] = at(params);
  if (n !== null) open(n, t);
  const timer = setInterval(async () => {
    if (answers || document.hidden || data.pairs.length && data.pairs.every((p) => p.adopted !== null)) return;
    const now = await get("round", { exp: chosen.exp, round: chosen.round }).catch(() => null);
    if (now && JSON.stringify([now.samples, now.pairs]) !== JSON.stringify([data.samples, data.pairs])) {
      news.hidden = false;
      news.textContent = "There is more now: show it";
    }
  }, 5000);
  return Object.assign(() => {
    close();
    clearInterval(timer);
    stop?.();
    document.removeEventListener("keydown", keys);
  }, { follow });
}

const middle = (fused) => fused[Math.floor(fused.length / 2)] ?? 1;

// The pair and the step that an address names; null for none.
function at(params) {
  const whole = (name) => (/^\d+$/.test(params.get(name) ?? "") ? Number(params.get(name)) : null);
  return [whole("pair"), whole("t")];
}

function picture(name, source, caption, title = name) {
  const shown = source
    ? h("img", { src: source, loading: "lazy", alt: title, decoding: "async" })
    : h("div", { class: "none" }, "not yet");
  return h("figure", { class: name }, h("div", { class: "pic" }, shown),
    h("figcaption", {}, h("b", {}, name), h("span", { class: "num" }, caption)));
}
