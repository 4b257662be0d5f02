
"use strict";
// Whatever comes from the cache gets into the page as text, never as HTML.

const RANGES = { "5 min": 300, "15 min": 900, "1 h": 3600 };
const COLOURS = 6;
const processes = new Map(); // each worker of the server answers for itself: what is known of it, by its name
let shown = null; // the process
let model = ""; // all of them together
let range = 300; // seconds
let sure = null; // a button that was pressed once and wants to be pressed again

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const count = (n) => Math.round(n).toLocaleString("en");
const percent = (part) => (part === null ? "–" : `${Number((100 * part).toFixed(1))} %`);
const rateOf = (hits, misses) => (hits + misses ? hits / (hits + misses) : null);
const counted = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");
const colour = (at) => `var(--c${at % COLOURS})`;
const short = (name) => name.split(":").pop();

function duration(ms) {
  if (!ms) return "–";
  const [value, unit] = ms >= 1000 ? [ms / 1000, "s"] : ms >= 1 ? [ms, "ms"] : [1000 * ms, "µs"];
  return `${Number(value.toPrecision(value < 100 ? 2 : 3))} ${unit}`;
}

function size(bytes) {
  const power = bytes < 1000 ? 0 : bytes < 1e6 ? 1 : 2;
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${["B", "kB", "MB"][power]}`;
}

// Charts

const aims = new Map(); // where the pointer is, in which chart
const WIDTH = 560, HEIGHT = 190, LEFT = 46, BOTTOM = 20, TOP = 8;

function chart(place, lines, scale, ticks, format, end) {
  const width = Math.max(280, place.clientWidth || WIDTH);
  const x = (at) => LEFT + ((at - end + range) / range) * (width - LEFT);
  const y = (value) => TOP + (1 - scale(value)) * (HEIGHT - TOP - BOTTOM);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  svg.append(draw("title", {}, lines.map((line) => line.name).join(", ")));
  for (const tick of ticks) {
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: width, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  for (let part = 0; part <= 3; part++) {
    const at = end - range + (range * part) / 3;
    const anchor = part === 0 ? "start" : part === 3 ? "end" : "middle";
    svg.append(draw("text", { x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, clock(at).slice(0, 5)));
  }
  for (const line of lines) {
    let path = "", last = null;
    for (const [at, value] of line.points) {
      if (value === null) { last = null; continue; }
      path += `${last === null ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      if (last === null) path += "h0.01"; // a point that is alone is a dot
      last = at;
    }
    const style = { d: path, opacity: line.faint ? 0.35 : 1, "stroke-dasharray": line.dashed ? "2 5" : "none" };
    const drawn = draw("path", style);
    drawn.style.stroke = line.colour;
    svg.append(drawn);
  }
  const aim = draw("line", { class: "aim", y1: TOP, y2: HEIGHT - BOTTOM, x1: 0, x2: 0, visibility: "hidden" });
  svg.append(aim);
  const legend = make("div", { class: "legend" });
  const tell = (at) => {
    const entries = lines.map((line) => {
      const near = at === null ? line.points.findLast((point) => point[1] !== null) : nearest(line.points, at);
      const mark = make("i", { class: line.dashed ? "dashed" : "" });
      mark.style.borderColor = line.colour;
      return make("span", {}, mark, `${line.name} ${near ? format(near[1]) : "–"}`);
    });
    legend.replaceChildren(...entries, ...(at === null ? [] : [make("span", {}, clock(at))]));
  };
  const point = (at) => {
    aims.set(place, at);
    if (at !== null) { aim.setAttribute("x1", x(at)); aim.setAttribute("x2", x(at)); }
    aim.setAttribute("visibility", at === null ? "hidden" : "visible");
    tell(at);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = end - range + (((event.clientX - box.left) * (width / box.width) - LEFT) / (width - LEFT)) * range;
    point(at < end - range ? null : at);
  });
  svg.addEventListener("pointerleave", () => point(null));
  point(aims.get(place) ?? null);
  place.replaceChildren(svg, legend);
}

function nearest(points, at) {
  const some = points.filter((point) => point[1] !== null && Math.abs(point[0] - at) < range / 40);
  return some.sort((a, b) => Math.abs(a[0] - at) - Math.abs(b[0] - at))[0];
}

