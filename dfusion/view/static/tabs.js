// Tabs, and the address that says what is shown: #/pairs?exp=demo&round=epoch0

import { blank, h } from "./dom.js";

// tabs: rows of id, title and a view with show(root, params, remember). What show() returns is called when the
// tab is left; if that has a `follow`, an address within the tab is given to it first.
export function start(tabs) {
  const main = document.getElementById("main");
  let leave = null, shown = null, turn = 0;

  function place() {
    const [, tab, query] = /^#\/([a-z]*)\??(.*)$/.exec(location.hash) ?? [null, "", ""];
    return { tab: tabs.find(([id]) => id === tab) ?? tabs[0], params: new URLSearchParams(query) };
  }

  // What a tab chooses goes into the address, so that reloading and links keep it; `push`: Back leads to before it.
  function remember(tab) {
    return (chosen, push = false) => {
      const query = new URLSearchParams();
      for (const [key, value] of Object.entries(chosen))
        for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") query.append(key, one);
      history[push ? "pushState" : "replaceState"](null, "", `#/${tab}?${query}`);
    };
  }

  async function show() {
    const { tab: [id, title, view], params } = place();
    if (id === shown && leave?.follow?.(params)) return;
    const mine = ++turn;
    leave?.();
    leave = shown = null;
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
      shown = id;
      main.replaceChildren(root);
    } catch (error) {
      if (mine === turn) main.replaceChildren(blank("This cannot be shown", error.message));
    }
  }

  document.getElementById("tabs").append(...tabs.map(([id, title]) =>
    h("a", { href: `#/${id}`, "data-tab": id }, title)));
  document.querySelector(".skip").addEventListener("click", (e) => { e.preventDefault(); main.focus(); });
  window.addEventListener("hashchange", show);
  show();
}
