// Curves on a canvas: axes, lines, zoom by drag, a cursor for mouse and keyboard. Knows nothing of runs.
"use strict";

const MARGIN = { left: 54, right: 12, top: 8, bottom: 24 };
const LONG_DASH = [6, 4];

// ------------------------------------------------------------------------------------------------ numbers

/** As people write numbers: 0.00031 is 3.1e-4, 12000 is 12K. */
function short(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "n/a";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e");
  for (const [limit, unit] of [[1e18, ""], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "K"]]) {
    if (size >= limit) return unit ? `${trimmed(value / (unit === "K" ? 1e3 : limit), digits)}${unit}` : value.toExponential(2).replace("+", "");
  }
  return trimmed(value, digits + (size >= 1 ? 1 : 0));
}

function trimmed(value, digits) {
  return String(Number(value.toPrecision(digits)));
}

/** Seconds as 42s, 12m 30s, 5h 20m, 3d 4h. */
function clock(seconds) {
  if (!Number.isFinite(seconds)) return "n/a";
  const whole = Math.round(seconds), units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size]) => whole >= size));
  if (whole === 0) return seconds > 0 ? `${trimmed(seconds, 2)}s` : "0";
  const parts = units.slice(first, first + 2).map(([unit, size], at) => [Math.floor(at ? (whole % units[first][1]) / size : whole / size), unit]);
  return parts.filter(([count], at) => at === 0 || count).map(([count, unit]) => count + unit).join(" ");
}

/** Round numbers from low to high, about `most` of them. */
function linearTicks(low, high, most, steps = [1, 2, 5, 10]) {
  const raw = (high - low) / Math.max(1, most);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * (steps.find((one) => one * power >= raw) ?? 10);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step && ticks.length < 50; at += 1) ticks.push(at * step);
  return ticks;
}

function timeTicks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  const sizes = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 432000, 864000];
  const step = raw < 1 ? null : sizes.find((size) => size >= raw);
  if (!step) return linearTicks(low, high, most);
  const ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high && ticks.length < 50; at += step) ticks.push(at);
  return ticks;
}

/** Powers of ten, with 2 and 5 where there is room; even numbers within less than a decade. */
function logTicks(low, high, most) {
  const digits = [[1, 2, 5], [1, 3], [1]];
  for (const some of digits) {
    const ticks = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade += 1) {
      for (const digit of some) if (digit * 10 ** decade >= low && digit * 10 ** decade <= high) ticks.push(digit * 10 ** decade);
    }
    if (ticks.length <= most) return ticks.length >= 2 ? ticks : linearTicks(low, high, most).filter((tick) => tick > 0);
  }
  const decades = [];
  const every = Math.ceil((Math.log10(high) - Math.log10(low)) / Math.max(1, most));
  for (let decade = Math.ceil(Math.log10(low)); decade <= Math.log10(high); decade += every) decades.push(10 ** decade);
  return decades;
}

/** The index of the value nearest to `wanted` in ascending `values`. */
function nearest(values, wanted) {
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - values[low - 1] < values[low] - wanted ? low - 1 : low;
}

/**
 * The mean over a window of `width` around each x, each point weighing as much as the stretch of x it stands for.
 * The window shrinks evenly towards the start (where losses fall steeply), and on its right side only at the end.
 */
function smoothed(x, y, width, log) {
  if (!(width > 0) || x.length < 3) return y;
  const place = log ? x.map(Math.log) : x;
  const weights = place.map((at, i) => ((place[i + 1] ?? at) - (place[i - 1] ?? at)) / 2 || 1e-12);
  const sums = [0], totals = [0];
  y.forEach((value, i) => {
    sums.push(sums[i] + weights[i] * value);
    totals.push(totals[i] + weights[i]);
  });
  let first = 0, end = 0;
  return place.map((at) => {
    const half = Math.min(width / 2, at - place[0]);
    while (place[first] < at - half) first += 1;
    while (end < place.length && place[end] <= at + half) end += 1;
    return (sums[end] - sums[first]) / (totals[end] - totals[first]);
  });
}

// ------------------------------------------------------------------------------------------------ the chart

class Chart {
  /**
   * @param canvas  where to draw; it is made reachable by keyboard here
   * @param on      zoom(low, high), back(), cursor(x or null, spoken): what people do, told to all charts by the page
   */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    this.series = []; // {label, color, x, y, bold: {x, y} | null, dots, dashed}
    this.view = { low: 0, high: 1, logX: false, logY: false, xText: short, ticks: null };
    this.marks = []; // x of vertical lines
    this.cursor = null;
    this.drag = null;
    this.width = this.height = 1; // of the plot, without its margins
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(series, view, marks = []) {
    Object.assign(this, { series, view, marks });
    this.draw();
  }

