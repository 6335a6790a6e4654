// The page of runs. Names, texts and values come from files of strangers: they reach the page as textContent only.
"use strict";

const $ = (id) => document.getElementById(id);
const COLORS = 8;
const MOST_LINES = 24; // of a legend
const MOST_EVENTS = 300;
const MOST_MARKS = 60;
const SHOWN_AT_FIRST = 8; // runs; the others are hidden until they are asked for

const TITLES = {
  "train loss": "Loss (nats per token)", "train loss_by_source": "Loss by source", "train lr": "Learning rate",
  "train grad_norm": "Gradient norm", "train tps": "Tokens per second", "train mfu": "MFU (share of the peak)",
  "train mem_gib": "Memory (GiB, peak)", "train step_s": "Step time (s)", "val bits_per_byte": "Validation: bits per byte",
  "train packing_efficiency": "Packing efficiency", "eval accuracy": "Accuracy of tasks", "eval core": "CORE",
  "eval gauntlet": "Gauntlet",
};
const ORDER = Object.keys(TITLES);
const SKIPPED = new Set(["train loss_avg", "val perplexity", "val tokens_per_s", "eval evaluated_tasks", "eval core_tasks", "eval gauntlet_tasks"]);
const NO_SCORES = new Set(["step", "epoch", "seconds", "bytes", "tokens", "tokens_per_s", "evaluated_tasks", "core_tasks", "gauntlet_tasks"]);
const AS_PLANNED = new Set(["train lr"]); // smoothing would round its corners off
const WARM = new Set(["train tps", "train mfu", "train step_s"]); // the first update compiles

const inlined = $("report-data");
const view = { x: "step", logx: false, logy: false, smooth: 2, raw: true, low: null, high: null, hidden: new Set(), shown: new Set() };
const cards = new Map();
const rows = new Map();
let cursor = null;
let store = null;

// ------------------------------------------------------------------------------------------------ elements

function element(name, className = "", text = undefined, attributes = {}) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function table(head, body) {
  const made = element("table"), top = element("thead"), rest = element("tbody");
  const line = element("tr");
  line.append(...head.map((text) => element("th", "", text, { scope: "col" })));
  top.append(line);
  rest.append(...body);
  made.append(top, rest);
  return made;
}

function row(cells, className = "") {
  const made = element("tr", className);
  made.append(...cells.map((cell) => (cell instanceof Node ? cell : element("td", typeof cell === "number" ? "num" : "wrap", typeof cell === "number" ? short(cell, 5) : cell))));
  return made;
}

function swatch(color, dots = false) {
  const made = element("span", dots ? "swatch dots" : "swatch", undefined, { "aria-hidden": "true" });
  made.style.setProperty("--swatch", `var(--c${color})`);
  return made;
}

function say(text, isBad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", isBad);
}

// ------------------------------------------------------------------------------------------------ the view, in the address

function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (hash.get(name) && Number.isFinite(Number(hash.get(name))) ? Number(hash.get(name)) : null);
  view.x = ["step", "tokens", "flops", "time"].includes(hash.get("x")) ? hash.get("x") : "step";
  view.logx = hash.get("logx") === "1";
  view.logy = hash.get("logy") === "1";
  view.raw = hash.get("raw") !== "0";
  view.smooth = Math.min(20, Math.max(0, number("smooth") ?? 2));
  view.low = number("low");
  view.high = number("high");
  if (!(view.low < view.high)) view.low = view.high = null;
  view.hidden = new Set(hash.getAll("hide"));
  view.shown = new Set(hash.getAll("show"));
}

function writeHash() {
  const hash = new URLSearchParams();
  if (view.x !== "step") hash.set("x", view.x);
  if (view.logx) hash.set("logx", "1");
  if (view.logy) hash.set("logy", "1");
  if (!view.raw) hash.set("raw", "0");
  if (view.smooth !== 2) hash.set("smooth", view.smooth);
  if (view.low !== null) {
    hash.set("low", Number(view.low.toPrecision(6)));
    hash.set("high", Number(view.high.toPrecision(6)));
  }
  for (const name of view.hidden) hash.append("hide", name);
  for (const name of view.shown) hash.append("show", name);
  try {
    history.replaceState(null, "", location.href.split("#")[0] + (hash.size ? `#${hash}` : ""));
  } catch { /* not allowed in some viewers of files: the page works without */ }
}

