// The page to work in: one image after the other, its findings and masks, saved through MONAI Label's own calls.

import { Ahead } from "./ahead.js";
import * as api from "./api.js";
import { $, attempt, confirmed, el, say } from "./dom.js";
import { CYCLE, goTo, showFindings } from "./findings.js";
import { listen } from "./keys.js";
import { History, Mask } from "./mask.js";
import { Opinions, choose } from "./opinions.js";
import { TOOLS, Tools } from "./tools.js";
import { Training } from "./training.js";
import { Viewer, colourOf, css } from "./viewer.js";

const LAST = "afire-image"; // in this tab only, so that reloading shows the same image and nothing is left behind

const viewer = new Viewer($("canvas"));
const board = {
  mask: null, classes: {}, history: new History(), showMask: (area) => viewer.setFill(board.mask, area), maskDrawn,
  /** Keep a step of the mask. Undone, the mask is as little changed as before, unless it was saved meanwhile. */
  record({ undo, ...step }) {
    const work = current, { maskChanged, saves } = work;
    board.history.add({ ...step, undo: () => {
      undo();
      work.maskChanged = maskChanged || work.saves !== saves;
      render();
    } });
  },
};
const tools = new Tools(viewer, board);
const opinions = new Opinions(viewer, board, render);
const ahead = new Ahead(opinions);
const training = new Training(() => readInfo());
let known = { findings: [], classes: {}, versions: {} }; // what can be labelled
let info = { models: {}, strategies: {} };
let current = null; // {id, mask, findings (null, 1, 0 or -1 by name), saved (of them), maskChanged, saves, hasLabel, version}
const visited = [];
let moving = false; // to another image: what is entered meanwhile would be lost, so nothing can be
let saving = Promise.resolve();
let infoAsked = 0, infoShown = 0; // how often what the server knows was asked for, and which of these answers is shown

const listed = (findings) => Object.fromEntries(known.findings.map((name) => [name, findings?.[name] ?? null]));
const entered = (work) => JSON.stringify(listed(work.findings));
const unsaved = (work = current) => work !== null && (entered(work) !== work.saved || work.maskChanged);

// images

async function open(id, fetched = Promise.reject()) {
  say("Reading the image …");
  const [picture, kept] = await Promise.all([
    fetched.catch(() => api.pixels(id)), api.savedCase(id),
  ]), { problems } = kept;
  const values = kept.mask ? await api.mask(id).catch((error) => {
    if (error.status !== 400) throw error; // shown without its mask, it would soon be saved without
    problems.push(`The saved mask cannot be shown: ${error.message}`);
  }) : undefined;
  current = {
    id, findings: kept.findings ?? {}, saved: "", maskChanged: false, saves: 0, hasLabel: Boolean(values || kept.findings),
    version: kept.version,
  };
  current.saved = entered(current);
  sessionStorage.setItem(LAST, id);
  if (!visited.includes(id)) visited.push(id);
  tools.forget();
  viewer.show(picture);
  tools.size ??= Math.max(2, Math.round(picture.rows / 40));
  board.history.clear();
  const masks = Object.keys(known.classes).length > 0 || values;
  board.mask = masks ? new Mask(picture.rows, picture.columns, values) : null;
  current.mask = board.mask;
  if (values) viewer.setFill(board.mask, board.mask.everything);
  if (tools.draws) tools.choose(masks ? tools.tool : "window");
  $("image").textContent = id;
  if (problems.length) say(`${problems.join(" ")} If you save it, yours takes its place.`, "bad");
  else say(current.hasLabel ? "This image has labels; you can change them." : "");
  render();
  opinions.turnTo(id);
}

async function next() {
  const unreadable = [], leftOut = () => `Left out, as they cannot be used: ${unreadable.join(", ")}`;
  for (;;) {
    say("Choosing the next image …");
    const strategy = $("strategy").value, taken = await ahead.take(strategy);
    const held = taken?.id === current?.id ? null : taken; // P led to it
    const { id } = held ?? await api.nextSample(strategy);
    if (!id) return say("There is no image without a label left. Train, or go back with P.", "good");
    try {
      await open(id, held?.picture);
      if (unreadable.length) say(leftOut(), "bad");
      return undefined;
    } catch (error) {
      if (![400, 404].includes(error.status)) throw error; // it cannot be read, or is gone since it was chosen
      if (unreadable.includes(id)) return say(`There is no image left that can be labelled. ${leftOut()}`, "bad");
      unreadable.push(id);
    }
  }
}

