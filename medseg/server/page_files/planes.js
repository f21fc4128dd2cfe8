// A result in its planes: pictures that the server draws; of many wanted at once only the newest is asked for.

import { ask, Problem } from "./server.js";

const NOTCH = 60; // pixels of a mouse wheel for one plane
const LINE = 40; // pixels of a line, where a wheel counts lines
const AXES = { axial: "ijk", coronal: "ikj", sagittal: "jki", picture: "ijk" }; // to the right, down, across

export class Planes {
  /** The planes of a job in a box; `about` is what the server says of them, `failed` is told what goes wrong. */
  constructor(box, job, about, failed) {
    this.path = `/jobs/${encodeURIComponent(job)}/planes`;
    this.about = about;
    this.failed = failed;
    this.hidden = new Set();
    this.closed = false;
    this.views = about.views.map((each) => this.build(each));
    box.replaceChildren(...this.views.map((view) => view.figure));
    this.views.forEach((view) => this.go(view, view.at));
  }

  /** Stop; what is still on its way is not shown. */
  close() {
    this.closed = true;
    for (const view of this.views) if (view.url) URL.revokeObjectURL(view.url);
  }

  /** Where the planes meet: fractions of the ways to the left, back and down. */
  get meeting() {
    return [..."ijk"].map((axis) => {
      const view = this.views.find((each) => each.across === axis);
      return (view.at + 0.5) / view.planes;
    });
  }

  /** Leave out labels of these names. */
  hide(names) {
    this.hidden = new Set(names);
    this.views.forEach((view) => this.draw(view));
  }

  build(about) {
    const figure = document.getElementById("plane").content.firstElementChild.cloneNode(true);
    const [right, down, across] = AXES[about.view];
    const part = (selector) => figure.querySelector(selector);
    const view = { ...about, figure, part, right, down, across, at: about.first, shown: "", busy: false, url: "" };
    figure.dataset.view = about.view;
    part("figcaption").textContent = about.view.charAt(0).toUpperCase() + about.view.slice(1);
    [..."left right upper lower".split(" ").entries()].forEach(([n, edge]) => {
      part(`.letter.${edge}`).textContent = about.letters[n] ?? "";
    });
    const [width, height] = [right, down].map((axis) => this.about.extent["ijk".indexOf(axis)]);
    part(".picture").style.aspectRatio = `${width} / ${height}`;
    part(".picture").classList.add(width >= height ? "broad" : "tall");
    const slider = part("input");
    slider.max = about.planes - 1;
    slider.setAttribute("aria-label", `${about.view} plane`);
    slider.addEventListener("input", () => this.go(view, slider.valueAsNumber));
    this.listen(view);
    return view;
  }

  listen(view) {
    const frame = view.part(".frame");
    let turned = 0;
    frame.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        turned += event.deltaMode ? event.deltaY * LINE : event.deltaY;
        const steps = Math.trunc(turned / NOTCH);
        turned -= steps * NOTCH;
        if (steps) this.go(view, view.at + Math.sign(steps));
      },
      { passive: false },
    );
    const picture = view.part(".picture");
    picture.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      view.part("input").focus(); // so that the arrow keys turn this one
      picture.setPointerCapture(event.pointerId);
      this.meet(view, event);
    });
    picture.addEventListener("pointermove", (event) => {
      if (picture.hasPointerCapture(event.pointerId)) this.meet(view, event);
    });
  }

  /** Let the other planes go through a point of one. */
  meet(view, event) {
    const box = view.part(".picture").getBoundingClientRect();
    const parts = {
      [view.right]: (event.clientX - box.left) / box.width,
      [view.down]: (event.clientY - box.top) / box.height,
    };
    for (const other of this.views) {
      if (other !== view && other.across in parts) this.go(other, Math.floor(parts[other.across] * other.planes));
    }
  }

  /** Show another plane of a view. */
  go(view, at) {
    view.at = Math.min(view.planes - 1, Math.max(0, at));
    view.part("input").value = view.at;
    const words = `${view.at + 1} of ${view.planes}`;
    view.part("input").setAttribute("aria-valuetext", words);
    view.part("output").textContent = words;
    for (const other of this.views) this.place(other);
    this.draw(view);
  }

  /** Put the lines where the other planes cut a view. */
  place(view) {
    for (const [line, axis, side] of [["down", view.right, "left"], ["across", view.down, "top"]]) {
      const other = this.views.find((each) => each.across === axis);
      view.part(`.line.${line}`).hidden = !other;
      if (other) view.part(`.line.${line}`).style[side] = `${(100 * (other.at + 0.5)) / other.planes}%`;
    }
  }

  wanted(view) {
    const query = new URLSearchParams();
    if (this.hidden.size && this.hidden.size === this.about.labels.length) query.append("bare", "true");
    else for (const name of this.hidden) query.append("hidden", name);
    return `${this.path}/${encodeURIComponent(view.view)}/${view.at}?${query}`;
  }

  async draw(view) {
    if (view.busy) return; // what is wanted when the picture on its way has come, is drawn next
    view.busy = true;
    try {
      for (let path = this.wanted(view); path !== view.shown && !this.closed; path = this.wanted(view)) {
        const at = view.at;
        const picture = await (await ask(path)).blob();
        if (this.closed) return;
        await this.put(view, picture);
        view.shown = path;
        view.part("img").alt = `${view.view} plane ${at + 1} of ${view.planes}`;
        view.figure.dataset.shown = path;
      }
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (!this.closed) this.failed(error);
    } finally {
      view.busy = false;
    }
  }

  async put(view, picture) {
    const before = view.url;
    const image = view.part("img");
    view.url = URL.createObjectURL(picture);
    image.src = view.url;
    await image.decode();
    if (before) URL.revokeObjectURL(before);
  }
}
