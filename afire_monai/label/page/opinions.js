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
  #outline = null; // {values, classes}
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
    $("warnings-box").hidden = !warnings.length;
  }

  /** Another image is shown. */
  turnTo(image) {
    Object.assign(this, { labels: {} });
    this.#image = image;
    this.#outline = null;
    $("heat-note").textContent = "";
    this.draw();
    this.ask(); // not waited for: the image can be judged before
  }

  /** Ask the models for what is switched on. */
  async ask() {
    const turn = ++this.#turn, image = this.#image, current = () => turn === this.#turn;
    if (image === null) return;
    await attempt(async () => {
      const wanted = $("opinion").checked && this.models.classification;
      const answer = wanted ? await api.opinion("classification", image) : {};
      if (!current()) return;
      this.labels = answer.labels ?? {};
      this.changed();
      const heat = $("heat").checked && $("heat-kind").value;
      const map = heat ? await api.map(heat, image, heat === "classification" ? { heatmap: true } : {}) : null;
      if (!current()) return;
      this.viewer.setHeat(map?.values ?? null);
      $("heat-note").textContent = !map ? "" : heat === "classification"
        ? `for ${map.facts.heatmap?.label ?? "the likeliest finding"}` : map.facts.anomaly?.meaning ?? "";
      const kind = $("outline").checked && $("outline-kind").value, drawn = kind ? await api.map(kind, image) : null;
      if (!current()) return;
      this.#outline = drawn && { values: drawn.values, classes: Object.values(drawn.facts.label_names ?? {}) };
      this.draw();
    });
  }

  /** The values of the segmenter's mask; null without one, or if another image came meanwhile. */
  async mask() {
    const image = this.#image;
    if (!this.models.segmentation || image === null) return null;
    const { values } = await api.map("segmentation", image);
    return image === this.#image ? values : null;
  }

  /** Draw the outlines of the model, and of the person's own mask. */
  draw() {
    const { viewer, board } = this;
    if (!viewer.image) return;
    const mine = board.mask && $("mine").checked;
    const paths = (values, classes, colour) => classes.map((value) =>
      ({ path: outline(values, viewer.image.columns, value), colour: colour(value) }));
    viewer.showsFill = $("mine").checked;
    viewer.outlines = [
      ...(this.#outline ? paths(this.#outline.values, this.#outline.classes, paleOf) : []),
      ...(mine ? paths(board.mask.values, Object.values(board.classes), colourOf) : []),
    ];
    viewer.draw();
  }
}