  setCursor(x) {
    if (this.cursor === x) return;
    this.cursor = x;
    this.draw();
  }

  // ---------------------------------------------------------------------------------------------- places

  toPixel(x) {
    const { low, high, logX } = this.view;
    const share = logX ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
    return MARGIN.left + share * this.width;
  }

  toX(pixel) {
    const { low, high, logX } = this.view;
    const share = Math.min(1, Math.max(0, (pixel - MARGIN.left) / this.width));
    return logX ? low * (high / low) ** share : low + share * (high - low);
  }

  /** Lowest and highest value of what is in view; with `settle` the steep beginning may leave the chart. */
  range() {
    const { low, high, logY } = this.view;
    let bottom = Infinity, top = -Infinity;
    const look = (x, y, from) => {
      const start = this.view.settle && x.length > 100 ? low + 0.02 * (high - low) : low;
      for (let i = from; i < x.length; i += 1) {
        if (x[i] < start || x[i] > high || (logY && !(y[i] > 0))) continue;
        if (y[i] < bottom) bottom = y[i];
        if (y[i] > top) top = y[i];
      }
    };
    for (const one of this.series) {
      const warm = one.skipFirst && one.x.length > 3 ? 1 : 0;
      if (one.faint || !one.bold) look(one.x, one.y, warm);
      if (one.bold) look(one.bold.x, one.bold.y, warm);
    }
    if (bottom > top) return logY ? [0.1, 1] : [0, 1];
    if (bottom === top) return logY ? [bottom / 2, top * 2] : [bottom - (Math.abs(bottom) / 10 || 0.5), top + (Math.abs(top) / 10 || 0.5)];
    if (logY) return [bottom * (bottom / top) ** 0.04, top * (top / bottom) ** 0.04];
    const room = (top - bottom) * 0.06;
    return [bottom >= 0 && bottom < (top - bottom) * 0.3 ? 0 : bottom - room, top + room];
  }

  // ---------------------------------------------------------------------------------------------- drawing

