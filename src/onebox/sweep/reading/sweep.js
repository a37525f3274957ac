"use strict";
// Reads the element `data`; what comes from there becomes text, never markup: plotly takes some HTML, so it is escaped.
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector) => [...document.querySelectorAll(selector)];
const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const PALETTE = ["#3b82c4", "#d9822b", "#3a9d73", "#b5519c", "#8a7a2e", "#7a6bd1", "#c95a4e", "#4aa5ad"];
const alpha = (hex, share) => hex.replace(/^#(.)(.)(.)$/, "#$1$1$2$2$3$3") + Math.round(255 * share).toString(16).padStart(2, "0");
const digits = (value) => (value === null ? "–" : value.toPrecision(4));

// Tables: a click on a heading sorts, best or smallest first, a second one turns it round; what is missing stays last.
function sort(heading) {
  const table = heading.closest("table"), key = heading.dataset.key;
  const values = data[table.dataset.table][key].map((value) => (key === "number" ? parseInt(value, 10) : value));
  const isAscending = heading.ariaSort ? heading.ariaSort !== "ascending" : data.lower.includes(key) || !data.metrics.includes(key);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.ariaSort = isAscending ? "ascending" : "descending";
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [values[one.dataset.row], values[other.dataset.row]];
    if (a === null || b === null) return (a === null) - (b === null);
    return (isAscending ? 1 : -1) * order(a, b) || one.dataset.row - other.dataset.row;
  });
  table.tBodies[0].append(...rows);
}

// A row is shown if it has all words that are typed; KEY=VALUE is a word too.
function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const table = all("table").find((candidate) => !candidate.parentElement.hidden), rows = [...table.tBodies[0].rows];
  const keys = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.key);
  let shown = 0;
  for (const row of rows) {
    row.words ??= [...row.cells].map((cell, place) => `${keys[place]}=${cell.textContent.trim()}`).join("\n").toLowerCase();
    row.hidden = !words.every((word) => row.words.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
}

// Charts.
function draw(element, traces, { xaxis = {}, yaxis = {}, ...layout }) {
  const axis = { gridcolor: color("line"), linecolor: color("line"), zeroline: false, automargin: true };
  Plotly.react(element, traces, {
    margin: { l: 44, r: 10, t: 8, b: 36 }, showlegend: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("muted"), size: 12, family: getComputedStyle(document.body).fontFamily }, hoverlabel: { align: "left", namelength: -1 },
    ...layout, xaxis: { ...axis, showgrid: false, ...xaxis }, yaxis: { ...axis, ...yaxis },
  }, { responsive: true, displaylogo: false, displayModeBar: false });
}

const floors = (tag, from, to) => (data.floors[tag] ?? []).map((value) => ({
  x: [from, to], y: [value, value], mode: "lines", line: { color: color("ink"), width: 1.25, dash: "dash" }, opacity: 0.7,
  hovertemplate: `floor of the test split: ${digits(value)}<extra></extra>`,
}));

const setting = {}; // number of a job -> its row in the table of settings
data.rows.number.forEach((numbers, row) => String(numbers).split(" ").forEach((number) => { setting[number] = row; }));
const place = {}; // number of a job -> its row in the table of jobs
data.jobs.number.forEach((number, row) => { place[number] = row; });