/** Do something that ends with another image, one at a time. */
async function move(action) {
  const lock = (on) => { moving = tools.locked = on; $("stage").setAttribute("aria-busy", String(on)); };
  if (moving) return;
  tools.finish(); // what is being drawn belongs to this image
  lock(true);
  try { await action(); } finally { lock(false); }
  const id = current?.id;
  await opinions.answered(); // which come first
  if (id && id === current.id && !moving) ahead.begin($("strategy").value, id);
}

async function saveAndNext() {
  await save("");
  if (!current?.hasLabel) return say("Nothing is labelled here yet. K skips this image.");
  return next();
}

async function skip() {
  await saving.catch(() => {});
  if (unsaved() && !(await confirmed("Go on without saving what you entered here?", "Go on"))) return;
  await next();
}

async function previous() {
  const place = visited.indexOf(current?.id);
  if (place < 1) return say("This is the first image of this sitting.");
  await saving.catch(() => {});
  if (unsaved() && !(await confirmed("Go back without saving what you entered here?", "Go back"))) return undefined;
  return open(visited[place - 1]);
}

/** Save what changed, after what is being saved already. */
const save = (nothingNew = "There is nothing new to save.") => {
  tools.finish();
  saving = saving.catch(() => {}).then(() => (unsaved() ? saveChanges(current) : say(nothingNew)));
  return saving;
};

async function saveChanges(work) {
  const version = async () => (await api.savedCase(work.id)).version;
  const keep = async (send) => {
    await send();
    ahead.leaveOut(work.id);
    work.version = await version();
    work.hasLabel = true;
  };
  if ((await version()) !== work.version && !(await confirmed("The saved labels of this image changed since you " +
    "opened it, perhaps in another window. Replace them by yours?", "Replace"))) {
    throw new Error("Not saved. The page shows the other labels when you load it again.");
  }
  const now = entered(work);
  if (now !== work.saved) {
    await keep(() => api.saveFindings(work.id, JSON.parse(now)));
    work.saved = now;
  }
  if (work.maskChanged) {
    work.maskChanged = false; // a stroke while it is being sent makes it true again
    work.saves += 1;
    await keep(() => api.saveMask(work.id, work.mask.values)).catch((error) => {
      work.maskChanged = true;
      render();
      throw error;
    });
  }
  say("Saved.", "good");
  render();
  attempt(readInfo); // not waited for: the next image can be shown before
}

// findings and masks

function setFindings(changes) {
  const before = current.findings, now = { ...before, ...changes };
  const put = (values) => () => { current.findings = values; render(); };
  board.history.add({ undo: put(before), redo: put(now) });
  put(now)();
}

function pressFinding(place, uncertain) {
  const name = known.findings[place];
  if (!current || moving || name === undefined) return;
  const value = current.findings[name] ?? null;
  setFindings({ [name]: uncertain ? (value === -1 ? null : -1) : CYCLE[value] });
}

const setAll = (which) => {
  const chosen = known.findings.filter((name) => which(current?.findings[name] ?? null));
  if (current && !moving && chosen.length) setFindings(Object.fromEntries(chosen.map((name) => [name, 0])));
};

function maskDrawn() {
  current.maskChanged = true;
  opinions.draw();
  render();
}

/** Put other values into the mask, as a step that can be taken back. */
function fillMask(values) {
  if (!current || moving || !board.mask || !values) return;
  tools.finish();
  const put = (content) => () => {
    board.mask.values.set(content);
    board.showMask(board.mask.everything);
    maskDrawn();
  };
  board.record({ undo: put(board.mask.values.slice()), redo: put(values), bytes: 2 * values.length });
  put(values)();
}

// the page

const versions = () => JSON.stringify(Object.entries(info.models).map(([task, model]) => [task, model.model_version]));

