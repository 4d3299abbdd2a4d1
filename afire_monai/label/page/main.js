// The page to work in: one image after the other, its findings and masks, saved through MONAI Label's own calls.

import * as api from "./api.js";
import { $, attempt, confirmed, el, say } from "./dom.js";
import { listen } from "./keys.js";
import { History, Mask } from "./mask.js";
import { Opinions, choose } from "./opinions.js";
import { TOOLS, Tools } from "./tools.js";
import { Training } from "./training.js";
import { Viewer, colourOf, css } from "./viewer.js";

const STATES = { null: ["", "not said"], 1: ["yes", "✓ present"], 0: ["no", "– absent"], "-1": ["maybe", "? uncertain"] };
const CYCLE = { null: 1, 1: 0, 0: null, "-1": null };
const LAST = "afire-image"; // in this tab only, so that reloading shows the same image and nothing is left behind

const viewer = new Viewer($("canvas"));
const board = {
  mask: null, classes: {}, history: new History(), showMask: (area) => viewer.setFill(board.mask, area), maskDrawn,
};
const tools = new Tools(viewer, board);
const opinions = new Opinions(viewer, board, render);
const training = new Training(async () => { await readInfo(); await opinions.ask(); });
let known = { findings: [], classes: {}, versions: {} }; // what can be labelled
let info = { models: {}, strategies: {} };
let image = null; // id
let findings = {}; // null, 1, 0 or -1 by name
let saved = ""; // findings as they were saved
let maskChanged = false;
let hasLabel = false; // whether something is saved of this image
const visited = [];
let moving = false; // to another image: what is entered meanwhile would be lost, so nothing can be
let turn = 0; // answers for an image that is no longer shown are dropped

const order = () => JSON.stringify(known.findings.map((name) => findings[name] ?? null));
const unsaved = () => image !== null && (order() !== saved || maskChanged);

// images

async function open(id) {
  const mine = ++turn;
  say("Reading the image …");
  const [picture, kept] = await Promise.all([api.pixels(id), api.savedCase(id)]);
  const values = kept.mask ? await api.mask(id) : undefined;
  if (mine !== turn) return;
  image = id;
  sessionStorage.setItem(LAST, id);
  if (!visited.includes(id)) visited.push(id);
  tools.forget();
  viewer.show(picture);
  tools.size ??= Math.max(2, Math.round(picture.rows / 40));
  board.history.clear();
  const masks = Object.keys(known.classes).length > 0 || kept.mask;
  board.mask = masks ? new Mask(picture.rows, picture.columns, values) : null;
  if (board.mask) viewer.setFill(board.mask, board.mask.everything);
  findings = { ...kept.findings };
  saved = order();
  maskChanged = false;
  hasLabel = kept.mask || kept.findings !== null;
  $("image").textContent = id;
  say(hasLabel ? "This image has labels; you can change them." : "");
  render();
  opinions.turnTo(id);
}

async function next() {
  say("Choosing the next image …");
  const found = await api.nextSample($("strategy").value);
  if (found.id) return open(found.id);
  say("There is no image without a label left. Train, or go back with P.", "good");
  return undefined;
}

/** Do something that ends with another image, one at a time. */
async function move(action) {
  const lock = (on) => { moving = tools.locked = on; $("stage").setAttribute("aria-busy", String(on)); };
  if (moving) return;
  lock(true);
  try { await action(); } finally { lock(false); }
}

async function saveAndNext() {
  if (!unsaved() && !hasLabel) return say("Nothing is labelled here yet. K skips this image.");
  if (unsaved()) await save();
  return next();
}

async function skip() {
  if (unsaved() && !(await confirmed("Go on without saving what you entered here?", "Go on"))) return;
  await next();
}

async function previous() {
  const place = visited.indexOf(image);
  if (place < 1) return say("This is the first image of this sitting.");
  if (unsaved() && !(await confirmed("Go back without saving what you entered here?", "Go back"))) return undefined;
  return open(visited[place - 1]);
}

/** Save what changed. */
async function save() {
  if (!unsaved()) return say("There is nothing new to save.");
  const id = image, now = order();
  if (now !== saved) {
    await api.saveFindings(id, Object.fromEntries(known.findings.map((name, place) => [name, JSON.parse(now)[place]])));
    saved = now;
  }
  if (maskChanged) {
    maskChanged = false; // a stroke while it is being sent makes it true again
    await api.saveMask(id, board.mask.values).catch((error) => { maskChanged = true; throw error; });
  }
  hasLabel = true;
  say("Saved.", "good");
  render();
  return readInfo();
}

// findings and masks

function setFindings(changes) {
  const before = findings, now = { ...findings, ...changes };
  const put = (values) => () => { findings = values; render(); };
  board.history.add({ undo: put(before), redo: put(now) });
  put(now)();
}

function pressFinding(place, uncertain) {
  const name = known.findings[place];
  if (!image || moving || name === undefined) return;
  const value = findings[name] ?? null;
  setFindings({ [name]: uncertain ? (value === -1 ? null : -1) : CYCLE[value] });
}

const setAll = (which) => {
  const chosen = known.findings.filter((name) => which(findings[name] ?? null));
  if (image && !moving && chosen.length) setFindings(Object.fromEntries(chosen.map((name) => [name, 0])));
};

