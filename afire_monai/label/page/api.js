// The server's answers. Everything else of the page asks through this file; docs/label.md says which call gives what.

const ROOT = new URL("../", import.meta.url); // also below /token/TOKEN/

/** What the server refused, in its own words. */
export class Refusal extends Error {}

async function ask(path, query = {}, options = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let answer;
  try {
    answer = await fetch(url, { cache: "no-store", ...options });
  } catch {
    throw new Refusal("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const words = await answer.json().then((body) => body.detail, () => "");
  const refusal = new Refusal(typeof words === "string" && words ? words : `The server answered ${answer.status}.`);
  refusal.status = answer.status;
  throw refusal;
}

const json = async (...request) => (await ask(...request)).json();
const post = (content) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
});

export const info = () => json("info/");
export const setup = () => json("work/api/setup");
export const savedCase = (image) => json("work/api/case", { image });
export const nextSample = (strategy) => json(`activelearning/${encodeURIComponent(strategy)}`, {}, post({}));
export const train = (task, params) => json(`train/${encodeURIComponent(task)}`, {}, post(params));
export const stopTraining = () => json("train/", {}, { method: "DELETE" });
export const useVersion = (task, run) => json("work/api/version", {}, post({ task, run }));

/** The training under way or the last one; null if there was none since the server started. */
export async function training() {
  try {
    return await json("train/");
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** A radiograph: {rows, columns, values: Uint16Array}, bright = dense. */
export async function pixels(image) {
  const answer = await ask("work/api/pixels", { image });
  const size = (name) => Number(answer.headers.get(name));
  return { rows: size("X-Rows"), columns: size("X-Columns"), values: new Uint16Array(await answer.arrayBuffer()) };
}

/** A saved mask, a byte a pixel. */
export const mask = async (image) => new Uint8Array(await (await ask("work/api/mask", { image })).arrayBuffer());

/** What a task says of an image, as plain values. */
export async function opinion(task, image) {
  const body = new FormData();
  body.set("params", "{}");
  return json(`infer/${encodeURIComponent(task)}`, { image, output: "json" }, { method: "POST", body });
}

/** The map of a task: {facts, values: Uint8Array}; heatmaps 0 to 255, label maps by class. */
export async function map(task, image, params = {}) {
  const body = new FormData();
  body.set("params", JSON.stringify({ ...params, result_extension: ".png", result_dtype: "uint8" }));
  const answer = await ask(`infer/${encodeURIComponent(task)}`, { image, output: "all" }, { method: "POST", body });
  const fields = await answer.formData();
  const facts = await new Response(fields.get("params")).json();
  return { facts, values: await decode(fields.get("image")) };
}

async function decode(file) {
  const picture = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const surface = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
  surface.drawImage(picture, 0, 0);
  const colours = surface.getImageData(0, 0, picture.width, picture.height).data;
  picture.close();
  const values = new Uint8Array(colours.length / 4);
  for (let place = 0; place < values.length; place++) values[place] = colours[4 * place];
  return values;
}

function save(image, tag, content, name) {
  const body = new FormData();
  body.set("label", new File([content], name));
  body.set("params", "{}");
  return json("datastore/label", { image, tag }, { method: "PUT", body });
}

export const saveFindings = (image, findings) => save(image, "findings", JSON.stringify(findings), "findings.json");
export const saveMask = (image, values) => save(image, "final", values, "label.bin");
