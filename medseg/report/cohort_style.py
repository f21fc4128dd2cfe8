"""Style and script of the page of an archive run; the script writes no HTML, only elements and their texts."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1b1d22; --dim: #5f6572; --paper: #fff; --line: #d9dce3; --link: #2059a8;
  --card: #f7f8fa; --warn: #fff4d6; --ok: #22824a; --check: #d99a1c; --refuse: #c42d24; --on: #fff;
  --failed: #7a3aa5; --waiting: #666c78; --done: #2f6fc4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ec; --dim: #9aa0ac; --paper: #15161a; --line: #33363f;
  --link: #8db9f5; --card: #1c1e24; --warn: #3b3213; --ok: #5ac878; --check: #f0b43c; --refuse: #f2675b; --on: #15161a;
  --failed: #c39be0; --waiting: #8d93a0; --done: #79acf0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 0; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; } p { margin: .4rem 0; }
a { color: var(--link); } code, .mono { font: .85em ui-monospace, monospace; }
.dim, small { color: var(--dim); } footer { margin: 2.5rem 0 1rem; }
.warn { background: var(--warn); padding: .6rem 1rem; border-radius: 6px; margin: .6rem 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
details { margin: 1.4rem 0; } details details { margin: .6rem 0; } summary { cursor: pointer; }
summary h2 { display: inline; } section { margin-top: 2rem; scroll-margin-top: 1rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; padding: 0; margin: 1rem 0; }
.tiles a { display: block; min-width: 6.4rem; padding: .45rem .8rem; border-radius: 6px; background: var(--card);
  border: 1px solid var(--line); border-left: 4px solid var(--tone); color: inherit; text-decoration: none; }
.tiles a:hover { border-color: var(--tone); } .tiles b { display: block; font-size: 1.3rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles .waiting { margin-right: 1.4rem; }
.ok { --tone: var(--ok); } .check { --tone: var(--check); --on: #1b1d22; } .refuse { --tone: var(--refuse); }
.failed { --tone: var(--failed); } .waiting { --tone: var(--waiting); } .done { --tone: var(--done); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } td:nth-child(2), th:nth-child(2) { text-align: right; }
td:nth-child(3) { min-width: 18rem; overflow-wrap: anywhere; }
.key span { margin-right: 1.2em; } .key span::before { content: ""; display: inline-block; width: .8em; height: .8em;
  margin-right: .4em; border-radius: 2px; background: var(--tone); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1rem 1.6rem; }
figure { margin: 0; min-width: 0; max-width: 340px; } figcaption { overflow-wrap: anywhere; line-height: 1.35; }
svg { width: 100%; height: auto; display: block; font-size: 11px; margin-top: .2rem; }
svg path { fill: var(--tone); } svg text { fill: var(--dim); } svg .axis { stroke: var(--line); }
form { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: .6rem .8rem;
  align-items: end; margin: .8rem 0; }
label { font-size: .85rem; color: var(--dim); min-width: 0; } label.tick { padding-bottom: .5rem; }
input:not([type=checkbox]), select, button { font: inherit; font-size: .95rem; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: .3rem .5rem;
  min-height: 2.2rem; }
input[type=search], select { display: block; width: 100%; } .tick input { margin-right: .4em; }
button { cursor: pointer; background: var(--card); } button:disabled { opacity: .45; cursor: default; }
.bar { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; justify-content: space-between;
  position: sticky; top: 0; background: var(--paper); padding: .5rem 0; z-index: 1;
  border-bottom: 1px solid var(--line); }
.bar p { margin: 0; } .pager { display: flex; gap: .8rem; align-items: center; justify-content: flex-end; }
.where { font-variant-numeric: tabular-nums; }
#cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem; margin: 1rem 0; }
article { border: 1px solid var(--line); border-radius: 8px; background: var(--card); overflow: hidden; min-width: 0;
  display: flex; flex-direction: column; border-top: 3px solid var(--tone); }
.shot { display: block; position: relative; background: #121214; aspect-ratio: 5 / 2; } .shot img { width: 100%;
  height: 100%; position: absolute; object-fit: contain; color: #aaa; font-size: .8rem; }
.text { padding: .6rem .8rem .7rem; display: flex; flex-direction: column; gap: .3rem; flex: 1; }
.text > * { margin: 0; overflow-wrap: anywhere; line-height: 1.4; } .text .last { margin-top: auto; font-size: .85rem; }
.badge { display: inline-block; background: var(--tone); color: var(--on); border-radius: 4px; padding: 0 .45em;
  font-size: .85rem; font-weight: 600; margin-right: .5em; }
dl { display: grid; grid-template-columns: 1fr auto; gap: 0 .8rem; font-size: .9rem;
  font-variant-numeric: tabular-nums; margin: 0; } dd { margin: 0; text-align: right; } dt { min-width: 0; }
.text details { font-size: .9rem; } .text ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap;
  gap: .3rem; } .text li a { border: 1px solid var(--line); border-radius: 4px; padding: 0 .35em; font-size: .78rem;
  text-decoration: none; color: inherit; display: block; }
@media (max-width: 600px) { .bar { position: static; } body { margin: 1rem auto; } .tiles a { min-width: 5.4rem; }
  .tiles .waiting { margin-right: 0; } .plots { grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
  .bar .pager { width: 100%; justify-content: space-between; } }
"""

