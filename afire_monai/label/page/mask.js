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
  const begun = new Int32Array(columns + 1).fill(-1); // row where a vertical edge began, by column
  const edge = (x, y, toX, toY) => { path.moveTo(x, y); path.lineTo(toX, toY); };
  for (let row = top; row <= bottom; row++) { // one pass in the order of the memory: large masks take a moment
    let level = -1, left = false; // column where a horizontal edge began; whether the pixel to the left is inside
    for (let column = 0, place = row * columns; column <= columns; column++, place++) {
      const inside = row < bottom && column < columns && values[place] === value;
      const above = row > top && column < columns && values[place - columns] === value;
      if (inside !== above && level < 0) level = column;
      if (inside === above && level >= 0) { edge(level, row, column, row); level = -1; }
      if (inside !== left && begun[column] < 0) begun[column] = row;
      if (inside === left && begun[column] >= 0) { edge(column, begun[column], column, row); begun[column] = -1; }
      left = inside;
    }
  }
  return path;
}

const MOST_BYTES = 2 ** 28; // of steps that are kept: some 15 of whole masks of 3,000 x 3,000 pixels

/** Steps that can be taken back; each is {undo, redo, bytes}. */
export class History {
  #done = [];
  #undone = [];

  add(step) {
    this.#done.push(step);
    let bytes = this.#done.reduce((sum, { bytes: some = 0 }) => sum + some, 0);
    while (this.#done.length > 200 || (bytes > MOST_BYTES && this.#done.length > 1)) {
      bytes -= this.#done.shift().bytes ?? 0;
    }
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
  let first = 0, last = values.length;
  while (first < last && before[first] === values[first]) first++;
  if (first === last) return null;
  while (before[last - 1] === values[last - 1]) last--;
  first -= first % columns; // whole rows: simple, and a row is small
  const old = before.slice(first, last), now = values.slice(first, last);
  const area = { ...mask.everything, top: first / columns, bottom: Math.ceil(last / columns) };
  const put = (part) => () => { mask.values.set(part, first); show(area); };
  return { undo: put(old), redo: put(now), bytes: 2 * old.length };
}
