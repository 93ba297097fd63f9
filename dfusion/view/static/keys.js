// The list of keys, on "?".

import { h, openDialog } from "./dom.js";

export function showKeys(rows) {
  openDialog("Keys", h("dl", { class: "keylist" }, rows.map(([keys, does]) =>
    [h("dt", {}, keys.map((key) => h("kbd", {}, key))), h("dd", {}, does)])));
}

export const keysButton = (rows) => h("button", { class: "ask", onclick: () => showKeys(rows), "aria-label": "Keys (?)", title: "Keys (?)" }, "?");
