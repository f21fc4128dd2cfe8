// A result: verdict, planes, table of labels, warnings, files.

import { showProblem } from "./jobs.js";
import { Planes } from "./planes.js";
import { ask, Problem } from "./server.js";
import { openSolid } from "./solid.js";

const VERDICTS = {
  ok: ["✓", "OK", "the quality check found nothing unusual"],
  check: ["!", "CHECK", "look closely before you use this result"],
  refuse: ["✕", "REFUSE", "do not use this result"],
};
const KINDS = {
  nifti: "NIfTI",
  nrrd: "NRRD",
  mha: "MetaImage",
  "seg.nrrd": "seg.nrrd (3D Slicer)",
  "dicom-seg": "DICOM SEG",
  "dicom-labelmap": "DICOM label map",
  rtstruct: "RTSTRUCT",
  sr: "DICOM SR",
  sc: "DICOM picture",
  picture: "Picture",
  report: "Report (JSON)",
  zip: "All (zip)",
};
const SUFFIX = /(\.nii\.gz|\.seg\.nrrd|\.[a-z0-9]{1,5})$/i;

let open = null; // the job that is shown, and its planes

const at = (id) => document.getElementById(id);

/** How a format of results is called. */
export const nameOf = (kind) => KINDS[kind] ?? kind;

/** Whether a result is shown, of a job if one is given. */
export const isOpen = (job) => open !== null && (!job || open.job === job);

/** Show no result. */
export function closeResult() {
  open?.planes?.close();
  open = null;
  at("result").hidden = true;
}

/** Show the result of a job; `settings` are those of the page. */
export async function openResult(job, settings) {
  closeResult();
  const mine = { job, planes: null };
  open = mine;
  const { report, results } = job.info;
  at("result-title").textContent = job.name;
  at("result-about").textContent = aboutScan(report);
  at("result-problem").hidden = true;
  at("open-solid").hidden = true;
  at("planes").replaceChildren();
  showVerdict(report.qc);
  showList("warnings", report.scan.warnings);
  at("notes").textContent = [`${report.device}, ${seconds(report)}`, ...report.notes].join("; ");
  at("downloads").replaceChildren(...[...Object.keys(results), "zip"].map((kind) => download(job, kind)));
  showLabels(report.labels, []);
  at("result").hidden = false;
  await guarded(async () => {
    const about = await (await ask(`/jobs/${encodeURIComponent(job.id)}/planes`)).json();
    if (open !== mine) return;
    const failed = (error) => open === mine && showProblem(at("result-problem"), error);
    mine.planes = new Planes(at("planes"), job.id, about, failed);
    showLabels(report.labels, about.labels);
    at("open-solid").hidden = !(settings.viewer && about.physical && about.views.length === 3);
  });
}

/** Let the controls of the result do what they say. */
export function listen() {
  at("lines").addEventListener("change", () => at("planes").classList.toggle("bare", !at("lines").checked));
  at("open-solid").addEventListener("click", () => guarded(() => openSolid(open.job, open.planes)));
  at("labels").addEventListener("change", (event) => {
    const boxes = [...at("labels").querySelectorAll("tbody input")];
    if (event.target === at("all-labels")) boxes.forEach((box) => (box.checked = at("all-labels").checked));
    mark(boxes);
    open?.planes?.hide(boxes.filter((box) => !box.checked).map((box) => box.value));
  });
}

function mark(boxes) {
  const shown = boxes.filter((box) => box.checked).length;
  at("all-labels").checked = shown === boxes.length;
  at("all-labels").indeterminate = shown > 0 && shown < boxes.length;
}

function aboutScan(report) {
  const { shape, spacing_mm: spacing, orientation } = report.scan;
  const grid = `${shape.join(" × ")} voxels`;
  const size = spacing ? `${grid} of ${spacing.map((mm) => +mm.toFixed(3)).join(" × ")} mm, ${orientation}` : grid;
  return `${report.model.name} ${report.model.version}; ${size}`;
}

function seconds(report) {
  const sum = Object.values(report.seconds).reduce((a, b) => a + b, 0);
  return `${sum.toFixed(1)} s of work`;
}

function showVerdict(qc) {
  const [sign, word, meaning] = VERDICTS[qc.verdict] ?? ["?", qc.verdict, ""];
  const head = element("p", "", element("span", "sign", sign), element("strong", "", word), `: ${meaning}`);
  head.querySelector(".sign").setAttribute("aria-hidden", "true");
  const reasons = qc.reasons.map((reason) => {
    const item = element("li", "", `${reason.detail} `, element("code", "", reason.code));
    item.dataset.severity = reason.severity;
    return item;
  });
  at("verdict").dataset.verdict = qc.verdict;
  at("verdict").replaceChildren(head, ...(reasons.length ? [element("ul", "", ...reasons)] : []));
}

function showList(id, lines) {
  at(id).hidden = !lines.length;
  at(id).querySelector("ul").replaceChildren(...lines.map((line) => element("li", "", line)));
}

function showLabels(labels, drawn) {
  const colours = new Map(drawn.map((each) => [each.name, each.rgb]));
  const physical = labels.every((label) => label.volume_ml !== null);
  at("size-head").textContent = physical ? "volume, mL" : "pixels";
  const rows = labels.map((label) => {
    const box = element("input", "");
    Object.assign(box, { type: "checkbox", checked: true, value: label.name });
    const swatch = element("span", "swatch");
    if (colours.has(label.name)) swatch.style.backgroundColor = `rgb(${colours.get(label.name).join(" ")})`;
    const name = element("th", "", element("label", "check", box, swatch, label.name));
    name.scope = "row";
    if (label.snomed) name.title = `SNOMED CT ${label.snomed.code} ${label.snomed.meaning}`;
    const size = physical ? label.volume_ml.toFixed(3) : `${label.voxels}`;
    const dice = label.expected_dice === null ? "–" : label.expected_dice.toFixed(2);
    return element("tr", "", name, element("td", "number", size), element("td", "number", dice));
  });
  at("labels").querySelector("tbody").replaceChildren(...rows);
  mark([...at("labels").querySelectorAll("tbody input")]);
}

function download(job, kind) {
  const button = element("button", "", nameOf(kind));
  button.type = "button";
  button.dataset.kind = kind;
  button.addEventListener("click", () =>
    guarded(async () => {
      const file = await (await ask(`/jobs/${encodeURIComponent(job.id)}/results/${encodeURIComponent(kind)}`)).blob();
      const link = element("a", "");
      link.href = URL.createObjectURL(file);
      link.download = fileName(job, kind);
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }),
  );
  return button;
}

function fileName(job, kind) {
  const stem = job.name.replace(SUFFIX, "") || "scan";
  const own = kind === "zip" ? "segmentation.zip" : job.info.report.outputs[kind];
  return own.replace("segmentation", `${stem}_seg`);
}

async function guarded(work) {
  at("result-problem").hidden = true;
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(at("result-problem"), error);
  }
}

function element(tag, kind, ...content) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...content); // strings become text, never markup
  return made;
}