// A point of a long range stands for several of the server's, so that a line stays one that can be read.
function lately(data) {
  const points = data.points.filter((point) => point.at > data.now - range);
  const most = 120, step = Math.ceil(points.length / most), found = [];
  for (let at = 0; at < points.length; at += step) found.push(points.slice(at, at + step));
  return found;
}

const sum = (points, name, place) => points.reduce((total, point) => total + (point.reads[name]?.[place] ?? 0), 0);

function timeOf(points, name, place) {
  const by = place < 4 ? 0 : 1; // hits or misses: how much each point's time counts
  const weight = sum(points, name, by);
  const whole = points.reduce((total, point) => total + (point.reads[name]?.[place] ?? 0) * (point.reads[name]?.[by] ?? 0), 0);
  return weight ? whole / weight : null;
}

function busiest(data) {
  const reads = new Map();
  for (const point of data.points)
    for (const [name, [hits, misses]] of Object.entries(point.reads))
      if (name) reads.set(name, (reads.get(name) ?? 0) + hits + misses);
  return [...reads].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, COLOURS - 1).map(([name]) => name);
}

function charts(data) {
  const names = ["", ...busiest(data)], groups = lately(data);
  if (!names.includes(model)) names.push(model);
  const label = (name) => (name ? short(name) : "all models");
  if (names.join() !== [...$("chips").children].map((chip) => chip.title).join()) // a chip keeps the focus that it has
    $("chips").replaceChildren(
      ...names.map((name, at) => {
        const dot = make("i"), press = () => { model = name; show(); };
        dot.style.background = colour(at);
        return make("button", { title: name, onclick: press }, dot, name ? short(name) : "All models");
      }),
    );
  for (const chip of $("chips").children) chip.setAttribute("aria-pressed", String(chip.title === model));
  const middle = (points) => points[points.length - 1].at;
  const rates = names.map((name, at) => ({
    name: label(name), colour: colour(at), faint: name !== model,
    points: groups.map((points) => [middle(points), rateOf(sum(points, name, 0), sum(points, name, 1))]),
  }));
  chart($("rate"), rates, (value) => value, [0, 0.25, 0.5, 0.75, 1], percent, data.now);
  const at = names.indexOf(model);
  const times = [["hits, median", 2, colour(at), false], ["hits, 99 %", 3, colour(at), true],
    ["misses, median", 4, "var(--warn)", false], ["misses, 99 %", 5, "var(--warn)", true]].map(([name, place, paint, dashed]) => ({
    name, colour: paint, dashed, points: groups.map((points) => [middle(points), timeOf(points, model, place) || null]),
  }));
  const log = (ms) => Math.min(1, Math.max(0, (Math.log10(ms) + 2) / 5)); // from 10 µs to 1 s, by powers of ten
  chart($("latency"), times, log, [0.01, 0.1, 1, 10, 100, 1000], duration, data.now);
  $("rate-of").textContent = label(model);
  $("latency-of").textContent = label(model);
}

// Numbers

function card(title, value, under, kind = "") {
  return make("div", { class: "card" }, make("h2", {}, title), make("b", { class: kind }, value), make("span", {}, under));
}

function cards(data) {
  const points = data.points.filter((point) => point.at > data.now - range), stats = data.stats;
  const hits = sum(points, "", 0), misses = sum(points, "", 1);
  const seconds = points.reduce((total, point) => total + point.seconds, 0);
  const label = Object.keys(RANGES).find((name) => RANGES[name] === range);
  const inFlight = data.in_flight.length;
  $("cards").replaceChildren(
    card("Hit rate", percent(rateOf(hits, misses) ?? rateOf(stats.hits, stats.misses)), `${percent(rateOf(stats.hits, stats.misses))} since configured`),
    card("Reads", seconds ? `${count((hits + misses) / seconds)} /s` : "–", `${count(hits + misses)} in ${label}`),
    card("A hit takes", duration(timeOf(points, "", 2)), `99 %: ${duration(timeOf(points, "", 3))}`),
    card("A miss takes", duration(timeOf(points, "", 4)), `99 %: ${duration(timeOf(points, "", 5))}`),
    card("Commits in flight", count(inFlight), `${count(stats.invalidated)} keys invalidated`),
    card("Owed", count(stats.owed), `${counted(stats.outages, "outage")}, ${counted(stats.errors, "error")}`, stats.owed ? "warn" : ""),
  );
}