async function readInfo() {
  const turn = ++infoAsked, answers = await Promise.all([api.info(), api.setup()]);
  if (turn < infoShown) return; // answers can overtake each other, and this one is the older
  infoShown = turn;
  const before = versions();
  [info, known] = answers;
  board.classes = known.classes;
  $("count").textContent = `${known.labelled} of ${known.images} images labelled`;
  choose($("strategy"), Object.entries(info.strategies).map(([name, { description }]) => [name, description ?? name]));
  opinions.offer(info.models);
  render();
  if (versions() === before) return;
  ahead.forget(); // other models choose otherwise, and say something else
  opinions.turnTo();
}

function render() {
  const focused = document.activeElement?.id;
  const bare = info.models.classification?.not_calibrated ?? [];
  showFindings(known.findings, current?.findings ?? null, opinions.labels, bare, pressFinding);
  $("classes").replaceChildren(...Object.entries(known.classes).map(([name, value]) => {
    const swatch = el("span", { class: "swatch" });
    swatch.style.background = css(colourOf(value));
    return el("button", { type: "button", id: `class-${value}`, "aria-pressed": String(tools.value === value),
      onclick: () => { tools.value = value; render(); } }, swatch, name);
  }));
  if (focused) $(focused)?.focus();
  $("findings-box").hidden = !known.findings.length;
  $("mask-box").hidden = !Object.keys(known.classes).length;
  $("nothing").hidden = known.findings.length + Object.keys(known.classes).length > 0;
  $("mine-row").hidden = !board.mask;
  for (const tool of ["brush", "erase", "box"]) $(`tool-${tool}`).disabled = !board.mask;
  $("unsaved").hidden = !unsaved();
  $("undo").disabled = !board.history.canUndo;
  $("redo").disabled = !board.history.canRedo;
}

const toggle = (id) => () => ($(id).closest("[hidden]") ? say(`${$(id).dataset.absent}`) : $(id).click());
const step = (way) => () => { if (!moving) { tools.finish(); board.history[way](); } };
const nextClass = () => {
  const values = Object.values(known.classes);
  tools.value = values[(values.indexOf(tools.value) + 1) % values.length] ?? 1;
  render();
};
const KEYS = [ // key, what the help says, what is done, button
  ["N", "Save and go to the next image", () => move(saveAndNext), "save-next"],
  ["S", "Save", () => save(), "save"],
  ["K", "Skip: next image without saving", () => move(skip), "skip"],
  ["P", "Previous image", () => move(previous), "previous"],
  ["0", "No finding: all absent", () => setAll(() => true), "none"],
  ["R", "The rest is absent", () => setAll((value) => value === null), "rest"],
  ["↓", "Go to the next finding; Enter sets it, with Shift uncertain", () => goTo(1), null],
  ["↑", "Go to the finding before", () => goTo(-1), null],
  ["U", "Undo (also Ctrl+Z)", step("undo"), "undo"],
  ["Y", "Redo (also Ctrl+Y)", step("redo"), "redo"],
  ...Object.entries(TOOLS).map(([name, [key, title]]) => [key, `Tool: ${title}`, () => tools.choose(name), null]),
  [",", "Smaller brush", () => tools.resize(1 / 1.3), "smaller"],
  [".", "Larger brush", () => tools.resize(1.3), "larger"],
  ["Q", "Next class to draw", nextClass, null],
  ["T", "Take over the outline of the model", async () => fillMask(await opinions.mask()), "take"],
  ["D", "Empty mask: there is nothing to outline",
    () => fillMask(new Uint8Array(board.mask?.values.length ?? 0)), "empty"],
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

listen(KEYS, { s: () => save(), z: step("undo"), "shift+z": step("redo"), y: step("redo") },
  (number, shift) => pressFinding(number - 1, shift));
window.addEventListener("beforeunload", (event) => { tools.finish(); if (unsaved()) event.preventDefault(); });

await attempt(() => move(async () => {
  await readInfo();
  attempt(() => training.refresh()); // one may be under way
  const before = sessionStorage.getItem(LAST);
  if (before === null) await next();
  else await open(before).catch(next);
}));