function showControls() {
  $("axis").value = view.x;
  $("logx").checked = view.logx;
  $("logy").checked = view.logy;
  $("raw").checked = view.raw;
  $("smooth").value = view.smooth;
  $("smooth-out").textContent = view.smooth ? `${view.smooth}%` : "off";
  $("reset").disabled = view.low === null;
}

/** Something of the view has changed; `read`: other points are needed. */
function viewChanged(read) {
  writeHash();
  showControls();
  if (read) {
    Object.assign(store.view, { axis: view.x === "flops" ? "tokens" : view.x, low: view.low, high: view.high, logX: view.logx });
    store.soon("view", () => visible().forEach((run) => store.readCurves(run)), 120);
  }
  drawSoon();
}

// ------------------------------------------------------------------------------------------------ runs

const allRuns = () => [...store.runs.values()];
const colorOf = (run) => allRuns().indexOf(run) % COLORS;
const isVisible = (run) => !view.hidden.has(run.name) && (view.shown.has(run.name) || allRuns().indexOf(run) < SHOWN_AT_FIRST);
const visible = () => allRuns().filter(isVisible);
const flopsOf = (run) => run.overview.plan?.flops_per_token ?? NaN;
const factorOf = (run) => (view.x === "flops" ? flopsOf(run) : 1);

function toggle(run, isOn) {
  view.hidden.delete(run.name);
  view.shown.delete(run.name);
  if (!isOn) view.hidden.add(run.name);
  else if (!isVisible(run)) view.shown.add(run.name);
  if (isOn) store.readRun(run);
  viewChanged(false);
  showRuns();
  showSections();
}

function stateOf({ training, plan, reading, parts, problem }) {
  if (problem) return "cannot be read";
  if (reading) return "reading";
  if (training) return "training";
  return plan?.steps && (parts.train?.last.step ?? 0) >= plan.steps ? "finished" : "stopped";
}

function showRuns() {
  const body = $("runs").tBodies[0];
  for (const run of allRuns()) {
    if (!rows.has(run.name)) {
      const made = runRow(run);
      rows.set(run.name, made);
      body.append(made.line);
      if (isVisible(run)) store.readRun(run);
    }
    fillRow(run, rows.get(run.name));
  }
  if (store.leftOut) $("foot").textContent = `${store.leftOut} more runs are not shown: name fewer folders.`;
  if (!rows.size) say(inlined ? "There is no run in this report." : "No run yet; it will be here when it begins.");
}

function runRow(run) {
  const line = element("tr"), name = element("td"), label = element("label"), box = element("input", "", undefined, { type: "checkbox" });
  box.addEventListener("change", () => toggle(run, box.checked));
  label.append(box, swatch(colorOf(run)), element("span", "", run.name));
  name.append(label);
  const cells = ["state", "step", "progress", "loss", "val", "tps", "eta", "tokens", "params"].map((key) => [key, element("td", key === "state" || key === "progress" ? "" : "num")]);
  const bar = element("progress", "", undefined, { max: 1, "aria-label": `Progress of ${run.name}` });
  line.append(name, ...cells.map(([, cell]) => cell));
  const made = { line, box, bar, ...Object.fromEntries(cells) };
  made.progress.append(bar);
  return made;
}

function fillRow(run, made) {
  const { overview } = run, last = overview.parts.train?.last ?? {}, plan = overview.plan ?? {}, state = stateOf(overview);
  made.box.checked = isVisible(run);
  made.line.classList.toggle("off", !isVisible(run));
  made.state.textContent = state;
  made.state.className = `state-${state.replaceAll(" ", "-")}`;
  made.state.title = overview.problem ?? "";
  made.step.textContent = last.step === undefined ? "" : last.step.toLocaleString("en") + (plan.steps ? ` / ${plan.steps.toLocaleString("en")}` : "");
  made.bar.hidden = !plan.steps;
  made.bar.value = plan.steps ? Math.min(1, (last.step ?? 0) / plan.steps) : 0;
  made.loss.textContent = short(last.loss);
  const name = overview.parts["val/default"] ? "val/default" : Object.keys(overview.parts).find((part) => part.startsWith("val/"));
  made.val.textContent = name ? short(overview.parts[name].last.loss) : "";
  made.tps.textContent = last.tps ? short(last.tps, 3) : "";
  made.eta.textContent = state === "training" && last.eta_s !== undefined && last.eta_s !== null ? clock(last.eta_s) : "";
  made.tokens.textContent = last.tokens_seen ? short(last.tokens_seen, 3) + (plan.tokens ? ` / ${short(plan.tokens, 3)}` : "") : "";
  made.params.textContent = plan.params ? short(plan.params, 3) : "";
}

