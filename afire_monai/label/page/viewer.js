// The radiograph on a canvas: window and level, zoom and pan, and layers over it.

/** Colours of classes; told apart also by people who do not see red and green (Okabe and Ito). */
export const COLOURS = [[86, 180, 233], [230, 159, 0], [0, 200, 150], [240, 228, 66], [220, 120, 180], [213, 94, 0]];
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const LEVELS = 65535;

export const colourOf = (value) => COLOURS[(value - 1) % COLOURS.length];
/** The same for what a model drew: paler. */
export const paleOf = (value) => colourOf(value).map((part) => Math.round(0.35 * part + 0.65 * 255));
const word = ([red, green, blue], alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0; // of ImageData
export const css = (colour) => `rgb(${colour.join(" ")})`;

/**
 * How strongly each value of a heatmap is shown, from how its values are distributed: nothing below the median, and
 * most at the largest. Within one standard deviation of normal (64) nothing is shown, beyond three (128) everything.
 */
export function heatAlpha(values) {
  const count = new Uint32Array(256);
  for (let place = 0; place < values.length; place++) count[values[place]]++;
  let median = 0, largest = 255;
  for (let below = count[0]; 2 * below < values.length; below += count[++median]);
  while (largest > 0 && !count[largest]) largest--;
  const floor = Math.min(128, Math.max(64, median)), top = Math.max(129, largest);
  return (value) => Math.round(180 * Math.max(0, Math.min(1, (value - floor) / (top - floor))) ** 2);
}

export class Viewer {
  scale = 1; // screen pixels (CSS) to a pixel of the image
  x = 0; // where the image's upper left corner is on the canvas
  y = 0;
  centre = 0.5; // of the window, in 0 to 1
  width = 1;
  inverted = false;
  image = null; // {rows, columns, values}
  heat = null; // canvases of the image's size, or null
  fill = null;
  showsFill = true;
  outlines = []; // {path, colour}
  cursor = null; // {x, y, radius} in pixels of the image
  frame = null; // {from, to}: a box that is being drawn
  #pending = false;
  #picture = null;
  #undeveloped = false; // the window changed since the picture was drawn

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    new ResizeObserver(() => { const whole = this.isFitted; this.#resize(); if (whole) this.fit(); }).observe(canvas);
  }

  show(image) {
    for (const layer of [this.#picture, this.heat, this.fill]) if (layer) layer.width = layer.height = 0; // freed now
    Object.assign(this, { image, heat: null, fill: null, outlines: [], cursor: null, frame: null });
    this.#picture = new OffscreenCanvas(image.columns, image.rows);
    this.#resize();
    this.resetWindow();
    this.fit();
  }

  /** Show the whole image, in the middle. */
  fit() {
    if (!this.image) return;
    const { clientWidth, clientHeight } = this.canvas;
    this.scale = this.#whole;
    this.x = (clientWidth - this.scale * this.image.columns) / 2;
    this.y = (clientHeight - this.scale * this.image.rows) / 2;
    this.isFitted = true;
    this.draw();
  }

  /** The scale at which the whole image is seen. */
  get #whole() {
    return Math.min(this.canvas.clientWidth / this.image.columns, this.canvas.clientHeight / this.image.rows);
  }

  /** Zoom about a point of the canvas; about the middle without one. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.image) return;
    const scale = Math.min(Math.max(64, this.#whole), Math.max(Math.min(0.02, this.#whole), this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.isFitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.isFitted = false;
    this.draw();
  }

  /** Where a point of the page is, in pixels of the image. */
  point(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - left - this.x) / this.scale, y: (event.clientY - top - this.y) / this.scale };
  }

  setWindow(centre, width) {
    this.centre = Math.min(1.5, Math.max(-0.5, centre));
    this.width = Math.min(2, Math.max(0.005, width));
    this.#undeveloped = true;
    this.draw();
  }

  resetWindow() { this.inverted = false; this.setWindow(0.5, 1); }
  invert() { this.inverted = !this.inverted; this.setWindow(this.centre, this.width); }

  /** Colour a heatmap of 0 to 255. What is not unusual leaves the radiograph clear; see `heatAlpha`. */
  setHeat(values) {
    const alpha = values && heatAlpha(values);
    const { columns, rows } = this.image ?? {};
    this.heat = values && this.#coloured(new OffscreenCanvas(columns, rows), this.image, values, (value) => {
      const place = (value / 255) * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place));
      return word(HEAT[low].map((part, band) => part + (place - low) * (HEAT[low + 1][band] - part)), alpha(value));
    });
    this.draw();
  }

  /** Colour the part of a mask that changed. */
  setFill(mask, area) {
    this.fill ??= new OffscreenCanvas(mask.columns, mask.rows);
    this.#coloured(this.fill, mask, mask.values, (value) => (value ? word(colourOf(value), 60) : 0), area);
    this.draw();
  }

  draw() {
    if (this.#pending) return;
    this.#pending = true;
    requestAnimationFrame(() => { this.#pending = false; this.#paint(); });
  }

  #resize() {
    const dots = window.devicePixelRatio;
    this.canvas.width = Math.round(this.canvas.clientWidth * dots);
    this.canvas.height = Math.round(this.canvas.clientHeight * dots);
    this.draw();
  }

  /** Grey values through the window: once for each change, not for each zoom. */
  #develop() {
    this.#undeveloped = false;
    const low = this.centre - this.width / 2, clamped = new Uint8ClampedArray(1);
    this.#coloured(this.#picture, this.image, this.image.values, (level) => {
      clamped[0] = (255 * (level / LEVELS - low)) / this.width;
      const grey = this.inverted ? 255 - clamped[0] : clamped[0];
      return word([grey, grey, grey], 255);
    });
  }

  /** Put values into an area of a canvas, as `colour` gives the word of each value. */
  #coloured(canvas, { rows, columns }, values, colour, area = { left: 0, right: columns, top: 0, bottom: rows }) {
    const { left, right, top, bottom } = area;
    const wide = right - left, high = bottom - top;
    if (wide <= 0 || high <= 0) return canvas;
    const table = Uint32Array.from({ length: 256 ** values.BYTES_PER_ELEMENT }, (_, value) => colour(value));
    const part = new ImageData(wide, high), words = new Uint32Array(part.data.buffer);
    for (let row = 0, to = 0; row < high; row++) {
      const first = (top + row) * columns + left;
      for (let place = first; place < first + wide; place++) words[to++] = table[values[place]];
    }
    canvas.getContext("2d").putImageData(part, left, top);
    return canvas;
  }

  #paint() {
    const { context, canvas, scale } = this, dots = window.devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.#picture) return;
    if (this.#undeveloped) this.#develop();
    context.setTransform(dots * scale, 0, 0, dots * scale, dots * this.x, dots * this.y);
    context.imageSmoothingQuality = "high";
    context.imageSmoothingEnabled = true;
    context.drawImage(this.#picture, 0, 0);
    if (this.heat) context.drawImage(this.heat, 0, 0);
    context.imageSmoothingEnabled = false;
    if (this.fill && this.showsFill) context.drawImage(this.fill, 0, 0);
    for (const { path, colour } of this.outlines) {
      this.#stroke(path, "rgb(0 0 0 / 60%)", 4);
      this.#stroke(path, css(colour), 2);
    }
    if (this.frame) {
      const { from, to } = this.frame, path = new Path2D();
      path.rect(from.x, from.y, to.x - from.x, to.y - from.y);
      this.#stroke(path, "black", 3);
      this.#stroke(path, "white", 1.5);
    }
    if (this.cursor) {
      const { x, y, radius } = this.cursor, path = new Path2D(), arm = radius ? 0 : 8 / scale;
      if (radius) path.arc(x, y, radius, 0, 2 * Math.PI);
      path.moveTo(x - arm, y); path.lineTo(x + arm, y);
      path.moveTo(x, y - arm); path.lineTo(x, y + arm);
      this.#stroke(path, "black", 3);
      this.#stroke(path, "white", 1.2);
    }
  }

  #stroke(path, colour, width) {
    Object.assign(this.context, { strokeStyle: colour, lineWidth: width / this.scale });
    this.context.stroke(path);
  }
}