function strip(element) {
  const { values, order, is_log, means } = data.strips[element.dataset.strip], tag = document.getElementById("metric").value;
  const settings = {}; // value -> the settings that have it, each of which gets a column of dots
  for (const number of data.drawn) (settings[values[number]] ??= new Set()).add(setting[number]);
  const at = (number) => {
    if (!order.length) return values[number];
    const columns = [...settings[values[number]]].sort((a, b) => a - b), width = Math.min(0.14, 0.6 / columns.length);
    return order.indexOf(values[number]) + width * (columns.indexOf(setting[number]) - (columns.length - 1) / 2);
  };
  const numbers = data.drawn.filter((number) => data.jobs[tag][place[number]] !== null);
  const dots = {
    x: numbers.map(at), y: numbers.map((number) => data.jobs[tag][place[number]]), customdata: numbers, mode: "markers",
    marker: { color: color("val"), size: numbers.length > 300 ? 4 : 7, opacity: 0.55 },
    hovertext: numbers.map((number) => `#${number} ${text(data.names[number])}<br>${digits(data.jobs[tag][place[number]])}`), hoverinfo: "text",
  };
  const known = Object.entries(means[tag]);
  const mean = {
    x: known.map(([value]) => order.indexOf(value) + 0.12 + Math.min(0.07 * settings[value].size, 0.3)), y: known.map(([, [value]]) => value), mode: "markers",
    marker: { color: color("ink"), symbol: "diamond", size: 8 }, error_y: { array: known.map(([, [, half]]) => half ?? 0), color: color("ink"), thickness: 1.5, width: 5 },
    hovertext: known.map(([value, [middle, half, count]]) => `${text(value)}<br>${digits(middle)}${half === null ? "" : ` ± ${digits(half)}`}, ${count} job${count > 1 ? "s" : ""}`), hoverinfo: "text",
  };
  const [low, high] = order.length ? [-0.5, order.length - 0.5] : [Math.min(...dots.x), Math.max(...dots.x)];
  const ticks = order.length ? { tickvals: order.map((_, index) => index), ticktext: order.map(text), range: [low, high] } : { type: is_log ? "log" : "linear" };
  draw(element, [dots, mean, ...floors(tag, low, high)], { xaxis: ticks });
  element.removeAllListeners("plotly_click");
  element.on("plotly_click", ({ points: [{ customdata }] }) => { if (customdata in data.links) location.href = data.links[customdata]; });
}

const hidden = new Set(); // of curves
function curve(element) {
  const tag = element.dataset.curve, traces = [];
  data.curves.lines.forEach((line, index) => {
    if (hidden.has(String(index)) || !line.points[tag]) return;
    const [epochs, mean, low, high] = [0, 1, 2, 3].map((column) => line.points[tag].map((row) => row[column])), paint = PALETTE[index];
    traces.push({ x: [...epochs, ...epochs.toReversed()], y: [...high, ...low.toReversed()], fill: "toself", fillcolor: alpha(paint, 0.13), mode: "lines", line: { width: 0 }, hoverinfo: "skip" });
    traces.push({ x: epochs, y: mean, mode: epochs.length > 1 ? "lines" : "markers", line: { color: paint, width: 2 }, marker: { color: paint }, hovertemplate: `${text(line.name)}<br>epoch %{x}: %{y:.4g}<extra></extra>` });
  });
  const epochs = data.curves.lines.flatMap((line) => (line.points[tag] ?? []).map(([epoch]) => epoch));
  draw(element, [...traces, ...floors(tag, Math.min(...epochs), Math.max(...epochs))], { xaxis: { title: { text: "epoch", standoff: 4 }, rangemode: "normal" } });
}

function pareto(element) {
  const [first, second] = Object.keys(data.objective), rows = data.rows;
  const shown = rows.number.map((_, row) => row).filter((row) => rows[first][row] !== null && rows[second][row] !== null);
  const error = (tag, chosen) => ({ array: chosen.map((row) => rows[`${tag}_interval`][row] ?? 0), color: color("line"), thickness: 1.2, width: 0 });
  const trace = (chosen, name, more) => ({
    x: chosen.map((row) => rows[first][row]), y: chosen.map((row) => rows[second][row]), error_x: error(first, chosen), error_y: error(second, chosen), name,
    hovertext: chosen.map((row) => `${text(data.names[String(rows.number[row]).split(" ")[0]])}<br>${digits(rows[first][row])}, ${digits(rows[second][row])}`), hoverinfo: "text", ...more,
  });
  const front = shown.filter((row) => rows.best[row]).sort((a, b) => rows[first][a] - rows[first][b]);
  const range = (tag) => { const values = shown.map((row) => rows[tag][row]); return [Math.min(...values), Math.max(...values)]; };
  const upright = floors(first, ...range(second)).map((line) => ({ ...line, x: line.y, y: line.x }));
  draw(element, [
    trace(shown.filter((row) => !rows.best[row]), "beaten", { mode: "markers", marker: { color: color("muted"), size: 8, opacity: 0.6 } }),
    trace(front, "on the front", { mode: "lines+markers", marker: { color: color("val"), size: 10 }, line: { color: color("val"), width: 1.5, shape: "hv" } }),
    ...floors(second, ...range(first)), ...upright,
  ], { xaxis: { title: { text: text(first) }, showgrid: true }, yaxis: { title: { text: text(second) } }, margin: { l: 60, r: 10, t: 8, b: 48 } });
}