// ------------------------------------------------------------------------------------------------ charts

/** Charts and their lines, of what the visible runs have. */
function chartsNow() {
  const charts = new Map(), runs = visible().filter((run) => run.parts && !Number.isNaN(factorOf(run)));
  for (const run of runs) {
    for (const [part, { curves }] of [...run.parts].sort(([a], [b]) => (b === "train") - (a === "train"))) {
      const [kind, ...set] = part.split("/");
      for (const [name, curve] of curves) {
        if (!curve.x.length) continue;
        const [base, ...inner] = name.split("/");
        const key = kind === "val" && base === "loss" ? "train loss" : `${kind} ${base}`;
        if (SKIPPED.has(key) || (key === "train tps_per_gpu" && sameAs(run, curve))) continue;
        if (!charts.has(key)) charts.set(key, []);
        const what = [kind === "val" ? "validation" : "", set.join("/") === "default" ? "" : set.join("/"), inner.join("/")];
        const line = what.filter(Boolean).join(" ") || (key === "train loss" ? "train" : "");
        charts.get(key).push({ run, line, curve, measured: kind === "train" });
      }
    }
  }
  return [...charts].sort(([a], [b]) => placeOf(a) - placeOf(b));
}

const placeOf = (key) => (ORDER.includes(key) ? ORDER.indexOf(key) : ORDER.length);
const sameAs = (run, curve) => run.parts.get("train").curves.get("tps")?.y.at(-1) === curve.y.at(-1);

function titleOf(key) {
  const [kind, base] = [key.slice(0, key.indexOf(" ")), key.slice(key.indexOf(" ") + 1)];
  return TITLES[key] ?? (kind === "train" ? base : `${kind === "val" ? "Validation" : "Evaluation"}: ${base}`);
}

function span(runs) {
  let low = Infinity, high = -Infinity;
  for (const run of runs) {
    for (const [part, { ends }] of run.parts ?? []) {
      const from = view.logx ? Math.max(ends[0], part === "train" && view.x === "time" ? 1 : 0) : ends[0];
      if (!view.logx || from > 0) low = Math.min(low, from * factorOf(run));
      high = Math.max(high, ends[1] * factorOf(run));
    }
  }
  if (low > high || Number.isNaN(low)) return [view.logx ? 1 : 0, view.logx ? 10 : 1];
  return low === high ? [view.logx ? low / 2 : low - 1, high + 1] : [low, high];
}

function draw() {
  const charts = chartsNow(), runs = visible();
  const [first, last] = span(runs.filter((run) => !Number.isNaN(factorOf(run))));
  const low = view.low ?? first, high = view.high ?? last;
  const shared = {
    low: view.logx ? Math.max(low, first > 0 ? Math.min(first, high / 10) : 1e-3) : low, high, logX: view.logx,
    xText: view.x === "time" ? clock : (x) => short(x), ticks: view.x === "time" ? timeTicks : null,
  };
  const marks = marksOf(runs), alone = runs.length === 1;
  const wanted = new Set(charts.map(([key]) => key));
  for (const [key, card] of cards) {
    if (!wanted.has(key)) {
      card.box.remove();
      cards.delete(key);
    }
  }
  charts.forEach(([key, lines], place) => {
    if (!cards.has(key)) cards.set(key, makeCard(key));
    const card = cards.get(key);
    if ($("charts").children[place] !== card.box) $("charts").insertBefore(card.box, $("charts").children[place] ?? null);
    const counts = new Map();
    card.lines = lines.map((line) => {
      const number = counts.get(line.run) ?? 0;
      counts.set(line.run, number + 1);
      return lineOf(key, line, alone, number, shared);
    });
    card.chart.show(card.lines, { ...shared, logY: view.logy && key.includes("loss"), settle: key.includes("loss") && view.low === null && !view.logx }, marks);
    fillLegend(card);
    if (!card.table.hidden) fillTable(card);
  });
}

