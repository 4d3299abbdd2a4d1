// What the models say of the image that is shown: probabilities, heatmap, outline.

import * as api from "./api.js";
import { $, attempt, el } from "./dom.js";
import { outline } from "./mask.js";
import { colourOf, paleOf } from "./viewer.js";

const HEATMAPS = { anomaly_heatmap: "unlike normal", classification: "finding (Grad-CAM)" };
const OUTLINES = { segmentation: "segmentation", anomaly_regions: "unlike normal" };

/** Put choices into a select, and keep what was chosen. */
export function choose(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

export class Opinions {
  models = {};
  labels = {}; // of the classifier: {probability, threshold, above_threshold} by finding
  #image = null;
  #outlines = []; // of the model: {path, colour}
  #answers = new Map(); // promises of what the models say of this image
  #prepared = null; // the same of the next one: {image, answers}
  #turn = 0; // answers that are no longer wanted are dropped

  /** `board` has `mask` (or null) and `classes`; `changed` is called when there is something to show. */
  constructor(viewer, board, changed) {
    Object.assign(this, { viewer, board, changed });
    for (const id of ["heat", "heat-kind", "outline", "outline-kind", "opinion"]) {
      $(id).addEventListener("change", () => this.ask());
    }
    $("mine").addEventListener("change", () => this.draw());
  }

  /** Offer what the models of the server (as in its info) can do, with the warnings about them. */
  offer(models) {
    this.models = models;
    for (const [id, names] of [["heat", HEATMAPS], ["outline", OUTLINES]]) {
      const able = Object.entries(names).filter(([task]) => models[task]);
      choose($(`${id}-kind`), able);
      $(`${id}-row`).hidden = !able.length;
    }
    $("opinion-box").hidden = !models.classification;
    $("take").disabled = !models.segmentation;
    const warnings = Object.entries(models).flatMap(([task, { warnings: texts = [], not_calibrated: bare = [] }]) => {
      const missing = bare.length && !texts.some((text) => text.startsWith("not calibrated"));
      return [...texts, ...(missing ? [`not calibrated: ${bare.join(", ")}`] : [])].map((text) => `${task}: ${text}`);
    });
    $("warnings").replaceChildren(...warnings.map((text) => el("li", {}, text)));
    $("warnings-box").hidden = $("warned").hidden = !warnings.length;
  }

  /** Another image is shown, or other models are in use. */
  turnTo(image = this.#image) {
    this.labels = {};
    this.#image = image;
    this.#outlines = [];
    this.#answers = this.#prepared?.image === image ? this.#prepared.answers : new Map();
    this.#prepared = null;
    this.viewer.setHeat(null);
    this.draw();
    this.ask(); // not waited for: the image can be judged before
  }

  /** Show what is switched on; the models are asked once for each image. */
  ask() {
    const turn = ++this.#turn;
    const show = (id, put) => attempt(async () => {
      const task = this.#task(id);
      let answer = null;
      try {
        if ($(id).checked && this.models[task] && this.#image !== null) answer = await this.#answer(id, task);
      } finally { // an answer to an earlier choice must not stay under this one
        if (turn === this.#turn) put(answer, task);
      }
    });
    if (this.#prepared) this.prepare(this.#prepared.image); // something else may be switched on now
    $("heat-note").textContent = $("heat").checked ? "Heatmap: asking the model …" : "";
    show("opinion", (answer) => { this.labels = answer?.labels ?? {}; this.changed(); });
    show("heat", (map, task) => {
      this.viewer.setHeat(map?.values ?? null);
      const meaning = task === "classification" ? `for ${map?.facts.heatmap?.label ?? "the likeliest finding"}`
        : map?.facts.anomaly?.meaning ?? "what is unlike normal radiographs";
      $("heat-note").textContent = map ? `Heatmap: ${meaning}` : "";
    });
    show("outline", (map) => {
      this.#outlines = map ? this.#paths(map.values, Object.values(map.facts.label_names ?? {}), paleOf) : [];
      this.draw();
    });
  }

  /** Ask what is switched on of an image that will be shown; of one at a time, which an answer for another replaces. */
  prepare(image) {
    if (this.#prepared?.image !== image) this.#prepared = { image, answers: new Map() };
    for (const [id, task] of this.#wanted()) this.#answer(id, task, image, this.#prepared.answers).catch(() => {});
  }

  /** Wait for what was asked of the image that is shown, whether it is answered or not. */
  answered() { return Promise.allSettled(this.#answers.values()); }

  /** What is switched on and can be asked: [id, task]. */
  #wanted() {
    return ["opinion", "heat", "outline"].map((id) => [id, this.#task(id)])
      .filter(([id, task]) => $(id).checked && this.models[task]);
  }

  #task(id) { return id === "opinion" ? "classification" : $(`${id}-kind`).value; }

  #answer(id, task, image = this.#image, answers = this.#answers) {
    const key = `${id} ${task}`;
    if (!answers.has(key)) {
      const answer = id === "opinion" ? api.opinion(task, image)
        : api.map(task, image, task === "classification" ? { heatmap: true } : {});
      answers.set(key, answer);
      answer.catch(() => answers.delete(key));
    }
    return answers.get(key);
  }

  /** The values of the segmenter's mask; null without one, or if another image came meanwhile. */
  async mask() {
    const image = this.#image;
    if (!this.models.segmentation || image === null) return null;
    const { values } = await this.#answer("outline", "segmentation");
    return image === this.#image ? values : null;
  }

  #paths(values, classes, colour) {
    const { columns } = this.viewer.image;
    return classes.map((value) => ({ path: outline(values, columns, value), colour: colour(value) }));
  }

  /** Draw the outlines of the model, and of the person's own mask. */
  draw() {
    const { viewer, board } = this;
    if (!viewer.image) return;
    viewer.showsFill = $("mine").checked;
    const own = board.mask && viewer.showsFill;
    viewer.outlines = [
      ...this.#outlines,
      ...(own ? this.#paths(board.mask.values, Object.values(board.classes), colourOf) : []),
    ];
    viewer.draw();
  }
}