// Optuna's figure in the colours of the page.
function parallel(element) {
  const { lines, layout, names, ranges } = data.parallel;
  const traces = lines.map((line, index) => ({
    ...line, opacity: 1, line: { color: alpha(color("val"), 0.12 + 0.88 * ((index + 1) / lines.length) ** 2), width: 1.4 },
    customdata: line.customdata.map(([, value], axis) => [text(names[axis]), text(value)]),
  }));
  const floorMarks = Object.keys(data.objective).flatMap((tag, axis) => (data.floors[tag] ?? []).map((value) => ({ axis, value, y: (value - ranges[axis][0]) / (ranges[axis][1] - ranges[axis][0]) })));
  const inside = floorMarks.filter(({ y }) => isFinite(y)).map((mark) => ({ ...mark, y: Math.min(Math.max(mark.y, -0.06), 1.06) })), note = { showarrow: false, bgcolor: alpha(color("card"), 0.8), font: { size: 11, color: color("ink") } };
  draw(element, traces, {
    margin: { l: 60, r: 30, t: 16, b: 60 }, yaxis: layout.yaxis,
    xaxis: { ...layout.xaxis, fixedrange: true, ticktext: names.map((name) => text(name).replace(/([./])/g, "$1<br>")) },
    annotations: [
      ...layout.annotations.map((tick) => ({ ...tick, ...note, text: text(tick.text) })),
      ...inside.map(({ axis, y, value }) => ({ ...note, x: axis, y, text: `floor ${digits(value)}`, xanchor: "left", xshift: 10 })),
    ],
    shapes: [
      ...layout.shapes.map((shape) => ({ ...shape, line: { color: color("muted"), width: 1 } })),
      ...inside.map(({ axis, y }) => ({ type: "line", xsizemode: "pixel", xanchor: axis, x0: -9, x1: 9, y0: y, y1: y, line: { color: color("ink"), width: 2, dash: "dot" } })),
    ],
  });
}

function importances(element) {
  const bars = Object.entries(data.importances).map(([tag, shares], index) => {
    const keys = Object.keys(shares).reverse();
    return { type: "bar", orientation: "h", y: keys.map(text), x: keys.map((key) => shares[key]), name: text(tag), marker: { color: index ? color("train") : color("val") },
      text: keys.map((key) => shares[key].toFixed(2)), textposition: "outside", cliponaxis: false, hovertemplate: `%{y}: %{x:.3f}<extra>${text(tag)}</extra>` };
  });
  draw(element, bars, { showlegend: bars.length > 1, legend: { orientation: "h", y: 1.15 }, xaxis: { range: [0, 1.08] }, margin: { l: 80, r: 30, t: 8, b: 30 } });
}

// A chart is drawn when it comes into sight, and again when its colours or its metric change.
const charts = Object.entries({ strip, curve, pareto, parallel, importances }).flatMap(([kind, make]) => all(`[data-${kind}]`).map((element) => ({ element, make })));
const redraw = (chosen) => charts.filter(({ element, make }) => element.data && (!chosen || make === chosen)).forEach(({ element, make }) => make(element));
const sight = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
  sight.unobserve(target);
  charts.find(({ element }) => element === target).make(target);
}), { rootMargin: "400px" });
charts.forEach(({ element }) => sight.observe(element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
matchMedia("print").addEventListener("change", () => charts.forEach(({ element, make }) => make(element)));

all("thead button").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("seeds")?.addEventListener("change", ({ target }) => {
  for (const id of ["rows", "jobs"]) document.getElementById(`table-${id}`).hidden = (id === "jobs") !== target.checked;
  filter();
});
document.getElementById("metric")?.addEventListener("change", () => redraw(strip));
all("[data-line]").forEach((button) => {
  button.querySelector("i").style.background = PALETTE[button.dataset.line];
  button.addEventListener("click", () => {
    if (!hidden.delete(button.dataset.line)) hidden.add(button.dataset.line);
    button.ariaPressed = String(!hidden.has(button.dataset.line));
    redraw(curve);
  });
});
filter();