function lineOf(key, { run, line, curve, measured }, alone, number, shared) {
  const factor = factorOf(run), scaled = (x) => (factor === 1 ? x : x.map((one) => one * factor));
  const x = scaled(curve.x), color = alone ? number % COLORS : colorOf(run);
  const smooth = measured && view.smooth > 0 && !AS_PLANNED.has(key) && curve.x.length > 10;
  let bold = null;
  if (smooth) {
    const meanX = curve.meanX ? scaled(curve.meanX) : x, meanY = curve.meanY ?? curve.y;
    const width = (view.smooth / 100) * (view.logx ? Math.log(shared.high / shared.low) : shared.high - shared.low);
    bold = { x: meanX, y: smoothed(meanX, meanY, width, view.logx) };
  }
  const label = [alone ? "" : run.name, line].filter(Boolean).join(": ") || (alone ? titleOf(key) : run.name);
  const style = getComputedStyle(document.documentElement).getPropertyValue(`--c${color}`);
  return { label, color: style, colorNumber: color, x, y: curve.y, bold, faint: view.raw, dots: !measured, dashed: !measured || (!alone && number > 0), skipFirst: WARM.has(key) };
}

function marksOf(runs) {
  if (view.x !== "step" && view.x !== "time") return [];
  const marks = [];
  for (const run of runs) {
    for (const event of run.details?.events ?? []) {
      if (["save", "skip"].includes(event.kind)) continue; // too many
      const x = view.x === "step" ? event.step : event.time - run.begun;
      if (Number.isFinite(x)) marks.push(x);
    }
  }
  return marks.slice(-MOST_MARKS);
}

function makeCard(key) {
  const box = element("article", key === "train loss" ? "card wide" : "card"), head = element("div"), canvas = element("canvas");
  const title = titleOf(key), button = element("button", "", "Table", { type: "button", "aria-pressed": "false", "aria-label": `Table of ${title}` });
  const legend = element("ul", "legend"), values = element("div", "scroll", undefined, { tabindex: "0", "aria-label": `${title}, values` });
  const spoken = element("p", "hidden", undefined, { "aria-live": "polite" });
  values.hidden = true;
  head.append(element("h2", "", title), button);
  box.append(head, legend, canvas, values, spoken);
  const card = { key, title, box, canvas, legend, spoken, table: values, lines: [] };
  card.chart = new Chart(canvas, { zoom, back: () => zoom(null, null), cursor: (x, isKey) => moveCursor(x, isKey ? card : null) });
  button.addEventListener("click", () => {
    values.hidden = !values.hidden;
    button.setAttribute("aria-pressed", String(!values.hidden));
    fillTable(card);
  });
  return card;
}

function fillLegend(card) {
  const shown = card.lines.slice(0, MOST_LINES);
  const items = shown.map((one) => {
    const item = element("li"), drawn = one.bold ?? one;
    const at = cursor === null ? drawn.x.length - 1 : nearest(drawn.x, cursor);
    item.append(swatch(one.colorNumber, one.dots), element("span", "", one.label), element("b", "", short(drawn.y[at], 5)));
    return item;
  });
  if (card.lines.length > MOST_LINES) items.push(element("li", "", `and ${card.lines.length - MOST_LINES} more`));
  card.legend.replaceChildren(...items);
  const said = shown.slice(0, 6).map((one) => `${one.label}: last ${short(one.y.at(-1), 5)} at ${card.chart.view.xText(one.x.at(-1))}`);
  card.canvas.setAttribute("aria-label", `Chart of ${card.title} over ${$("axis").selectedOptions[0].text}. ${said.join("; ")}`);
}

function fillTable(card) {
  const { low, high, xText } = card.chart.view, count = 25;
  const places = Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
  const lines = card.lines.slice(0, MOST_LINES).map((one) => one.bold ?? one);
  const body = places.map((x) => {
    const at = lines.map((one) => nearest(one.x, x));
    return row([xText(x), ...lines.map((one, i) => (x > one.x.at(-1) || x < one.x[0] ? "" : one.y[at[i]]))]);
  });
  card.table.replaceChildren(table([$("axis").selectedOptions[0].text, ...card.lines.slice(0, MOST_LINES).map((one) => one.label)], body));
}

function zoom(low, high) {
  const [first, last] = span(visible().filter((run) => run.parts));
  const whole = low === null || view.low === null ? [first, last] : [Math.min(first, view.low), Math.max(last, view.high)];
  if (low !== null && low <= whole[0] && high >= whole[1]) low = high = null;
  view.low = low;
  view.high = high;
  viewChanged(true);
}

