// The scan and its labels in 3D, by niivue, which the server has where its user fetched it.

import { ask, Problem } from "./server.js";

const SLIDERS = ["solid-scan", "solid-labels"]; // how opaque the volumes are, in their order

let view = null;

const at = (id) => document.getElementById(id);

/** Show a job in 3D, where its planes meet; labels that are hidden there are hidden here. */
export async function openSolid(job, planes) {
  const dialog = at("solid");
  dialog.dataset.state = "loading";
  at("solid-title").textContent = job.name;
  at("solid-said").textContent = "Loading";
  dialog.showModal();
  try {
    await load("/page/niivue.js");
    view ??= await begin();
    const [scan, map] = await Promise.all(["scan", "labels"].map((which) => volume(job, which)));
    while (view.volumes.length) view.removeVolume(view.volumes[0]);
    view.addVolume(scan);
    map.setColormapLabel(colours(planes.about.labels, planes.hidden));
    view.addVolume(map);
    view.scene.crosshairPos = planes.meeting.map((fraction) => 1 - fraction); // those count to left, back, down
    fade();
    at("solid-said").textContent = "";
    dialog.dataset.state = "shown";
  } catch (error) {
    dialog.dataset.state = "failed";
    if (error instanceof Problem) {
      dialog.close();
      throw error;
    }
    at("solid-said").textContent = "3D does not work in this browser: it needs WebGL 2.";
    console.warn(error);
  }
}

/** Let the controls do what they say. */
export function listen() {
  at("close-solid").addEventListener("click", () => at("solid").close());
  for (const slider of SLIDERS) at(slider).addEventListener("input", fade);
}

function fade() {
  SLIDERS.forEach((slider, n) => view?.volumes.length > n && view.setOpacity(n, at(slider).valueAsNumber / 100));
}

async function begin() {
  const made = new window.niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.62, 0.91, 1, 0.6],
    crosshairWidth: 1,
    crosshairWidthUnit: "percent",
    dragAndDropEnabled: false,
    fontColor: [1, 0.88, 0.54, 1],
    isRadiologicalConvention: true, // the patient's right on the left, as in the planes
    logLevel: "error",
    sagittalNoseLeft: true,
    show3Dcrosshair: true,
    showAllOrientationMarkers: true,
  });
  await made.attachToCanvas(at("solid-canvas"));
  made.setSliceType(made.sliceTypeMultiplanar);
  made.setMultiplanarLayout(2);
  made.opts.multiplanarShowRender = window.niivue.SHOW_RENDER.ALWAYS;
  return made;
}

async function volume(job, which) {
  const bytes = await (await ask(`/jobs/${encodeURIComponent(job.id)}/solid/${which}`)).arrayBuffer();
  return window.niivue.NVImage.new(bytes, `${which}.nii.gz`, "gray", 1, null, 0, 255);
}

function colours(labels, hidden) {
  const table = [{ rgb: [0, 0, 0], name: "" }, ...labels];
  const channel = (n) => table.map((each) => each.rgb[n]);
  return {
    R: channel(0),
    G: channel(1),
    B: channel(2),
    A: table.map((each, n) => (n && !hidden.has(each.name) ? 255 : 0)),
    I: table.map((_, n) => n),
    labels: table.map((each) => each.name),
  };
}

function load(address) {
  if (window.niivue) return Promise.resolve();
  return new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = address;
    script.addEventListener("load", done);
    script.addEventListener("error", () => fail(new Error("the viewer cannot be loaded")));
    document.head.append(script);
  });
}
