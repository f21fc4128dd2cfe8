// The page: what is asked, the list of scans, and the token.

import { dropZone, scansIn } from "./drop.js";
import { Job, showProblem } from "./jobs.js";
import { closeResult, isOpen, listen as listenToResult, nameOf, openResult } from "./result.js";
import { ask, enter, isRight, Problem } from "./server.js";
import { listen as listenToSolid } from "./solid.js";

const KEY = "medseg-jobs"; // of this tab: so that results are found again when the page is loaded anew
const MB = 1_000_000;

const at = (id) => document.getElementById(id);
const chosen = new Map(); // scans by channel; one channel is called ""
const jobs = [];
let models = [];
let settings = null;

async function begin() {
  await enter(askForToken);
  settings = await (await ask("/page-settings")).json();
  models = await (await ask("/models")).json();
  at("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  at("formats").replaceChildren(...settings.formats.concat(settings.dicom_formats).map(formatBox));
  at("kept").textContent = `The server keeps results for ${minutes(settings.keep)} after they were last asked for.`;
  showModel();
  for (const { id, name, model } of stored()) add(name, model).resume(id);
}

function listen() {
  at("model").addEventListener("change", showModel);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    sendAll();
  });
  for (const kind of ["dragenter", "dragover"]) window.addEventListener(kind, (event) => event.preventDefault());
  window.addEventListener("drop", async (event) => {
    event.preventDefault(); // or the browser would leave the page for the file
    if (chosenModel()?.channels.length === 1) choose("", await scansIn(event.dataTransfer));
  });
  window.addEventListener("unhandledrejection", (event) => {
    if (!(event.reason instanceof Problem)) return;
    event.preventDefault();
    showProblem(at("trouble"), event.reason);
  });
}

function chosenModel() {
  return models.find((model) => model.name === at("model").value);
}

function showModel() {
  const model = chosenModel();
  at("summary").textContent = model.summary;
  at("model-labels").replaceChildren(...model.labels.map(chip));
  const channels = model.channels.length > 1 ? model.channels : [""];
  const before = channels.length === 1 ? chosen.get("") : undefined;
  chosen.clear();
  const zones = channels.map((channel) => dropZone(channel, (scans) => choose(channel, scans), refuse));
  zones.forEach((zone, n) => (zone.dataset.channel = channels[n]));
  at("drops").replaceChildren(...zones);
  choose(channels[0], before ?? []);
}

function chip(label) {
  const item = document.createElement("li");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.backgroundColor = `rgb(${label.rgb.join(" ")})`;
  item.append(swatch, label.name);
  return item;
}

function formatBox(format) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", name: "format", value: format });
  box.checked = format === "nifti";
  const label = document.createElement("label");
  label.className = "check";
  label.append(box, ` ${nameOf(format)}`);
  return label;
}

function choose(channel, scans) {
  at("ask-problem").hidden = true;
  const several = chosenModel().channels.length > 1;
  if (several && scans.length > 1) return refuse("Give one scan for each channel.");
  const large = scans.find((scan) => bytesOf(scan) > settings.upload || scan.files.length > settings.files);
  const most = `${readable(settings.upload)} and ${settings.files} files`;
  if (large) return refuse(`${large.name}: the server takes at most ${most}.`);
  chosen.set(channel, scans);
  const zone = [...at("drops").children].find((each) => each.dataset.channel === channel);
  const names = scans.map((scan) => `${scan.name} (${readable(bytesOf(scan))})`);
  zone.querySelector(".chosen").textContent = names.join("\n");
  zone.classList.toggle("filled", scans.length > 0);
  const channels = several ? chosenModel().channels : [""];
  at("send").disabled = !channels.every((each) => chosen.get(each)?.length);
}

function refuse(sentence) {
  at("ask-problem").textContent = sentence;
  at("ask-problem").hidden = false;
}

function sendAll() {
  const model = chosenModel();
  const formats = [...at("formats").querySelectorAll("input:checked")].map((box) => box.value);
  if (!formats.length) return refuse("Choose at least one kind of result, under Options.");
  const path = `/predict?${query(model.name, formats)}`;
  closeResult();
  if (model.channels.length > 1) {
    const parts = model.channels.map((channel) => [channel, chosen.get(channel)[0]]);
    add(parts[0][1].name, model.name).run(path, formOf(parts));
  } else {
    for (const scan of chosen.get("")) add(scan.name, model.name).run(path, formOf([["file", scan]]));
  }
  chosen.clear();
  showModel();
}

function query(model, formats) {
  const given = new URLSearchParams({ wait: "false", model, format: formats.join(",") });
  if (at("series").value.trim()) given.set("series", at("series").value.trim());
  if (at("volume").value) given.set("volume", at("volume").value);
  if (at("repair").checked) given.set("repair", "true");
  if (at("suv").checked) given.set("suv", "true");
  return given;
}

function formOf(parts) {
  const form = new FormData();
  for (const [name, scan] of parts) for (const file of scan.files) form.append(name, file, file.name);
  return form;
}

function add(name, model) {
  const job = new Job(name, model, {
    ended: (one) => {
      if (one.item.dataset.state === "done" && !isOpen()) look(one);
      store();
    },
    look,
    removed: (one) => {
      jobs.splice(jobs.indexOf(one), 1);
      at("scans").hidden = !jobs.length;
      if (isOpen(one)) closeResult();
      store();
    },
    say: (words) => {
      at("said").textContent = words;
      store();
    },
  });
  jobs.push(job);
  at("scans").hidden = false;
  at("jobs").prepend(job.item);
  return job;
}

async function look(job) {
  for (const each of jobs) each.item.classList.toggle("open", each === job);
  await openResult(job, settings);
}

function store() {
  const found = jobs.filter((job) => job.id && ["waiting", "running", "done"].includes(job.item.dataset.state));
  sessionStorage.setItem(KEY, JSON.stringify(found.map(({ id, name, model }) => ({ id, name, model }))));
}

function stored() {
  return JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
}

/** Ask the person for the token until it is right. */
function askForToken() {
  const dialog = at("token-dialog");
  dialog.showModal();
  dialog.onclose = () => dialog.showModal(); // nothing works without it
  return new Promise((done) => {
    at("token-form").onsubmit = async (event) => {
      event.preventDefault();
      const given = at("token").value.trim();
      at("token-problem").hidden = true;
      let right = false;
      try {
        right = await isRight(given);
      } catch (error) {
        return showProblem(at("token-problem"), error);
      }
      if (right) {
        at("token").value = "";
        dialog.onclose = null;
        dialog.close();
        done(given);
      } else {
        at("token-problem").textContent = "This is not the token of this server.";
        at("token-problem").hidden = false;
        at("token").select();
      }
    };
  });
}

function bytesOf(scan) {
  return scan.files.reduce((sum, file) => sum + file.size, 0);
}

function readable(bytes) {
  return bytes < MB ? `${Math.ceil(bytes / 1000)}\u00a0kB` : `${(bytes / MB).toFixed(1)}\u00a0MB`;
}

function minutes(seconds) {
  return seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} minutes`;
}

listenToResult();
listenToSolid();
listen();
begin();