function moveCursor(x, speaking) {
  cursor = x;
  for (const card of cards.values()) {
    card.chart.setCursor(x);
    fillLegend(card);
  }
  if (speaking) {
    const values = speaking.lines.slice(0, 6).map((one) => `${one.label} ${short((one.bold ?? one).y[nearest((one.bold ?? one).x, x)], 5)}`);
    speaking.spoken.textContent = `${speaking.chart.view.xText(x)}: ${values.join(", ")}`;
  }
}

// ------------------------------------------------------------------------------------------------ texts and tables

function showSections() {
  const runs = visible().filter((run) => run.details);
  fill("scores", scores(runs));
  fill("samples", samples(runs));
  fill("events", events(runs));
  fill("config", config(runs));
  fill("saves", saves(runs));
  fill("about", about(runs));
}

function fill(id, content) {
  const box = $(id), nodes = content.filter(Boolean);
  box.hidden = nodes.length === 0;
  box.querySelector("div").replaceChildren(...nodes);
}

function named(run) {
  const title = element("h3");
  title.append(swatch(colorOf(run)), ` ${run.name}`);
  return title;
}

/** Rows of names, a column a run, of maps by run; `differ`: only those that are not equal, `mark`: these in a color. */
function compared(runs, maps, { differ = false, mark = false } = {}) {
  const names = [...new Set(maps.flatMap((one) => Object.keys(one)))];
  const lines = names.flatMap((name) => {
    const values = maps.map((one) => (Object.hasOwn(one, name) ? one[name] : undefined)), isSame = values.every((value) => value === values[0]);
    if (differ && isSame) return [];
    return [row([element("th", "wrap", name, { scope: "row" }), ...values.map((value) => value ?? "")], !isSame && mark && !differ ? "differs" : "")];
  });
  return lines.length ? table(["", ...runs.map((run) => run.name)], lines) : null;
}

function scores(runs) {
  const maps = runs.map(({ details }) => {
    const found = {};
    for (const [part, { last }] of Object.entries(details.parts)) {
      if (part === "train") continue;
      for (const [name, value] of Object.entries(last)) {
        if (typeof value !== "number" || NO_SCORES.has(name)) continue;
        found[part === "eval" ? name : `${part.replace("val/", "validation ").replace(" default", "")} ${name}`] = value;
      }
    }
    for (const { name, scores: numbers } of details.results) {
      for (const [key, [value, error]] of Object.entries(numbers)) {
        found[`${name.replace(/^results_?|\.json$/g, "")} ${key}`] = error ? `${short(value, 4)} ± ${short(1.96 * error, 2)}` : value;
      }
    }
    return found;
  });
  const shown = compared(runs, maps);
  return [shown, shown && maps.some((one) => Object.values(one).some((value) => String(value).includes("±"))) ? element("p", "faint", "±: 95% interval.") : null];
}

function samples(runs) {
  return runs.filter(({ details }) => details.samples.length).flatMap((run) => [
    named(run),
    ...run.details.samples.slice(-8).reverse().map(({ step, texts }, place) => {
      const box = element("details");
      box.open = place === 0;
      box.append(element("summary", "", `step ${step.toLocaleString("en")}`), ...texts.map(({ prompt, text }) => {
        const shown = element("div", "sample");
        shown.style.setProperty("--swatch", `var(--c${colorOf(run)})`);
        shown.append(element("b", "", prompt), text);
        return shown;
      }));
      return box;
    }),
  ]);
}

function events(runs) {
  const all = runs.flatMap((run) => run.details.events.map((event) => ({ ...event, run })));
  all.sort((a, b) => (b.time ?? 0) - (a.time ?? 0) || b.step - a.step);
  const lines = all.slice(0, MOST_EVENTS).map(({ step, time, kind, text, run }) => {
    const what = element("td"), word = kind.replace(/[^a-z]/g, "");
    what.append(element("span", `kind kind-${word}`, kind));
    const when = time ? new Date(time * 1000).toLocaleString() : "";
    return row([step.toLocaleString("en"), what, text, ...(runs.length > 1 ? [run.name] : []), when]);
  });
  if (all.length > MOST_EVENTS) lines.push(row([`and ${all.length - MOST_EVENTS} earlier ones`]));
  return [lines.length ? table(["Step", "Event", "", ...(runs.length > 1 ? ["Run"] : []), "Time"], lines) : null];
}

