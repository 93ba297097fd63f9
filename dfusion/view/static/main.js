// Tabs, and the address that says what is shown: #/pairs?exp=demo&round=epoch0

import { blank, h } from "./dom.js";
import * as compare from "./compare.js";
import * as pairs from "./pairs.js";
import * as rate from "./rate.js";
import * as runs from "./runs.js";
import * as thresholds from "./thresholds.js";

const TABS = [
  ["runs", "Runs", runs],
  ["pairs", "Pairs", pairs],
  ["compare", "Before and after", compare],
  ["thresholds", "Thresholds", thresholds],
  ["rate", "Rate", rate],
];
const main = document.getElementById("main");
let leave = null;
let turn = 0;

function place() {
  const [, tab, query] = /^#\/([a-z]*)\??(.*)$/.exec(location.hash) ?? [null, "runs", ""];
  return { tab: TABS.find(([id]) => id === tab) ?? TABS[0], params: new URLSearchParams(query) };
}

// What a tab chooses goes into the address, so that reloading and links keep it.
function remember(tab) {
  return (chosen) => {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(chosen))
      for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") query.append(key, one);
    history.replaceState(null, "", `#/${tab}?${query}`);
  };
}

async function show() {
  const { tab: [id, title, view], params } = place();
  const mine = ++turn;
  leave?.();
  leave = null;
  document.title = `${title} · D-Fusion`;
  for (const link of document.querySelectorAll("#tabs a"))
    if (link.dataset.tab === id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  main.replaceChildren(h("p", { class: "wait" }, "Loading …"));
  const root = h("div", { class: `tab ${id}` });
  try {
    const left = await view.show(root, params, remember(id));
    if (mine !== turn) { left?.(); return; }
    leave = left ?? null;
    main.replaceChildren(root);
  } catch (error) {
    if (mine === turn) main.replaceChildren(blank("This cannot be shown", error.message));
  }
}

document.getElementById("tabs").append(...TABS.map(([id, title]) =>
  h("a", { href: `#/${id}`, "data-tab": id }, title)));
document.querySelector(".skip").addEventListener("click", (e) => { e.preventDefault(); main.focus(); });
window.addEventListener("hashchange", show);
show();
