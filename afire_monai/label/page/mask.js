// Masks: drawing on them, their outlines, and going back.

/** Classes on the grid of a radiograph; values are 0 for background, else the number of a class. */
export class Mask {
  constructor(rows, columns, values) {
    Object.assign(this, { rows, columns, values: values ?? new Uint8Array(rows * columns) });
  }

  /** Fill all pixels whose centre is not farther than `radius` from a line; all in pixels, (0, 0) the outer corner. */
  line(from, to, radius, value) {
    const [left, right] = this.#range(Math.min(from.x, to.x) - radius, Math.max(from.x, to.x) + radius, this.columns);
    const [top, bottom] = this.#range(Math.min(from.y, to.y) - radius, Math.max(from.y, to.y) + radius, this.rows);
    const dx = to.x - from.x, dy = to.y - from.y, squared = dx * dx + dy * dy;
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const px = column + 0.5 - from.x, py = row + 0.5 - from.y;
        const along = squared ? Math.min(1, Math.max(0, (px * dx + py * dy) / squared)) : 0;
        const x = px - along * dx, y = py - along * dy;
        if (x * x + y * y <= radius * radius) this.values[row * this.columns + column] = value;
      }
    }
    return { left, right, top, bottom };
  }

  /** Fill all pixels whose centre is within a box with these corners. */
  box(one, other, value) {
    const [left, right] = this.#range(Math.min(one.x, other.x), Math.max(one.x, other.x), this.columns);
    const [top, bottom] = this.#range(Math.min(one.y, other.y), Math.max(one.y, other.y), this.rows);
    for (let row = top; row < bottom; row++) {
      this.values.fill(value, row * this.columns + left, row * this.columns + Math.max(left, right));
    }
    return { left, right, top, bottom };
  }

  /** The whole, as an area. */
  get everything() {
    return { left: 0, right: this.columns, top: 0, bottom: this.rows };
  }

  #range(low, high, count) {
    const clip = (edge) => Math.min(count, Math.max(0, Math.ceil(edge - 0.5)));
    return [clip(low), Math.min(count, Math.max(0, Math.floor(high - 0.5) + 1))];
  }
}

/** The border of all pixels of a class as a path in pixels, drawn sharp at any zoom. */
export function outline(values, columns, value) {
  const path = new Path2D(), first = values.indexOf(value);
  if (first < 0) return path;
  const top = Math.floor(first / columns), bottom = Math.floor(values.lastIndexOf(value) / columns) + 1;
  const inside = (row, column) =>
    row >= top && row < bottom && column >= 0 && column < columns && values[row * columns + column] === value;
  const runs = (from, to, differs, add) => {
    for (let place = from, start = -1; place <= to; place++) {
      const edge = place < to && differs(place);
      if (edge && start < 0) start = place;
      if (!edge && start >= 0) { add(start, place); start = -1; }
    }
  };
  for (let row = top; row <= bottom; row++) {
    runs(0, columns, (column) => inside(row - 1, column) !== inside(row, column),
      (from, to) => { path.moveTo(from, row); path.lineTo(to, row); });
  }
  for (let column = 0; column <= columns; column++) {
    runs(top, bottom, (row) => inside(row, column - 1) !== inside(row, column),
      (from, to) => { path.moveTo(column, from); path.lineTo(column, to); });
  }
  return path;
}

/** Steps that can be taken back; each is {undo, redo}. */
export class History {
  #done = [];
  #undone = [];

  add(step) {
    this.#done.push(step);
    if (this.#done.length > 200) this.#done.shift();
    this.#undone = [];
  }

  clear() { this.#done = []; this.#undone = []; }
  get canUndo() { return this.#done.length > 0; }
  get canRedo() { return this.#undone.length > 0; }
  undo() { this.#move(this.#done, this.#undone, "undo"); }
  redo() { this.#move(this.#undone, this.#done, "redo"); }

  #move(from, to, way) {
    const step = from.pop();
    if (!step) return;
    step[way]();
    to.push(step);
  }
}

/** A step between two states of a mask; only the part that changed is kept. `show` is told of the part. */
export function maskStep(mask, before, show) {
  const { columns, values } = mask;
  let first = before.findIndex((value, place) => value !== values[place]);
  if (first < 0) return null;
  const last = before.findLastIndex((value, place) => value !== values[place]) + 1;
  first -= first % columns; // whole rows: simple, and a row is small
  const old = before.slice(first, last), now = values.slice(first, last);
  const area = { ...mask.everything, top: first / columns, bottom: Math.ceil(last / columns) };
  const put = (part) => () => { mask.values.set(part, first); show(area); };
  return { undo: put(old), redo: put(now) };
}