const because = (reasons) => Object.entries(reasons).sort((a, b) => b[1] - a[1]).map(([why, n]) => `${why.replace("_", " ")} ${count(n)}`).join(", ");

function models(data) {
  const heads = ["", "Hit rate", "Hits", "Misses", "Hit", "Miss", "Bypasses", "Fills", "Refused", "Invalidated"];
  const row = (each) => {
    const rate = rateOf(each.hits, each.misses), meter = make("span", { class: "meter" }, make("i"));
    meter.firstChild.style.width = `${100 * (rate ?? 0)}%`;
    const why = because(each.reasons.miss), bypasses = because(each.reasons.bypass), refused = because(each.reasons.refused);
    const note = (number, reasons, text = count(number)) => (number ? [text, make("small", {}, reasons)] : ["0"]);
    const cells = [
      [short(each.name), make("small", {}, each.name.split(":")[0])],
      [make("span", {}, percent(rate), meter)],
      [count(each.hits)], note(each.misses, why),
      [duration(each.hit_median), make("small", {}, `99 %: ${duration(each.hit_p99)}`)],
      [duration(each.miss_median), make("small", {}, `99 %: ${duration(each.miss_p99)}`)],
      note(each.bypasses, bypasses), [count(each.fills)], note(each.refused + each.uncached, refused), [count(each.invalidated)],
    ];
    return make("tr", {}, ...cells.map((cell, at) => make("td", { "data-label": heads[at] }, make("div", {}, ...cell))));
  };
  const head = make("thead", {}, make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name || "Model"))));
  $("models").replaceChildren(head, make("tbody", {}, ...data.models.map(row)));
}

function invalidations(data) {
  const named = (touched) => {
    const rows = touched.rows.slice(0, 8), more = touched.rows.length - rows.length;
    const which = touched.whole ? "all rows" : rows.join(", ") + (more ? ` and ${more} more` : "");
    return [make("b", {}, touched.table), " ", make("span", { class: "code" }, which), " "];
  };
  const events = data.invalidations.slice(0, 60).map((each) =>
    make("div", { class: "event" }, make("time", {}, clock(each.at)),
      make("div", {}, ...each.touched.slice(0, 6).flatMap(named)), make("small", {}, each.why)));
  $("invalidations").replaceChildren(...(events.length ? events : [make("p", { class: "none" }, "Nothing yet.")]));
}

function list(place, items, otherwise) {
  const entries = items.map((item) => make("li", { class: "code" }, item));
  place.replaceChildren(entries.length ? make("ul", {}, ...entries) : make("p", { class: "none" }, otherwise));
}

function state(data) {
  const [kind, text] = !data.configured ? ["warn", "not configured"]
    : data.stats.unreachable ? ["bad", "the cache does not answer"]
    : data.stats.owed ? ["warn", "invalidations are owed"] : ["good", "the cache answers"];
  $("state").className = `pill ${kind}`;
  $("state").textContent = text;
  $("where").textContent = `${data.on} · process ${data.process}`;
  $("notice").hidden = !data.stats.unreachable;
  $("notice").textContent = "The breaker is open: every read goes to the database, and what commits change is owed to the cache, until it answers again. It is asked again by itself.";
}

function key(text) {
  const [, table, pk] = /\{.*\/(.*):\d+\}:(.*)$/.exec(text) ?? [null, text, ""];
  return make("td", { title: text }, make("b", {}, table), " ", make("span", { class: "code" }, pk), make("small", { class: "code" }, text));
}

