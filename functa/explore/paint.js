// A canvas on which pixels of an image are hidden.

const SIDE = 320; // pixels of the canvas, about

export class Mask {
  /** changed(number of hidden pixels) is called whenever there are more or fewer. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.brush = 2;
    this.uncover = false;
    this.hidden = [];
    this.cursor = [0, 0];
    this.last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.last = this.place(event);
      this.stroke(this.last, this.last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.last) return;
      const place = this.place(event);
      this.stroke(this.last, place);
      this.last = place;
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => { this.last = null; });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.draw());
    canvas.addEventListener("focus", () => this.draw());
  }

  /** Shows another image, nothing of it hidden. shape: [height, width]. */
  async show(source, shape) {
    const image = new Image();
    image.src = source;
    await image.decode();
    [this.height, this.width] = shape;
    this.image = image;
    const zoom = Math.max(1, Math.round(SIDE / Math.max(...shape)));
    this.zoom = zoom;
    this.canvas.width = zoom * this.width;
    this.canvas.height = zoom * this.height;
    this.cursor = [0, 0];
    this.fill(() => false);
  }

  /** hide(row, column, number of the pixel) tells what is hidden. */
  fill(hide) {
    this.hidden = Array.from({ length: this.height * this.width }, (_, k) =>
      hide(Math.floor(k / this.width), k % this.width, k));
    this.draw();
  }

  leftHalf() { this.fill((_, column) => column < Math.floor(this.width / 2)); }

  clear() { this.fill(() => false); }

  /** Hides a part of the pixels, at random. */
  random(part) {
    const order = [...this.hidden.keys()];
    for (let k = order.length - 1; k > 0; k -= 1) {
      const other = Math.floor(Math.random() * (k + 1));
      [order[k], order[other]] = [order[other], order[k]];
    }
    const chosen = new Set(order.slice(0, Math.round(part * order.length)));
    this.fill((row, column, k) => chosen.has(k));
  }

  /** Rows of 0 and 1, 1 where a pixel is hidden. */
  rows() {
    return Array.from({ length: this.height }, (_, row) =>
      this.hidden.slice(row * this.width, (row + 1) * this.width).map(Number).join(""));
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientY - box.top) / box.height * this.height, (event.clientX - box.left) / box.width * this.width];
  }

  stroke(from, to) {
    const steps = 1 + Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1]));
    for (let k = 0; k <= steps; k += 1) {
      this.dab(...from.map((start, axis) => start + (to[axis] - start) * k / steps));
    }
    this.draw();
  }

  /** A disc of `brush` pixels across, or the one pixel under the pointer. */
  dab(row, column) {
    const radius = this.brush / 2;
    const paint = (i, j) => {
      if (i >= 0 && j >= 0 && i < this.height && j < this.width) this.hidden[i * this.width + j] = !this.uncover;
    };
    paint(Math.floor(row), Math.floor(column));
    for (let i = Math.floor(row - radius); i <= row + radius; i += 1) {
      for (let j = Math.floor(column - radius); j <= column + radius; j += 1) {
        if (Math.hypot(i + 0.5 - row, j + 0.5 - column) <= radius) paint(i, j);
      }
    }
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const sizes = [this.height, this.width];
    if (event.key in moves) {
      this.cursor = this.cursor.map((at, axis) =>
        Math.min(sizes[axis] - 1, Math.max(0, at + moves[event.key][axis])));
    } else if (event.key === " ") {
      this.dab(...this.cursor.map((at) => at + 0.5));
    } else return;
    event.preventDefault();
    this.draw();
  }

  draw() {
    if (!this.image) return;
    const context = this.canvas.getContext("2d");
    const { zoom, width, canvas } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "#d9702b";
    this.hidden.forEach((hidden, k) => {
      if (hidden) context.fillRect(k % width * zoom, Math.floor(k / width) * zoom, zoom, zoom);
    });
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
      context.strokeStyle = "#3257d6";
      context.lineWidth = 2;
      context.strokeRect(this.cursor[1] * zoom + 1, this.cursor[0] * zoom + 1, zoom - 2, zoom - 2);
    }
    this.changed(this.hidden.filter(Boolean).length);
  }
}
