// The dialog in which models are trained, watched, and put back.

import * as api from "./api.js";
import { $, attempt, confirmed, el, say } from "./dom.js";

const NAMES = { classification: "Findings", segmentation: "Outlines" };
const OUTCOMES = {
  replaced: "the new model was better, and is in use", kept: "not shown to be better: the earlier model stays in use",
  first: "the first model, in use; it was compared with none",
};
const number = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

export class Training {
  #busy = false;
  #timer = 0;
  #last = null; // task that was started last from here

  /** `changed` is called when another model may be in use. */
  constructor(changed) {
    this.changed = changed;
    $("open-training").addEventListener("click", () => this.open());
  }

  async open() {
    $("training").showModal();
    await this.#try(() => this.refresh());
  }

  /** As `attempt`, but what is wrong stands in the dialog, too, as the line of messages lies behind it. */
  async #try(action) {
    $("training-message").textContent = "";
    try {
      await action();
    } catch (error) {
      say(error.message, "bad");
      $("training-message").textContent = error.message;
    }
  }

  async refresh() {
    const [info, setup, task] = await Promise.all([api.info(), api.setup(), api.training()]);
    this.#busy = ["SUBMITTED", "RUNNING"].includes(task?.status);
    this.#last = task?.request?.model ?? null;
    const focused = document.activeElement?.id;
    const parts = Object.keys(info.trainers).map((name) => this.#part(name, info, setup.versions[name] ?? [], task));
    $("trainers").replaceChildren(...(parts.length ? parts : [el("p", {}, "Nothing can be trained: start the server " +
      "with --findings or --classes, and a model folder that has an encoder.")]));
    if (focused) $(focused)?.focus();
    this.#headline(info.train_stats);
    if (this.#busy) this.#watchSoon(1000);
  }

  #watchSoon(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => attempt(() => this.#watch()), milliseconds);
  }

  async #watch() {
    this.#watchSoon(5000); // if the server does not answer this time
    await this.refresh();
    if (this.#busy) return;
    clearTimeout(this.#timer);
    const { train_stats: stats } = await api.info();
    const result = stats[this.#last] ?? {};
    say(result.failed ? `Training failed: ${result.failed}` : `Training ended: ${OUTCOMES[result.model] ?? "stopped"}`,
      result.failed ? "bad" : "good");
    await this.changed();
  }

  #headline(stats) {
    const { epoch = 0, total_epochs: total } = stats[this.#last] ?? {};
    $("open-training").firstChild.textContent = !this.#busy ? "Train "
      : total ? `Training: epoch ${epoch} of ${total} ` : "Training starts … ";
  }

  #part(task, info, versions, running) {
    const stats = info.train_stats[task] ?? {}, mine = this.#busy && running.request?.model === task;
    const field = $(`epochs-${task}`) ?? el("input", { // the same one each time, as somebody may be typing in it
      id: `epochs-${task}`, type: "number", min: 1, max: 10000, value: info.trainers[task].config?.max_epochs ?? 30 });
    const start = el("button", { id: `train-${task}`, type: "button", class: "primary", disabled: this.#busy,
      onclick: () => this.#try(async () => {
        await api.train(task, { max_epochs: Number(field.value) });
        await this.refresh();
      }) }, "Train");
    const stop = el("button", { id: `stop-${task}`, type: "button", hidden: !mine,
      onclick: () => this.#try(async () => { await api.stopTraining(); await this.refresh(); }) }, "Stop");
    return el("section", { "aria-label": NAMES[task] },
      el("h3", {}, `${NAMES[task]} `, el("small", {}, info.trainers[task].description ?? "")),
      el("p", { class: "row" }, el("label", {}, "Epochs ", field), start, stop),
      mine ? el("progress", { max: stats.total_epochs || 1, value: stats.total_epochs ? stats.epoch || 0 : null,
        "aria-label": "epochs" }) : null,
      this.#result(stats, mine), this.#versions(task, versions));
  }

  #result(stats, mine) {
    if (stats.failed) return el("p", { class: "bad" }, `The last training failed: ${stats.failed}`);
    if (mine) return el("p", {}, (stats.total_epochs ? `Epoch ${stats.epoch ?? 0} of ${stats.total_epochs}. `
      : "It starts. ") + "You can go on labelling.");
    if (!stats.model) return el("p", {}, "Not trained yet. At least 4 labelled images of 2 patients are needed.");
    const judged = Object.entries(stats.judged ?? {}).map(([name, { verdict, with: present, without, difference }]) =>
      el("tr", {}, ...[name, verdict, present, without, difference
        ? `${number(difference[0])} (${number(difference[1])} to ${number(difference[2])})` : "–",
      ].map((cell) => el("td", {}, String(cell)))));
    const head = ["", "new model", "with it", "without", "difference (95 % interval)"];
    return el("div", {},
      el("p", {}, `Last training (run ${stats.run}, ${stats.total_time}): ${OUTCOMES[stats.model]}. ${stats.training} ` +
        `images trained on, ${stats.validation} held back; score ${number(stats.validation_before)} before, ` +
        `${number(stats.best_metric)} with the new model.`),
      judged.length ? el("table", {}, el("caption", {}, "Compared on the patients held back"),
        el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, cell))), ...judged) : null,
      stats.warnings?.length ? el("ul", { class: "warnings" }, ...stats.warnings.map((text) => el("li", {}, text))) : null);
  }

  #versions(task, versions) {
    const line = (version) => el("li", {},
      el("span", {}, version.run ? `Run ${version.run}, ${version.made.slice(0, 16).replace("T", " ")} UTC` +
        `${version.validation ? `: score ${number(version.best_metric)} on ${version.validation} held back` : ""}`
        : "The model that the server was started with"),
      version.in_use ? el("strong", {}, "in use") : el("button", {
        type: "button", id: `use-${task}-${version.run}`, disabled: this.#busy, onclick: () => this.#use(task, version),
      }, "Use this one"));
    if (!versions.length) return el("p", {}, "There is no model of it yet.");
    return el("div", {}, el("h4", {}, "Models"), el("ul", { class: "versions" }, ...versions.map(line)));
  }

  async #use(task, { run }) {
    const which = run ? `the model of run ${run}` : "the model that the server was started with";
    if (!(await confirmed(`Put ${which} in use in place of the present one? No model is deleted.`, "Use it"))) return;
    await this.#try(async () => {
      await api.useVersion(task, run);
      await this.refresh();
      say(`In use now: ${which}`, "good");
      await this.changed();
    });
  }
}