  draw() {
    const { canvas } = this, ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (width < 80 || height < 60) return;
    this.width = width - MARGIN.left - MARGIN.right;
    this.height = height - MARGIN.top - MARGIN.bottom;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    this.colors = { text: style.getPropertyValue("--faint"), grid: style.getPropertyValue("--grid"), line: style.getPropertyValue("--line"), accent: style.getPropertyValue("--accent") };
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${style.fontFamily}`;
    const [bottom, top] = this.range();
    const scale = this.view.logY ? (y) => Math.log(y / bottom) / Math.log(top / bottom) : (y) => (y - bottom) / (top - bottom);
    this.toY = (y) => MARGIN.top + (1 - scale(y)) * this.height;
    this.axes(pen, bottom, top);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, this.width, this.height);
    pen.clip();
    for (const x of this.marks) this.vertical(pen, x, this.colors.line, [2, 3]);
    for (const one of this.series) this.curve(pen, one);
    if (this.cursor !== null) this.vertical(pen, this.cursor, this.colors.text, []);
    if (this.drag) {
      pen.globalAlpha = 0.15;
      pen.fillStyle = this.colors.accent;
      pen.fillRect(this.drag.from, MARGIN.top, this.drag.to - this.drag.from, this.height);
    }
    pen.restore();
  }

  axes(pen, bottom, top) {
    const { low, high, logX, logY, xText, ticks } = this.view;
    const across = Math.max(2, Math.floor(this.width / 80)), up = Math.max(2, Math.floor(this.height / 36));
    const xs = logX ? logTicks(low, high, across) : (ticks ?? linearTicks)(low, high, across);
    const ys = logY ? logTicks(bottom, top, up) : linearTicks(bottom, top, up);
    pen.lineWidth = 1;
    pen.strokeStyle = this.colors.grid;
    pen.fillStyle = this.colors.text;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const y of ys) {
      const at = Math.round(this.toY(y)) + 0.5;
      this.stroke(pen, MARGIN.left, at, MARGIN.left + this.width, at);
      pen.fillText(short(Math.abs(y) < 1e-9 * Math.abs(top) ? 0 : y), MARGIN.left - 6, at);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const x of xs) {
      const at = Math.round(this.toPixel(x)) + 0.5;
      this.stroke(pen, at, MARGIN.top, at, MARGIN.top + this.height);
      const text = xText(x), half = pen.measureText(text).width / 2;
      pen.fillText(text, Math.min(at, MARGIN.left + this.width + MARGIN.right - half), MARGIN.top + this.height + 7);
    }
    pen.strokeStyle = this.colors.line;
    this.stroke(pen, MARGIN.left, MARGIN.top + this.height + 0.5, MARGIN.left + this.width, MARGIN.top + this.height + 0.5);
  }

  stroke(pen, x0, y0, x1, y1) {
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
  }

  vertical(pen, x, color, dash) {
    pen.strokeStyle = color;
    pen.lineWidth = 1;
    pen.setLineDash(dash);
    const at = Math.round(this.toPixel(x)) + 0.5;
    this.stroke(pen, at, MARGIN.top, at, MARGIN.top + this.height);
    pen.setLineDash([]);
  }

  curve(pen, one) {
    pen.strokeStyle = one.color;
    pen.lineJoin = "round";
    if (one.faint || !one.bold) {
      pen.globalAlpha = one.bold ? 0.25 : 1;
      pen.lineWidth = one.bold ? 1 : 1.6;
      this.path(pen, one.x, one.y, one.dashed);
    }
    pen.globalAlpha = 1;
    if (one.bold) {
      pen.lineWidth = 2;
      this.path(pen, one.bold.x, one.bold.y, one.dashed);
    }
    if (one.dots || one.x.length < 3) this.dots(pen, one);
  }

  path(pen, x, y, dashed) {
    pen.setLineDash(dashed ? LONG_DASH : []);
    pen.beginPath();
    for (let i = 0; i < x.length; i += 1) pen.lineTo(this.toPixel(x[i]), this.toY(y[i]));
    pen.stroke();
    pen.setLineDash([]);
  }

  dots(pen, one) {
    if (one.x.length > 100) return;
    pen.lineWidth = 1.6;
    pen.fillStyle = getComputedStyle(this.canvas).getPropertyValue("--card");
    for (let i = 0; i < one.x.length; i += 1) {
      pen.beginPath();
      pen.arc(this.toPixel(one.x[i]), this.toY(one.y[i]), 3, 0, 7);
      pen.fill();
      pen.stroke();
    }
  }

  // ---------------------------------------------------------------------------------------------- people

  listen() {
    const { canvas } = this;
    const at = (event) => Math.min(Math.max(event.clientX - canvas.getBoundingClientRect().left, MARGIN.left), MARGIN.left + this.width);
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.drag = { from: at(event), to: at(event) };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.drag) {
        this.drag.to = at(event);
        this.draw();
      } else this.on.cursor(this.toX(at(event)), false);
    });
    canvas.addEventListener("pointerup", () => {
      const { drag } = this;
      this.drag = null;
      if (!drag) return;
      if (Math.abs(drag.to - drag.from) > 5) this.on.zoom(...[this.toX(drag.from), this.toX(drag.to)].sort((a, b) => a - b));
      else this.draw();
    });
    canvas.addEventListener("pointercancel", () => {
      this.drag = null;
      this.draw();
    });
    canvas.addEventListener("pointerleave", () => this.on.cursor(null, false));
    canvas.addEventListener("blur", () => this.on.cursor(null, false));
    canvas.addEventListener("dblclick", () => this.on.back());
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const { low, high } = this.view, middle = this.cursor ?? this.toX(MARGIN.left + this.width / 2);
    const pixel = this.toPixel(middle), step = event.shiftKey ? this.width / 10 : Math.max(1, this.width / 100);
    const zoomed = (factor) => {
      const half = (this.width * factor) / 2;
      const place = (to) => { // beyond the edges too, where zooming out
        const share = (to - MARGIN.left) / this.width;
        return this.view.logX ? low * (high / low) ** share : low + share * (high - low);
      };
      this.on.zoom(place(pixel - half), place(pixel + half));
    };
    const keys = {
      ArrowLeft: () => this.on.cursor(this.toX(pixel - step), true),
      ArrowRight: () => this.on.cursor(this.toX(pixel + step), true),
      Home: () => this.on.cursor(low, true),
      End: () => this.on.cursor(high, true),
      "+": () => zoomed(0.5),
      "-": () => zoomed(2),
      0: () => this.on.back(),
      Escape: () => this.on.back(),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  }
}