SCRIPT = """
"use strict";
const PER_PAGE = 60, LABELS = 4;
const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows.map(([patient, study, series, model, kind, reasons, code, problem, volumes, seconds, folder,
  picture, thumbnail]) => ({ patient, study, series, model: data.models[model][0], labels: data.models[model][1],
  rank: kind, kind: data.kinds[kind], reasons: reasons.map((place) => data.reasons[place]), code, problem, volumes,
  seconds, folder, picture, thumbnail, text: `${series}\\n${study}\\n${patient}`.toLowerCase() }));
const form = document.getElementById("filters"), section = document.getElementById("results");
const cards = document.getElementById("cards"), found = document.getElementById("found");
const pagers = [...document.querySelectorAll(".pager")];
let page = 1, pages = 1;

// The address says what is shown, so that it can be kept, sent, and gone back to.
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) {
    if (!field.name) continue;
    const value = wanted.get(field.name) || "";
    if (field.type === "checkbox") field.checked = value === "1";
    else field.value = value;
    if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
  }
  page = parseInt(wanted.get("page"), 10) || 1;
}

function writeAddress(turnTo, replace) {
  const wanted = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) wanted.set(name, value);
  if (turnTo > 1) wanted.set("page", turnTo);
  const address = "#" + wanted;
  if (replace) location.replace(address);
  else location.hash = address;
}

function matches(row, wanted) {
  const state = row.kind === "failed" || row.kind === "waiting" ? row.kind : "done";
  return (!wanted.q || row.text.includes(wanted.q.trim().toLowerCase()))
    && (!wanted.state || state === wanted.state)
    && (!wanted.verdict || row.kind === wanted.verdict)
    && (!wanted.model || row.model === wanted.model)
    && (!wanted.reason || row.reasons.includes(wanted.reason))
    && (!wanted.code || row.code === wanted.code);
}

function volumeOf(row, label) {
  const place = row.labels.indexOf(label);
  return place < 0 ? null : row.volumes[place] ?? null;
}

function sorted(list, order, down) {
  const sign = down ? -1 : 1, label = order.startsWith("volume:") ? order.slice(7) : null;
  if (order === "series") return list.sort((a, b) => sign * (a.series < b.series ? -1 : a.series > b.series ? 1 : 0));
  if (label !== null) {
    const keyed = list.map((row) => [volumeOf(row, label), row]);
    keyed.sort(([a], [b]) => (a === null) - (b === null) || sign * (a - b));
    return keyed.map(([, row]) => row);
  }
  return down ? list.reverse() : list;
}

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function link(address, text, name) {
  const element = make("a", text, name);
  element.href = address;
  return element;
}

function volumeList(labels, row) {
  const list = make("dl");
  for (const label of labels) {
    const volume = volumeOf(row, label);
    const name = make("dt", label);
    name.dir = "auto";
    list.append(name, make("dd", volume === null ? "no size" : `${volume} mL`));
  }
  return list;
}

function shot(row, place) {
  if (!row.thumbnail) return [];
  const frame = row.picture ? link(place + row.picture, undefined, "shot") : make("div", undefined, "shot");
  const image = make("img");
  image.loading = "lazy";
  image.alt = `Picture of ${row.series}`;
  image.src = place + row.thumbnail;
  frame.append(image);
  return [frame];
}

function card(row) {
  const place = `./${row.folder ? row.folder + "/" : ""}`;
  const box = make("article", undefined, row.kind), text = make("div", undefined, "text"), head = make("p");
  head.append(make("span", row.kind, "badge"), make("b", row.series, "mono"));
  text.append(head, make("p", `${row.model}${row.seconds ? `, ${row.seconds} s` : ""}`, "dim"));
  if (row.kind === "failed") {
    const problem = make("p");
    problem.append(link(`#${new URLSearchParams({ code: row.code })}`, row.code), `: ${row.problem}`);
    text.append(problem);
  }
  const labels = row.kind === "failed" || row.kind === "waiting" ? [] : row.labels;
  if (labels.length) text.append(volumeList(labels.slice(0, LABELS), row));
  if (labels.length > LABELS) {
    const more = make("details");
    more.append(make("summary", `${labels.length - LABELS} more labels`));
    more.addEventListener("toggle", () => {
      if (more.children.length < 2) more.append(volumeList(labels.slice(LABELS), row));
    });
    text.append(more);
  }
  if (row.reasons.length) {
    const list = make("ul");
    for (const reason of row.reasons) {
      const item = make("li");
      item.append(link(`#${new URLSearchParams({ reason })}`, reason));
      list.append(item);
    }
    text.append(list);
  }
  const last = make("p", undefined, "last dim");
  last.append("patient ", make("code", row.patient), make("br"), "study ", make("code", row.study));
  if (row.folder && row.kind !== "waiting") last.append(make("br"), link(place, "all files"));
  text.append(last);
  box.append(...shot(row, place), text);
  return box;
}

function show() {
  readAddress();
  const wanted = Object.fromEntries(new FormData(form));
  const list = sorted(rows.filter((row) => matches(row, wanted)), wanted.sort, Boolean(wanted.down));
  pages = Math.max(1, Math.ceil(list.length / PER_PAGE));
  page = Math.min(Math.max(1, page), pages);
  cards.replaceChildren(...list.slice((page - 1) * PER_PAGE, page * PER_PAGE).map(card));
  found.textContent = `${list.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} results`;
  for (const pager of pagers) {
    pager.querySelector(".where").textContent = `page ${page} of ${pages.toLocaleString("en")}`;
    for (const button of pager.querySelectorAll("button")) {
      button.disabled = page + Number(button.dataset.turn) < 1 || page + Number(button.dataset.turn) > pages;
    }
  }
}

function turn(by) {
  if (page + by < 1 || page + by > pages) return;
  writeAddress(page + by, false);
  section.scrollIntoView();
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => writeAddress(1, event.target.name === "q"));
form.addEventListener("reset", (event) => { event.preventDefault(); location.hash = "#"; });
for (const pager of pagers) {
  pager.addEventListener("click", (event) => {
    if (event.target.dataset.turn) turn(Number(event.target.dataset.turn));
  });
}
document.addEventListener("click", (event) => {
  const address = event.target.closest?.("a")?.getAttribute("href") || "";
  if (address.startsWith("#")) section.scrollIntoView();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  if (event.key === "ArrowRight") turn(1);
  else if (event.key === "ArrowLeft") turn(-1);
  else if (event.key === "/") { event.preventDefault(); form.elements.q.focus(); }
});
window.addEventListener("hashchange", show);
section.hidden = false;
show();
if (location.hash.length > 1) section.scrollIntoView();
"""
