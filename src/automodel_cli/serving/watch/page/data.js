// Where numbers come from: a server, with news as they come, or the report that this page is in. No HTML is made here.
"use strict";

const BUCKETS = 800; // pixels of a chart, about
const TAIL = 4000; // points that came one by one; more are read again as thinned curves
const SILENT_MS = 45000; // the server says something every 15 s

class KeyNeeded extends Error {}

/** Runs by name: overview, details and curves, kept up to date. `changed(what, name)` tells what is new. */
class Store {
  constructor(changed) {
    this.changed = changed;
    this.runs = new Map(); // name -> {overview, details, parts, begun, generation, wanted, waiting}
    this.view = { axis: "step", low: null, high: null, logX: false }; // axis as the server has them
    this.factor = () => 1; // of a run: what the page multiplies x by
    this.timers = new Map();
  }

  /** Run `action` soon, once for all calls that come meanwhile. */
  soon(key, action, delay = 250) {
    if (!this.timers.has(key)) {
      this.timers.set(key, setTimeout(() => {
        this.timers.delete(key);
        action();
      }, delay));
    }
  }

  take(overviews) {
    for (const one of overviews) {
      const known = this.runs.get(one.run);
      if (known) known.overview = one;
      else this.runs.set(one.run, { name: one.run, overview: one, details: null, parts: null, wanted: false });
    }
    this.changed("runs");
  }

  setCurves(run, answer) {
    run.generation = answer.generation;
    run.begun = answer.begun;
    run.parts = new Map(Object.entries(answer.parts).map(([part, one]) => [part, {
      rows: one.rows,
      ends: one.x,
      tail: 0,
      curves: new Map(Object.entries(one.curves).map(([name, [x, y, meanX, meanY]]) => [name, { x, y, meanX, meanY }])),
    }]));
    this.changed("curves", run.name);
  }
}

// ------------------------------------------------------------------------------------------------ a server

class LiveStore extends Store {
  constructor(changed, say) {
    super(changed);
    this.say = say;
    this.place = "";
  }

  headers() {
    const key = sessionStorage.getItem("watch-key");
    return key ? { Authorization: `Bearer ${key}` } : {};
  }

  async ask(path) {
    const response = await fetch(path, { headers: this.headers() });
    if (response.status === 401) throw new KeyNeeded();
    if (!response.ok) throw new Error(await this.problemOf(response));
    return response.json();
  }

  async problemOf(response) {
    try {
      return (await response.json()).error.message;
    } catch {
      return `the server answered with status ${response.status}`;
    }
  }

  /** All runs anew, then the stream, for as long as the page is open. */
  async live() {
    for (let tries = 0; ; tries += 1) {
      try {
        if (!this.place) await this.readAll();
        await this.follow(() => { tries = 0; });
      } catch (error) {
        if (error instanceof KeyNeeded) throw error;
        this.say(`No connection (${error.message}); trying again …`, true);
      }
      await new Promise((done) => { setTimeout(done, Math.min(5000, 500 * 2 ** Math.min(tries, 4))); });
    }
  }

  async readAll() {
    const { place, runs, left_out: leftOut } = await this.ask("/api/runs");
    this.leftOut = leftOut;
    this.take(runs);
    this.place = place;
    for (const run of this.runs.values()) if (run.wanted) this.readRun(run);
  }

