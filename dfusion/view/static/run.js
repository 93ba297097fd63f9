// One run in a dialog: its error, stages, command and settings. And the settings of several, side by side.

import { get, h, image, openDialog, say } from "./dom.js";
import { stage } from "./work.js";

// Returns what closes it.
export function open(name, names, closed) {
  const body = h("div", { class: "runbody" }, h("p", { class: "wait" }, "Loading …"));
  const { dialog } = openDialog(name, body, { closed });
  get("run", { exp: name }).then((run) => body.replaceChildren(...content(name, run, names)))
    .catch((error) => body.replaceChildren(h("p", { class: "bad" }, error.message)));
  return () => dialog.close();
}

function content(name, run, names) {
  const exp = encodeURIComponent(name), place = run.latest;
  return [
    run.error.message ? trouble(run) : null,
    run.waits ? h("p", { class: "waits" }, run.waits) : null,
    h("p", { class: "links" }, place ? h("a", { href: `#/pairs?exp=${exp}&round=${place.round}` }, "Pairs") : null,
      h("a", { href: `#/compare?exp=${exp}` }, "Before and after"), h("a", { href: `#/thresholds?exp=${exp}` }, "Thresholds")),
    h("section", { class: "two" },
      h("div", {}, h("h3", {}, place ? `Round ${place.round.replace("epoch", "")}` : "No round has begun"), h("div", { class: "stages" }, run.stages.map(stage))),
      place ? h("div", {}, h("h3", {}, "Latest images"), h("div", { class: "strip" }, place.images.map((i) =>
        h("div", { class: "pic" }, h("img", { src: image(name, place.round, place.kind, i), alt: `${place.kind} ${i}`, loading: "lazy" }))))) : null),
    h("h3", {}, "The command"), commandLine(run.command),
    h("h3", {}, "Settings"), settings(name, run.settings, names),
  ].filter(Boolean);
}

function trouble({ error, traceback }) {
  return h("section", { class: "trouble" }, h("p", { class: "bad" }, error.message), h("p", { class: "dim" }, `${error.time}, by ${error.command}`),
    traceback ? h("details", {}, h("summary", {}, "Traceback"), h("pre", {}, traceback)) : null);
}

function commandLine(command) {
  const line = h("code", { class: "line" }, command.split(/ (?=--)/).map((part, n) => [n ? " " : "", h("span", {}, part)]));
  return h("div", { class: "copy" }, line, h("button", { onclick: () => copy(command, line) }, "Copy"));
}

async function copy(text, line) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch { // not allowed: let it be copied by hand
    getSelection().selectAllChildren(line);
    say("Selected: press Ctrl-C");
  }
}

function settings(name, own, names) {
  const place = h("div");
  const others = names.filter((one) => one !== name);
  const list = h("select", { onchange: (e) => fill(e.target.value) }, h("option", { value: "" }, "nothing: show all settings"), others.map((one) => h("option", { value: one }, one)));
  async function fill(other) {
    const columns = [[name, own]];
    if (other) columns.push([other, (await get("run", { exp: other })).settings]);
    if (list.value === other) place.replaceChildren(sideBySide(columns, Boolean(other)));
  }
  fill("");
  return h("div", { class: "settings" }, h("label", { class: "field" }, h("span", {}, "Compare with"), list), place);
}

// columns: [[name, settings] …]; changed: only those that are not the same in all.
function sideBySide(columns, changed) {
  const keys = [...new Set(columns.flatMap(([, one]) => Object.keys(one)))]
    .filter((key) => key !== "exp_name" && (!changed || columns.some(([, one]) => one[key] !== columns[0][1][key])));
  if (!keys.length) return h("p", { class: "dim" }, "All settings are the same.");
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Settings" }, h("table", { class: "sides" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), columns.map(([name]) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, keys.map((key) => h("tr", {}, h("th", { scope: "row" }, key), columns.map(([, one]) => h("td", {}, one[key] === "" ? "none" : String(one[key] ?? "–"))))))));
}

export async function difference(names) {
  const body = h("div", { class: "runbody" }, h("p", { class: "wait" }, "Loading …"));
  openDialog(`What differs between ${names.length} runs`, body);
  try {
    const found = await Promise.all(names.map((exp) => get("run", { exp })));
    body.replaceChildren(sideBySide(names.map((name, n) => [name, found[n].settings]), true));
  } catch (error) {
    body.replaceChildren(h("p", { class: "bad" }, error.message));
  }
}