function keys(view) {
  const table = (place, rows, last, cell) => place.replaceChildren(
    make("thead", {}, make("tr", {}, ...["Key", "Size", "Expires in", last].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((each) => make("tr", {}, key(each.key), make("td", {}, size(each.bytes)),
      make("td", {}, each.ttl === null ? "never" : `${count(each.ttl)} s`), make("td", {}, cell(each))))));
  if (view.error || !view.count) {
    for (const id of ["largest", "hottest"]) $(id).replaceChildren(make("caption", { class: "none" }, view.error ?? "No key yet."));
    $("sampled").textContent = $("heat").textContent = "";
    return;
  }
  const used = {
    frequency: ["Uses", (each) => count(each.heat)],
    recency: ["Last used", (each) => `${count(-each.heat)} s ago`],
    order: ["Order", (each) => count(1 - each.heat)],
  }[view.heat];
  table($("largest"), view.largest, ...used);
  table($("hottest"), view.hottest, ...used);
  $("sampled").textContent = view.complete ? `of ${count(view.count)}` : `of a sample of ${count(view.count)}`;
  $("heat").textContent = view.heat === "frequency" ? "by how often they are used, as Redis counts" : "by when they were last used";
}

// What it may do

function act(data) {
  const place = $("act");
  place.hidden = !data.actions;
  if (!data.actions || place.firstChild) return;
  const which = make("select", { "aria-label": "Model" }, ...data.models.map((each) => make("option", { value: each.name, "data-parts": each.parts }, each.name)));
  const pk = make("input", { "aria-label": "Primary key", placeholder: "primary key; a comma between its parts", autocomplete: "off" });
  const told = make("output", { role: "status" });
  const send = async (texts) => {
    const headers = { "content-type": "application/json", "x-sqlmodel-cache": "invalidate" };
    const reply = await fetch("invalidate", { method: "POST", headers, body: JSON.stringify({ model: which.value, pk: texts }) });
    const said = await reply.json().catch(() => ({ error: `HTTP ${reply.status}` }));
    told.textContent = said.error ?? `Invalidated: ${said.invalidated}`;
    poll();
  };
  const row = make("button", { type: "submit" }, "Invalidate row");
  const all = make("button", { type: "button", onclick: () => {
    if (sure === all) { calm(); send(null); }
    else { sure = all; all.textContent = "All rows: press again"; all.classList.add("sure"); setTimeout(calm, 4000); }
  } }, "Invalidate table");
  const calm = () => { sure = null; all.textContent = "Invalidate table"; all.classList.remove("sure"); };
  const submit = (event) => { // a key of one column may have commas, and spaces at its ends
    event.preventDefault();
    send(which.selectedOptions[0].dataset.parts === "1" ? [pk.value] : pk.value.split(",").map((part) => part.trim()));
  };
  place.replaceChildren(make("h2", {}, "Invalidate"), make("form", { onsubmit: submit }, which, pk, row, all, told));
}

// The clockwork

function show() {
  const data = processes.get(shown);
  if (!data) return;
  state(data); cards(data); charts(data); models(data); invalidations(data); act(data);
  list($("in-flight"), data.in_flight.map((each) => `${each.seconds.toFixed(1)} s: ${each.keys.join(" ")}`), "None at this moment.");
  list($("owed"), data.owed, "Nothing.");
  const names = [...processes.keys()].sort();
  $("process").hidden = names.length < 2;
  if (names.length !== $("process").length)
    $("process").replaceChildren(...names.map((name) => make("option", { value: name, selected: name === shown }, name)));
}

async function ask(path) {
  const reply = await fetch(path, { cache: "no-store" });
  if (!reply.ok) throw new Error(`HTTP ${reply.status}`);
  return reply.json();
}

async function poll() {
  try {
    const known = processes.get(shown), last = known?.points.at(-1)?.number ?? 0;
    const data = await ask(`data?since=${last}&process=${encodeURIComponent(shown ?? "")}`);
    if (data.process === shown) data.points = [...known.points, ...data.points].slice(-720);
    processes.set(data.process, data);
    shown ??= data.process;
    show();
  } catch (error) {
    $("state").className = "pill bad";
    $("state").textContent = `the application does not answer (${error.message})`;
  }
}

async function pollKeys() {
  try { keys(await ask("keys")); } catch { /* the other poll says so */ }
}

for (const [name, seconds] of Object.entries(RANGES))
  $("range").append(make("button", { type: "button", "aria-pressed": String(seconds === range), onclick: (event) => {
    range = seconds;
    for (const button of $("range").children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
    show();
  } }, name));
$("process").addEventListener("change", (event) => { shown = event.target.value; show(); });
addEventListener("resize", show);
setInterval(() => document.hidden || poll(), 2000);
setInterval(() => document.hidden || pollKeys(), 10000);
poll();
pollKeys();
