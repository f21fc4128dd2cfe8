// One scan on its way, as an item of the list: sending, waiting, running, and how it ended.

import { ask, follow, Problem, send } from "./server.js";

const STAGES = {
  read: "reading",
  locate: "finding the region",
  prepare: "preparing",
  network: "network",
  blend: "network",
  restore: "back onto the scan's grid",
  clean: "cleaning",
  check: "quality check",
  write: "writing",
  picture: "drawing",
  dicom: "writing DICOM",
  done: "done",
};
const ACTIVE = ["sending", "waiting", "running"];
const SURE = 2; // seconds in the network before the time that is left is told
const OPTIONS = { "--series": "Series", "--repair": "interpolate", "--suv": "PET", "--volume": "Volume" };

export class Job {
  /** A scan by name, for a model; `on` has `ended`, `look`, `removed` and `say`. */
  constructor(name, model, on) {
    Object.assign(this, { name, model, on, id: "", info: null, unwanted: false, transfer: null });
    this.begun = performance.now();
    this.item = document.getElementById("job").content.firstElementChild.cloneNode(true);
    this.part(".name").textContent = `${name}, ${model}`;
    const acts = { cancel: () => this.cancel(), look: () => on.look(this), remove: () => this.remove() };
    for (const [kind, act] of Object.entries(acts)) {
      const button = this.part(`.${kind}`);
      button.addEventListener("click", act);
      button.setAttribute("aria-label", `${button.textContent} ${name}`);
    }
  }

  part(selector) {
    return this.item.querySelector(selector);
  }

  /** Send a form, and follow what becomes of it. */
  async run(path, form) {
    this.become("sending", "Sending");
    await this.guarded(async () => {
      this.transfer = send(path, form, (sent) => this.tell(sent, `Sending, ${Math.floor(100 * sent)} %`));
      const info = await this.transfer.answer;
      this.id = info.job;
      if (this.unwanted) await this.drop();
      await this.watch();
    });
  }

  /** Follow a job that was sent before. */
  async resume(id) {
    this.id = id;
    await this.guarded(() => this.watch());
  }

  async watch() {
    const clock = setInterval(() => this.info && this.show(this.info), 1000);
    try {
      for await (const info of follow(this.id)) this.show(info);
    } finally {
      clearInterval(clock);
    }
    this.end();
  }

  show(info) {
    this.info = info;
    const seconds = (performance.now() - this.begun) / 1000;
    if (info.state === "waiting") {
      this.become("waiting", info.before ? `Waiting, ${info.before} before it` : "Waiting, next");
      this.tell(null, `${this.said}, ${time(seconds)}`);
    } else if (info.state === "running") {
      if (info.stage === "network") this.start ??= { at: performance.now(), fraction: info.fraction };
      const stage = STAGES[info.stage] ?? info.stage;
      this.become("running", stage ? `Running: ${stage}` : "Running");
      const words = [this.said, `${Math.floor(100 * info.fraction)} %`, time(seconds), this.left(info.fraction)];
      this.tell(info.fraction, words.filter(Boolean).join(", "));
    }
  }

  left(fraction) {
    const ran = (performance.now() - this.start?.at) / 1000;
    const came = fraction - this.start?.fraction;
    return ran > SURE && came > 0.02 && fraction < 1 ? `about ${time((ran * (1 - fraction)) / came)} left` : "";
  }

  end() {
    if (this.unwanted || this.info.state === "cancelled") this.become("cancelled", "Cancelled");
    else if (this.info.state === "failed") this.fail(this.info.error);
    else this.become("done", `Done in ${time((performance.now() - this.begun) / 1000)}`);
    this.tell(1, this.said);
    this.on.ended(this);
  }

  fail(error) {
    this.become("failed", "Failed");
    showProblem(this.part(".problem"), error, this.name);
    const option = Object.keys(OPTIONS).find((each) => error.hint?.includes(each));
    if (option) this.part(".problem").append(`\nOn this page: Options, "${OPTIONS[option]}".`);
  }

  /** Do something that may fail; what went wrong is said in the item. */
  async guarded(work) {
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError" || (this.unwanted && error.status === 404)) this.become("cancelled", "Cancelled");
      else if (error instanceof Problem) this.fail(error);
      else throw error;
      this.tell(1, this.said);
      this.on.ended(this);
    }
  }

  async cancel() {
    this.unwanted = true;
    this.part(".cancel").disabled = true;
    this.part(".state").textContent = "Cancelling";
    if (this.transfer && !this.transfer.sent) this.transfer.abort();
    else if (this.id) await this.drop(); // or else as soon as the server has said its name
  }

  async drop() {
    try {
      await ask(`/jobs/${encodeURIComponent(this.id)}`, { method: "DELETE" });
    } catch (error) {
      if (error.status === 404) return; // it is not there any more
      if (!(error instanceof Problem)) throw error;
      this.unwanted = false;
      this.part(".cancel").disabled = false;
      showProblem(this.part(".problem"), error);
    }
  }

  async remove() {
    if (this.item.dataset.state === "done") await this.drop();
    this.item.remove();
    this.on.removed(this);
  }

  become(state, said) {
    if (this.said !== said) this.on.say(`${this.name}: ${said}`);
    this.said = said;
    this.item.dataset.state = state;
    const active = ACTIVE.includes(state);
    this.part("progress").hidden = !active;
    this.part(".cancel").hidden = !active;
    this.part(".remove").hidden = active;
    this.part(".look").hidden = state !== "done";
  }

  tell(fraction, words) {
    const bar = this.part("progress");
    if (fraction === null) bar.removeAttribute("value");
    else bar.value = fraction;
    const cancelling = this.part(".cancel").disabled && ACTIVE.includes(this.item.dataset.state);
    if (!cancelling) this.part(".state").textContent = words;
  }
}

/** Say what went wrong, with what, and what to do. */
export function showProblem(place, { code, problem, hint }, name = "") {
  const sentence = name ? `${name}: ${problem}` : problem.charAt(0).toUpperCase() + problem.slice(1);
  place.textContent = `${sentence}.\n${hint}`;
  place.dataset.code = code;
  place.hidden = false;
}

function time(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  return whole < 100 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
