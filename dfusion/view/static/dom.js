// Elements, requests and numbers. Texts from data only ever become text nodes.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (key === "value" || key === "checked" || key === "disabled") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

export function address(path, params = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params))
    for (const one of [value].flat()) if (one !== null && one !== undefined) query.append(key, one);
  return `${path}?${query}`;
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Error("The app does not answer; is it still running?");
  }
  const value = await response.json().catch(() => ({ error: response.statusText }));
  if (!response.ok) throw new Error(value.error ?? response.statusText);
  return value;
}

// On the page of an experiment, the app's answers by address; null in the app.
const inside = document.getElementById("answers");
export const answers = inside && JSON.parse(inside.textContent);

export async function get(path, params) {
  if (!answers) return answer(fetch(address(`/api/${path}`, params)));
  return answers[path] ?? answers[address(path, params)];
}

export const post = (path, body) => answer(fetch(`/api/${path}`, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
}));

export const image = (exp, round, kind, i) =>
  answers ? `${round}/${kind}/${String(i).padStart(5, "0")}.png` : address("/image", { exp, round, kind, i });

// At the bottom, or at the top if that would hide an image that is being rated.
function clearOf(toast) {
  toast.classList.remove("up");
  const low = toast.getBoundingClientRect().top;
  const hidden = [...document.querySelectorAll(".trial img")].some((img) => {
    const { top, bottom } = img.getBoundingClientRect();
    return bottom > low && top < innerHeight;
  });
  toast.classList.toggle("up", hidden);
}

export function say(text, bad = false) {
  const toast = document.getElementById("toast");
  toast.textContent = text;
  toast.className = `on${bad ? " bad" : ""}`;
  clearOf(toast);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { toast.className = ""; }, bad ? 8000 : 3000);
}

export const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
export const signed = (value) => (value > 0 ? "+" : "") + number(value);
export const percent = (value, digits = 0) =>
  value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "not known yet";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function select(label, options, value, change) {
  const list = h("select", { onchange: (e) => change(e.target.value) },
    options.map(([v, text]) => h("option", { value: v }, text)));
  list.value = value;
  return h("label", { class: "field" }, h("span", {}, label), list);
}

export function blank(title, ...more) {
  return h("div", { class: "blank" }, h("h2", {}, title), more.map((m) => h("p", {}, m)));
}

// Appends items as the end of the list comes near: a round of any size opens at once.
export function lazily(list, items, make, chunk = 24) {
  const end = h("div", { class: "sentinel" });
  let shown = 0;
  const more = () => {
    end.before(...items.slice(shown, shown + chunk).map(make));
    shown += chunk;
    observer.unobserve(end);
    if (shown >= items.length) end.remove();
    else observer.observe(end); // anew: it may still be near
  };
  const observer = new IntersectionObserver((seen) => {
    if (seen.some((s) => s.isIntersecting)) more();
  }, { rootMargin: "600px" });
  list.append(end);
  more();
  return () => { observer.disconnect(); end.remove(); };
}

export const typing = (event) =>
  event.ctrlKey || event.metaKey || event.altKey ||
  event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea") !== null;

export function openDialog(title, content, { keys, closed } = {}) {
  const close = h("button", { onclick: () => dialog.close(), "aria-label": "Close (Esc)" }, "Close");
  const heading = h("h2", {}, title);
  const tools = h("span", { class: "tools" });
  const dialog = h("dialog", {
    onclose: () => { dialog.remove(); closed?.(); },
    onkeydown: (e) => { if (!typing(e)) keys?.(e); },
    onclick: (e) => { if (e.target === dialog) dialog.close(); },
  }, h("header", {}, heading, tools, close), content);
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, heading, tools };
}
