// What the pointer and the arrow keys do on the radiograph: window, move, brush, eraser, box.

import { $, el, say } from "./dom.js";
import { maskStep } from "./mask.js";

export const TOOLS = {
  window: ["W", "Window", "Drag: left and right for contrast, up and down for brightness"],
  move: ["V", "Move", "Drag the picture; the middle button and the wheel do so with any tool"],
  brush: ["B", "Brush", "Draw the chosen class"],
  erase: ["E", "Eraser", "Take away what is drawn"],
  box: ["X", "Box", "Fill a rectangle with the chosen class; with Shift, empty it"],
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Tools {
  tool = "window";
  size = null; // of the brush: its diameter in pixels of the image
  locked = false; // while another image comes, nothing is drawn
  value = 1; // class that is drawn
  #gesture = null; // {kind, before, from, last, value, pointer (its id, or null by keyboard)}

  /** `board` has `mask` (or null), `record(step)`, `showMask(area)` and `maskDrawn()`. */
  constructor(viewer, board) {
    Object.assign(this, { viewer, board });
    const { canvas } = viewer;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => { if (this.#isOwn(event)) this.finish(); });
    canvas.addEventListener("pointercancel", (event) => { if (this.#isOwn(event)) this.finish(); });
    canvas.addEventListener("pointerleave", () => { if (!this.#gesture) this.#point(null); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => { if (this.tool === "window") viewer.resetWindow(); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      viewer.zoom(1.0015 ** -event.deltaY, event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.finish());
    $("tools").append(...Object.entries(TOOLS).map(([name, [key, title, help]]) => el("button", {
      type: "button", id: `tool-${name}`, title: `${help} (${key})`, "aria-pressed": "false",
      "aria-keyshortcuts": key, onclick: () => this.choose(name),
    }, title, el("kbd", {}, key))));
    this.choose("window");
  }

  get draws() { return ["brush", "erase", "box"].includes(this.tool); }

  choose(name) {
    if (["brush", "erase", "box"].includes(name) && !this.board.mask) {
      say("Nothing can be outlined here: the server was started without classes (--classes).", "bad");
      return;
    }
    this.finish();
    this.tool = name;
    for (const tool of Object.keys(TOOLS)) $(`tool-${tool}`).setAttribute("aria-pressed", String(tool === name));
    this.viewer.canvas.dataset.tool = name;
    this.#point(null);
  }

  resize(factor) {
    const size = Math.min(400, Math.max(1, factor > 1 ? Math.ceil(this.size * factor) : Math.floor(this.size * factor)));
    this.size = size;
    say(`Brush: ${size} pixels`);
    this.#point(this.viewer.cursor);
  }

  /** Give up what is being drawn, as when another image comes. */
  forget() {
    this.#gesture = null;
    this.viewer.frame = null;
  }

  #down(event) {
    if (!this.viewer.image) return;
    this.viewer.canvas.setPointerCapture(event.pointerId);
    const kind = { 1: "move", 2: "window" }[event.button] ?? this.tool;
    this.#begin(kind, this.viewer.point(event), event.shiftKey, event.pointerId);
  }

  #isOwn(event) { return this.#gesture?.pointer === event.pointerId; }

  #move(event) {
    if (!this.viewer.image || (this.#gesture && !this.#isOwn(event))) return; // a palm beside the pen draws nothing
    const point = this.viewer.point(event);
    this.#point(point);
    if (this.#gesture?.kind === "window") this.#adjust(event.movementX, event.movementY);
    else if (this.#gesture?.kind === "move") this.viewer.pan(event.movementX, event.movementY);
    else if (this.#gesture) this.#draw(point);
  }

  #begin(kind, point, shift, pointer = null) {
    this.finish();
    if (kind !== "window" && kind !== "move" && (this.locked || !this.board.mask)) return;
    const value = kind === "erase" || (kind === "box" && shift) ? 0 : this.value;
    this.#gesture = { kind, from: point, last: point, value, pointer, before: this.board.mask?.values.slice() };
    if (kind === "brush" || kind === "erase") this.#draw(point);
  }

  #draw(point) {
    const { kind, from, last, value } = this.#gesture;
    if (kind === "box") {
      this.viewer.frame = { from, to: point };
      this.viewer.draw();
    } else {
      this.board.showMask(this.board.mask.line(last, point, this.size / 2, value));
    }
    this.#gesture.last = point;
  }

  /** End what is being drawn, as a step that can be taken back; nothing if no pixel changed. */
  finish() {
    const gesture = this.#gesture;
    this.forget();
    if (!gesture || gesture.kind === "window" || gesture.kind === "move") return;
    const { mask } = this.board;
    if (gesture.kind === "box") this.board.showMask(mask.box(gesture.from, gesture.last, gesture.value));
    const step = maskStep(mask, gesture.before, (area) => { this.board.showMask(area); this.board.maskDrawn(); });
    if (!step) return;
    this.board.record(step);
    this.board.maskDrawn();
  }

  #adjust(dx, dy) {
    const { viewer } = this, step = Math.max(0.1, viewer.width) / 400;
    viewer.setWindow(viewer.centre + step * dy, viewer.width + step * dx);
  }

  /** By keyboard: arrows change the window, move the picture or a crosshair; Enter or Space begins and ends drawing. */
  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.viewer.image) return;
    const { rows, columns } = this.viewer.image, way = ARROWS[event.key], far = event.shiftKey ? 10 : 1;
    const at = this.viewer.cursor ?? { x: columns / 2, y: rows / 2 };
    if (way && this.tool === "window") this.#adjust(8 * far * way[0], 8 * far * way[1]);
    else if (way && this.tool === "move") this.viewer.pan(-20 * far * way[0], -20 * far * way[1]);
    else if (way) {
      const within = (value, count) => Math.min(count, Math.max(0, value));
      const point = { x: within(at.x + far * way[0], columns), y: within(at.y + far * way[1], rows) };
      this.#point(point);
      if (this.#gesture) this.#draw(point);
    } else if ((event.key === "Enter" || event.key === " ") && this.draws) {
      if (this.#gesture) this.finish();
      else this.#begin(this.tool, at, event.shiftKey);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #point(point) {
    const radius = this.tool === "box" ? 0 : this.size / 2;
    this.viewer.cursor = point && this.draws ? { x: point.x, y: point.y, radius } : null;
    this.viewer.draw();
  }
}