  async follow(opened) {
    const controller = new AbortController();
    let silent = setTimeout(() => controller.abort(), SILENT_MS);
    try {
      const response = await fetch("/api/events", { headers: { ...this.headers(), "Last-Event-ID": this.place }, signal: controller.signal });
      if (response.status === 401) throw new KeyNeeded();
      if (!response.ok) throw new Error(await this.problemOf(response));
      this.say("Live");
      opened();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the server has ended it");
        clearTimeout(silent);
        silent = setTimeout(() => controller.abort(), SILENT_MS);
        const blocks = (text + value).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) await this.hear(block);
      }
    } finally {
      clearTimeout(silent);
    }
  }

  async hear(block) {
    let place = null, data = null;
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) place = line.slice(4);
      if (line.startsWith("data: ")) data = line.slice(6);
    }
    if (data === null) return;
    const message = JSON.parse(data), run = this.runs.get(message.run);
    if (message.what === "everything") await this.readAll();
    else if (message.what === "runs") await this.ask("/api/runs").then(({ runs }) => this.take(runs));
    else if (run && message.what === "rows") this.append(run, message);
    else if (run && message.what === "read") this.soon(`curves ${run.name}`, () => this.readCurves(run));
    else if (run && message.what === "facts") this.soon(`facts ${run.name}`, () => this.readDetails(run), 700);
    if (place) this.place = place;
  }

  /** Curves and details of a run that is shown. */
  readRun(run) {
    run.wanted = true;
    this.readCurves(run);
    this.readDetails(run);
  }

  async readDetails(run) {
    await this.quietly(async () => {
      const details = await this.ask(`/api/run?run=${encodeURIComponent(run.name)}`);
      run.overview = details;
      if (run.wanted) run.details = details;
      this.changed("details", run.name);
    });
  }

  async readCurves(run) {
    if (!run.wanted) return;
    if (run.reading) { // one at a time; the later one sees what is asked for by then
      run.again = true;
      return;
    }
    run.reading = true;
    run.waiting = [];
    const { axis, low, high, logX } = this.view;
    await this.quietly(async () => {
      const asked = new URLSearchParams({ run: run.name, axis, buckets: BUCKETS, log: logX ? 1 : 0 });
      if (low !== null) asked.set("low", low / this.factor(run));
      if (high !== null) asked.set("high", high / this.factor(run));
      const answer = await this.ask(`/api/curves?${asked}`);
      if (answer.axis === this.view.axis) this.setCurves(run, answer);
      else run.again = true;
    });
    const { waiting, again } = run;
    Object.assign(run, { reading: false, waiting: null, again: false });
    if (again) this.readCurves(run);
    else for (const message of waiting) this.append(run, message);
  }

  async quietly(action) {
    try {
      await action();
    } catch (error) {
      if (!(error instanceof KeyNeeded)) this.say(`Something could not be read: ${error.message}`, true);
    }
  }

  /** Rows that have come; what was there before must be what this page has. */
  append(run, { generation, part, first, rows, x, columns, last }) {
    run.overview.parts[part] = { records: rows, last };
    this.changed("overview", run.name);
    if (!run.wanted) return;
    if (run.waiting) {
      run.waiting.push({ generation, part, first, rows, x, columns, last });
      return;
    }
    const known = run.parts?.get(part);
    if (run.generation === generation && known && rows <= known.rows) return;
    if (!known || run.generation !== generation || first !== known.rows || known.tail > TAIL) {
      this.soon(`curves ${run.name}`, () => this.readCurves(run));
      return;
    }
    const places = x[this.view.axis];
    for (const [name, values] of Object.entries(columns)) {
      if (!known.curves.has(name)) known.curves.set(name, { x: [], y: [] });
      const curve = known.curves.get(name);
      values.forEach((value, i) => {
        if (value === null) return;
        curve.x.push(places[i]);
        curve.y.push(value);
        curve.meanX?.push(places[i]);
        curve.meanY?.push(value);
      });
    }
    known.rows = rows;
    known.ends[1] = places.at(-1);
    known.tail += rows - first;
    this.changed("curves", run.name);
  }
}

// ------------------------------------------------------------------------------------------------ a report

/** All of it is in the page, over steps; other axes are worked out from the step. */
class ReportStore extends Store {
  constructor(changed, content) {
    super(changed);
    this.content = content;
  }

  live() {
    this.take(this.content.runs.map(({ details }) => details));
    return new Promise(() => {});
  }

  readRun(run) {
    const { details, curves } = this.content.runs.find((one) => one.details.run === run.name);
    Object.assign(run, { wanted: true, details });
    this.readCurves(run, curves);
    this.changed("details", run.name);
  }

  readCurves(run, curves = this.content.runs.find((one) => one.details.run === run.name).curves) {
    const { axis } = this.view, map = axis === "step" ? null : curves.axes[axis];
    const placed = (x) => (map && x ? x.map((step) => interpolated(step, ...map)) : x?.slice());
    const parts = Object.entries(curves.parts).map(([part, one]) => {
      const moved = Object.entries(one.curves).map(([name, [x, y, meanX, meanY]]) => [name, [placed(x), y.slice(), placed(meanX), meanY?.slice()]]);
      return [part, { ...one, x: placed(one.x), curves: Object.fromEntries(moved) }];
    });
    this.setCurves(run, { ...curves, parts: Object.fromEntries(parts) });
  }
}

function interpolated(at, xs, ys) {
  if (!xs.length) return at;
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < at) low = middle + 1; else high = middle;
  }
  if (low === 0 || xs[low] <= at) return ys[low];
  return ys[low - 1] + ((at - xs[low - 1]) / (xs[low] - xs[low - 1])) * (ys[low] - ys[low - 1]);
}
