// The radiograph on a canvas: window and level, zoom and pan, and layers over it.

/** Colours of classes; told apart also by people who do not see red and green (Okabe and Ito). */
export const COLOURS = [[86, 180, 233], [230, 159, 0], [0, 200, 150], [240, 228, 66], [220, 120, 180], [213, 94, 0]];
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const LEVELS = 65535;

export const colourOf = (value) => COLOURS[(value - 1) % COLOURS.length];
/** The same for what a model drew: paler. */
export const paleOf = (value) => colourOf(value).map((part) => Math.round(0.35 * part + 0.65 * 255));
export const css = (colour) => `rgb(${colour.join(" ")})`;

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

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    new ResizeObserver(() => { const whole = this.isFitted; this.#resize(); if (whole) this.fit(); }).observe(canvas);
  }

  show(image) {
    Object.assign(this, { image, heat: null, fill: null, outlines: [], cursor: null, frame: null });
    this.#picture = new OffscreenCanvas(image.columns, image.rows);
    this.#resize();
    this.resetWindow();
    this.fit();
  }

  clear() {
    this.image = this.#picture = null;
    this.draw();
  }

  /** Show the whole image, in the middle. */
  fit() {
    if (!this.image) return;
    const { clientWidth, clientHeight } = this.canvas;
    this.scale = Math.min(clientWidth / this.image.columns, clientHeight / this.image.rows);
    this.x = (clientWidth - this.scale * this.image.columns) / 2;
    this.y = (clientHeight - this.scale * this.image.rows) / 2;
    this.isFitted = true;
    this.draw();
  }

  /** Zoom about a point of the canvas; about the middle without one. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(64, Math.max(0.02, this.scale * factor));
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
    this.#develop();
  }

  resetWindow() { this.inverted = false; this.setWindow(0.5, 1); }
  invert() { this.inverted = !this.inverted; this.#develop(); }

  /** Colour a heatmap of 0 to 255. */
  setHeat(values) {
    this.heat = values && this.#coloured(values, (value) => {
      const place = (value / 255) * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place));
      const mixed = HEAT[low].map((part, band) => part + (place - low) * (HEAT[low + 1][band] - part));
      return [...mixed, Math.max(0, 0.75 * (value - 30))]; // what is hardly unusual leaves the radiograph clear
    });
    this.draw();
  }

  /** Colour the part of a mask that changed. */
  setFill(mask, area) {
    if (!this.fill) this.fill = new OffscreenCanvas(mask.columns, mask.rows);
    const { left, top } = area, wide = area.right - left, high = area.bottom - top;
    if (wide <= 0 || high <= 0) return;
    const part = new ImageData(wide, high);
    for (let row = 0; row < high; row++) {
      for (let column = 0; column < wide; column++) {
        const value = mask.values[(top + row) * mask.columns + left + column];
        if (value) part.data.set([...colourOf(value), 60], 4 * (row * wide + column));
      }
    }
    this.fill.getContext("2d").putImageData(part, left, top);
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
    if (!this.image) return;
    const low = this.centre - this.width / 2, greys = new Uint8ClampedArray(LEVELS + 1);
    for (let level = 0; level <= LEVELS; level++) {
      const grey = (255 * (level / LEVELS - low)) / this.width;
      greys[level] = this.inverted ? 255 - grey : grey;
    }
    const { values, columns, rows } = this.image, pixels = new ImageData(columns, rows);
    const words = new Uint32Array(pixels.data.buffer);
    for (let place = 0; place < words.length; place++) words[place] = 0xff000000 | (0x010101 * greys[values[place]]);
    this.#picture.getContext("2d").putImageData(pixels, 0, 0);
    this.draw();
  }

  #coloured(values, colour) {
    const table = Array.from({ length: 256 }, (_, value) => colour(value));
    const { columns, rows } = this.image, pixels = new ImageData(columns, rows);
    values.forEach((value, place) => { pixels.data.set(table[value], 4 * place); });
    const canvas = new OffscreenCanvas(columns, rows);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  #paint() {
    const { context, canvas, scale } = this, dots = window.devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.#picture) return;
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