function maskDrawn() {
  maskChanged = true;
  opinions.draw();
  render();
}

/** Put other values into the mask, as a step that can be taken back. */
function fillMask(values) {
  if (!image || moving || !board.mask || !values) return;
  const put = (content) => () => { board.mask.values.set(content); board.showMask(board.mask.everything); maskDrawn(); };
  board.history.add({ undo: put(board.mask.values.slice()), redo: put(values) });
  put(values)();
}

// the page

async function readInfo() {
  [info, known] = await Promise.all([api.info(), api.setup()]);
  board.classes = known.classes;
  $("count").textContent = `${known.labelled} of ${known.images} images labelled`;
  choose($("strategy"), Object.entries(info.strategies).map(([name, { description }]) => [name, description ?? name]));
  opinions.offer(info.models);
  render();
}

function render() {
  const bare = info.models.classification?.not_calibrated ?? [], focused = document.activeElement?.id;
  $("findings").replaceChildren(...known.findings.map((name, place) => {
    const [look, words] = STATES[findings[name] ?? null], says = opinions.labels[name];
    const probability = says ? `model ${says.probability.toFixed(2)}${says.above_threshold ? " ▲" : ""}` : "";
    return el("li", {}, el("button", {
      type: "button", id: `finding-${place}`, class: look, disabled: !image,
      onclick: (event) => pressFinding(place, event.shiftKey),
    }, place < 9 ? el("kbd", {}, String(place + 1)) : el("span"), el("span", { class: "name" }, name),
    el("span", { class: "state" }, words),
    probability ? el("small", {}, probability, bare.includes(name) ? " (not calibrated)" : "") : null));
  }));
  $("classes").replaceChildren(...Object.entries(known.classes).map(([name, value]) => {
    const swatch = el("span", { class: "swatch" });
    swatch.style.background = css(colourOf(value));
    return el("button", { type: "button", id: `class-${value}`, "aria-pressed": String(tools.value === value),
      onclick: () => { tools.value = value; render(); } }, swatch, name);
  }));
  if (focused) $(focused)?.focus();
  $("findings-box").hidden = !known.findings.length;
  $("mask-box").hidden = !Object.keys(known.classes).length;
  $("unsaved").hidden = !unsaved();
  $("undo").disabled = !board.history.canUndo;
  $("redo").disabled = !board.history.canRedo;
}

const toggle = (id) => () => $(id).click();
const step = (way) => () => { tools.forget(); board.history[way](); };
const nextClass = () => {
  const values = Object.values(known.classes);
  tools.value = values[(values.indexOf(tools.value) + 1) % values.length] ?? 1;
  render();
};
const KEYS = [ // key, what the help says, what is done, button
  ["N", "Save and go to the next image", () => move(saveAndNext), "save-next"],
  ["S", "Save", save, "save"],
  ["K", "Skip: next image without saving", () => move(skip), "skip"],
  ["P", "Previous image", () => move(previous), "previous"],
  ["0", "No finding: all absent", () => setAll(() => true), "none"],
  ["R", "The rest is absent", () => setAll((value) => value === null), "rest"],
  ["U", "Undo (also Ctrl+Z)", step("undo"), "undo"],
  ["Y", "Redo (also Ctrl+Y)", step("redo"), "redo"],
  ...Object.entries(TOOLS).map(([name, [key, title]]) => [key, `Tool: ${title}`, () => tools.choose(name), null]),
  [",", "Smaller brush", () => tools.resize(1 / 1.3), "smaller"],
  [".", "Larger brush", () => tools.resize(1.3), "larger"],
  ["Q", "Next class to draw", nextClass, null],
  ["T", "Take over the outline of the model", async () => fillMask(await opinions.mask()), "take"],
  ["D", "Empty mask: there is nothing to outline", () => fillMask(new Uint8Array(board.mask?.values.length ?? 0)), "empty"],
  ["H", "Heatmap on and off", toggle("heat"), null],
  ["O", "Outline of the model on and off", toggle("outline"), null],
  ["L", "Your own mask on and off", toggle("mine"), null],
  ["A", "Probabilities of the model on and off", toggle("opinion"), null],
  ["F", "Fit the image", () => viewer.fit(), "fit"],
  ["G", "Actual size: a pixel of the image a pixel of the screen", () => viewer.zoom(1 / viewer.scale), "actual"],
  ["+", "Larger", () => viewer.zoom(1.25), null],
  ["-", "Smaller", () => viewer.zoom(0.8), null],
  ["I", "Invert", () => viewer.invert(), "invert"],
  ["C", "Contrast and brightness as they were", () => viewer.resetWindow(), "reset"],
  ["M", "Train, and change models", () => training.open(), null],
  ["?", "These keys", () => $("help").showModal(), "open-help"],
];

listen(KEYS, { s: save, z: step("undo"), "shift+z": step("redo"), y: step("redo") },
  (number, shift) => pressFinding(number - 1, shift));
window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

await attempt(() => move(async () => {
  await readInfo();
  attempt(() => training.refresh()); // one may be under way
  const before = sessionStorage.getItem(LAST);
  if (before === null) await next();
  else await open(before).catch(next);
}));