let onlyDifferences = true;
function config(runs) {
  const known = runs.filter(({ details }) => Object.keys(details.config).length);
  if (!known.length) return [];
  const label = element("label"), box = element("input", "", undefined, { type: "checkbox" });
  box.checked = onlyDifferences;
  box.addEventListener("change", () => {
    onlyDifferences = box.checked;
    showSections();
  });
  label.append(box, " only what differs");
  const several = known.length > 1;
  const shown = compared(known, known.map(({ details }) => details.config), { differ: several && onlyDifferences, mark: several });
  return [several ? label : null, shown ?? element("p", "faint", "The configurations are equal.")];
}

function saves(runs) {
  return runs.filter(({ details }) => details.saves.length).flatMap((run) => [
    named(run),
    table(["Step", "Loss", "Validation", "Size", "", "Time"], [...run.details.saves].reverse().map((one) => row([
      one.step.toLocaleString("en"), one.loss ?? "", Object.entries(one.val_loss).map(([name, value]) => (name === "default" ? short(value) : `${name} ${short(value)}`)).join(", "),
      `${short(one.bytes / 2 ** 20, 3)} MiB`, one.marks.join(" "), one.time ? new Date(one.time * 1000).toLocaleString() : "",
    ]))),
  ]);
}

function about(runs) {
  const maps = runs.map(({ details }) => ({
    ...Object.fromEntries(Object.entries(details.plan).map(([key, value]) => [`plan ${key}`, typeof value === "number" ? value.toLocaleString("en") : String(value)])),
    ...prefixed("", details.facts), ...prefixed("", details.machine), ...prefixed("branch ", details.lineage),
    ...(details.skipped_lines ? { "damaged lines of metrics.jsonl": String(details.skipped_lines) } : {}),
  }));
  maps.forEach((one, i) => {
    if (Object.keys(runs[i].details.config).length) one["train it again"] = `automodel pretrain llm -c ${quoted(`${runs[i].details.folder}/config.yaml`)}`;
  });
  return [compared(runs, maps)];
}

/** For a shell, into which somebody may copy it. */
const quoted = (path) => (/^[\w./~+-]+$/.test(path) && !path.startsWith("-") ? path : `'${path.replaceAll("'", "'\\''")}'`);

const prefixed = (prefix, map) => Object.fromEntries(Object.entries(map).map(([key, value]) => [prefix + key, value]));

// ------------------------------------------------------------------------------------------------ beginning

let isDue = false;
function drawSoon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
    if (inlined) document.documentElement.dataset.height = document.documentElement.scrollHeight; // for who draws it
  });
}

function changed(what, name) {
  if (what === "curves") drawSoon();
  if (what === "details") {
    showSections();
    drawSoon();
  }
  if (what !== "curves") showRuns();
  const run = store.runs.get(name);
  if (run && rows.has(name)) fillRow(run, rows.get(name));
}

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on("axis", "change", () => {
    view.x = $("axis").value;
    view.low = view.high = null;
    viewChanged(true);
  });
  on("logx", "change", () => {
    view.logx = $("logx").checked;
    viewChanged(true);
  });
  on("logy", "change", () => {
    view.logy = $("logy").checked;
    viewChanged(false);
  });
  on("raw", "change", () => {
    view.raw = $("raw").checked;
    viewChanged(false);
  });
  on("smooth", "input", () => {
    view.smooth = Number($("smooth").value);
    viewChanged(false);
  });
  on("reset", "click", () => zoom(null, null));
  on("view", "submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", () => {
    readHash();
    viewChanged(true);
    showRuns();
    showSections();
  });
  window.addEventListener("beforeprint", () => {
    for (const box of document.querySelectorAll("#sections > details")) box.open = true;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSoon);
}

async function askForKey() {
  $("ask").showModal();
  await new Promise((done) => { $("ask").addEventListener("close", done, { once: true }); });
  sessionStorage.setItem("watch-key", $("key").value);
}

async function begin() {
  readHash();
  showControls();
  listen();
  if (inlined) {
    const content = JSON.parse(inlined.textContent);
    store = new ReportStore(changed, content);
    document.title = content.title;
    $("title").textContent = content.title;
    $("foot").textContent = content.foot;
    say(content.made);
  } else store = new LiveStore(changed, say);
  store.factor = factorOf;
  Object.assign(store.view, { axis: view.x === "flops" ? "tokens" : view.x, low: view.low, high: view.high, logX: view.logx });
  for (;;) {
    try {
      await store.live();
    } catch (error) {
      if (!(error instanceof KeyNeeded)) throw error;
      say("This server needs an API key.");
      await askForKey();
    }
  }
}

begin();
