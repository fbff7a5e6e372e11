"""The HTML, style and script of the report page; `caan.html_report` puts the data in."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 media-src 'self' file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Emotions in video</title>
<style>@STYLE@</style>
</head>
<body>
<header><h1 id="title"></h1><p id="subtitle"></p><p id="warning" hidden></p></header>
<section id="tiles"></section>
<section id="overview">
  <div class="panel"><h2>Labels</h2><div id="labels"></div></div>
  <div class="panel"><h2>Statuses</h2><div id="statuses"></div></div>
  <div class="panel"><h2>Confidence</h2><div id="confidence"></div></div>
  <div class="panel wide"><h2>Labels over time</h2><div id="overtime"></div></div>
</section>
<form id="filters">
  <label>Search <input id="q" type="search" placeholder="file name, id or split"></label>
  <label>Person <input id="person" type="search" placeholder="any"></label>
  <label>Confidence at least <input id="min" type="range" min="0" max="1" step="0.01" value="0">
    <output id="minvalue">0</output></label>
  <label>Sort <select id="sort"><option value="order">as in the manifest</option>
    <option value="high">surest first</option><option value="low">least sure first</option>
    <option value="name">by name</option></select></label>
  <label id="outcomelabel">Outcome <select id="outcome"><option value="">any</option>
    <option value="right">right</option><option value="wrong">wrong</option></select></label>
  <button type="reset">Clear</button>
  <span id="count" role="status"></span>
</form>
<main id="rows"></main>
<button id="more" hidden>Show more</button>
<script type="application/json" id="data">@DATA@</script>
<script>@SCRIPT@</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #23272e; --muted: #6b717a; --line: #e3e6ea; --soft: #f4f5f7; --blue: #3b74b4; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 28px 60px; max-width: 1180px; color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; background: #fff; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 14px; margin: 0 0 8px; color: var(--muted); }
#subtitle { margin: 2px 0 0; color: var(--muted); }
#warning { background: #fff4d6; border: 1px solid #ecd48a; padding: 8px 12px; border-radius: 6px; }
#tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; }
.tile b { display: block; font-size: 22px; } .tile span { color: var(--muted); font-size: 13px; }
#overview { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
.panel { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; min-width: 0; }
.panel.wide { grid-column: 1 / -1; }
@media (max-width: 800px) { #overview { grid-template-columns: 1fr; } }
.bar { display: grid; grid-template-columns: 96px 1fr 44px; gap: 8px; align-items: center;
  width: 100%; border: 0; background: none; padding: 2px 4px; font: inherit; text-align: left;
  cursor: pointer; border-radius: 4px; }
.bar:hover { background: var(--soft); } .bar[aria-pressed=true] { background: #dfe9f5; }
.bar i { display: block; height: 14px; border-radius: 3px; min-width: 1px; }
.bar em { font-style: normal; text-align: right; color: var(--muted); }
svg { display: block; width: 100%; } svg text { font-size: 11px; fill: var(--muted); }
#filters { position: sticky; top: 0; background: #fffffff2; display: flex; flex-wrap: wrap;
  gap: 8px 16px; align-items: center; padding: 12px 0; margin-top: 16px; z-index: 2;
  border-bottom: 1px solid var(--line); font-size: 13px; color: var(--muted); }
input[type=search], select { font: inherit; color: var(--ink); padding: 4px 6px;
  border: 1px solid #c9ced5; border-radius: 5px; background: #fff; }
#person { width: 90px; } #min { vertical-align: middle; width: 110px; }
#count { margin-left: auto; color: var(--ink); }
button { font: inherit; } #filters button, #more { border: 1px solid #c9ced5; background: #fff;
  border-radius: 5px; padding: 4px 12px; cursor: pointer; } #more { margin: 16px 0; }
.row { border-bottom: 1px solid var(--line); }
.row > summary { display: grid; gap: 12px; padding: 9px 4px; cursor: pointer; align-items: center;
  grid-template-columns: minmax(0, 1fr) 80px 120px 150px 130px; list-style: none; }
.row > summary:hover { background: var(--soft); }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.muted { color: var(--muted); } .dot { display: inline-block; width: 10px; height: 10px;
  border-radius: 50%; margin-right: 6px; }
.meter { display: inline-block; width: 90px; height: 8px; border-radius: 4px; background: #e8eaed;
  margin-right: 8px; vertical-align: middle; } .meter i { display: block; height: 100%;
  border-radius: 4px; }
.wrong { color: #b03a30; } .right { color: #2c7a4b; }
.detail { padding: 4px 4px 20px; } .detail p { margin: 4px 0; color: var(--muted); font-size: 13px;
  overflow-wrap: anywhere; }
.strip { display: flex; gap: 8px; overflow-x: auto; padding: 8px 0; }
.frame { margin: 0; flex: 0 0 150px; font-size: 12px; text-align: center; cursor: pointer; }
.picture { position: relative; background: var(--soft); min-height: 60px; }
.picture img { display: block; width: 100%; } .picture div { position: absolute;
  border: 2px solid; }
.track { background: #e8eaed; height: 8px; margin: 5px 0 3px; }
.track i { display: block; height: 100%; }
.timeline { cursor: crosshair; margin: 8px 0; } video { max-width: 480px; width: 100%;
  background: #000; display: block; margin: 8px 0; }
.probabilities { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12px; }
"""

SCRIPT = """
"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const PAGE_ROWS = 200, NONE = "no label";
const $ = id => document.getElementById(id);
const colour = name => D.colours[name] || "#5a5f66";
const personName = id => /^[0-9]+$/.test(id || "") ? "person " + id : id || "";
const percent = x => x == null ? "" : (100 * x).toFixed(1) + "%";
const clock = s => { const t = Math.max(0, Math.floor(s)), two = n => String(n).padStart(2, "0");
  return (t >= 3600 ? Math.floor(t / 3600) + ":" : "") + two(Math.floor(t / 60) % 60) + ":" +
    two(t % 60); };

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "style") node.style.cssText = value; else node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}
function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text != null) node.textContent = text;
  return node;
}

const rows = [];
D.videos.forEach(video => video.people.forEach(person => rows.push({
  video, person, order: rows.length, label: person.label || NONE, status: person.status,
  text: [video.name, video.id, video.split, video.truth].join(" ").toLowerCase(),
})));
const chosen = { label: new Set(), status: new Set() };
let shown = PAGE_ROWS;

function matches(row, without) {
  const q = $("q").value.trim().toLowerCase(), who = $("person").value.trim().toLowerCase();
  const outcome = $("outcome").value, min = Number($("min").value);
  if (q && !row.text.includes(q)) return false;
  if (who && !personName(row.person.id).toLowerCase().includes(who)) return false;
  if (min > 0 && !(row.person.confidence >= min)) return false;
  if (outcome && row.person.right !== (outcome === "right")) return false;
  for (const kind of ["label", "status"])
    if (kind !== without && chosen[kind].size && !chosen[kind].has(row[kind])) return false;
  return true;
}

function countBars(target, kind, names, colourOf) {
  const counts = Object.fromEntries(names.map(name => [name, 0]));
  rows.forEach(row => { if (matches(row, kind)) counts[row[kind]] += 1; });
  const highest = Math.max(1, ...Object.values(counts));
  target.replaceChildren(...names.map(name => {
    const fill = el("i", { style: `width:${100 * counts[name] / highest}%;` +
      `background:${colourOf(name)}` });
    const bar = el("button", { class: "bar", type: "button", "data-name": name,
      "aria-pressed": chosen[kind].has(name) }, el("span", {}, name), fill,
      el("em", {}, String(counts[name])));
    bar.addEventListener("click", () => {
      if (!chosen[kind].delete(name)) chosen[kind].add(name);
      update();
    });
    return bar;
  }));
}

function confidenceBars(found) {
  const bins = new Array(20).fill(0);
  found.forEach(row => { const c = row.person.confidence;
    if (c != null) bins[Math.min(19, Math.floor(20 * c))] += 1; });
  const highest = Math.max(1, ...bins), chart = svg("svg", { viewBox: "0 0 300 130" });
  bins.forEach((count, i) => chart.append(svg("rect", { x: 15 * i + 1, width: 13,
    y: 110 - 105 * count / highest, height: 105 * count / highest, fill: "#3b74b4" })));
  [[0, "0"], [150, "0.5"], [290, "1"]].forEach(([x, text]) =>
    chart.append(svg("text", { x, y: 125 }, text)));
  $("confidence").replaceChildren(chart);
}

function overTime(found) {
  const spans = found.flatMap(row => row.person.windows.length ? row.person.windows :
    row.person.label && row.person.end != null ?
      [[row.person.start || 0, row.person.end, row.person.label]] : []);
  const end = Math.max(0, ...spans.map(span => span[1])), bins = 48;
  const chart = svg("svg", { viewBox: "0 0 1000 130", preserveAspectRatio: "none" });
  if (end > 0) for (let i = 0; i < bins; i += 1) {
    const from = end * i / bins, to = end * (i + 1) / bins, totals = {};
    let sum = 0, y = 0;
    spans.forEach(([start, stop, label]) => {
      const overlap = Math.min(stop, to) - Math.max(start, from);
      if (overlap > 0) { totals[label] = (totals[label] || 0) + overlap; sum += overlap; }
    });
    D.emotions.forEach(name => { if (!totals[name]) return;
      const height = 110 * totals[name] / sum;
      const part = svg("rect", { x: 1000 * i / bins, width: 1000 / bins - 1, y, height,
        fill: colour(name) });
      part.append(svg("title", {}, `${name} ${percent(totals[name] / sum)}, ` +
        `${clock(from)} to ${clock(to)}`));
      chart.append(part);
      y += height;
    });
  }
  const scale = el("div", { class: "muted", style: "display:flex;justify-content:space-between" },
    el("span", {}, "00:00"), el("span", {}, "share of people with each label, by time since " +
      "the start of their video"), el("span", {}, clock(end)));
  $("overtime").replaceChildren(chart, scale);
}

function seek(detail, seconds) {
  const video = detail.querySelector("video");
  if (video) video.currentTime = seconds;
}

function timeline(row, detail) {
  const { windows, times, scores, labels, end } = row.person;
  const gap = times.length > 1 ? (times.at(-1) - times[0]) / (times.length - 1) : 1;
  const last = Math.max(row.video.duration || 0, end || 0,
    times.length ? times.at(-1) + gap : 0) || 1;
  const chart = svg("svg", { viewBox: "0 0 1000 96", class: "timeline",
    preserveAspectRatio: "none" });
  const highest = Math.max(1e-9, ...scores), width = Math.max(1.5, 900 * gap / last);
  windows.forEach(([start, stop, label, confidence]) => {
    const part = svg("rect", { x: 1000 * start / last, y: 76, height: 14, fill: colour(label),
      width: Math.max(1, 1000 * (stop - start) / last - 1), opacity: 0.35 + 0.65 * confidence });
    part.append(svg("title", {}, `${label} ${confidence.toFixed(2)}, ${clock(start)} to ` +
      clock(stop)));
    chart.append(part);
  });
  times.forEach((time, i) => {
    const height = 68 * scores[i] / highest, name = D.emotions[labels[i]] || "";
    const part = svg("rect", { x: 1000 * time / last, y: 70 - height,
      width, height, fill: colour(name) });
    part.append(svg("title", {}, `${clock(time)} ${name}, emotion score ${scores[i].toFixed(3)}`));
    chart.append(part);
  });
  chart.append(svg("rect", { x: 0, y: 71, width: 1000, height: 1, fill: "#c9ced5" }));
  chart.addEventListener("click", event => {
    const box = chart.getBoundingClientRect();
    seek(detail, last * (event.clientX - box.left) / box.width);
  });
  return chart;
}

function strip(row, detail) {
  const highest = Math.max(1e-9, ...row.person.strip.map(frame => frame.score));
  return el("div", { class: "strip" }, ...row.person.strip.map(frame => {
    const picture = el("div", { class: "picture" });
    if (frame.picture) picture.append(el("img", { src: frame.picture, alt: "" }));
    if (frame.picture && frame.box) {
      const [x0, y0, x1, y1] = frame.box.map(value => 100 * value);
      picture.append(el("div", { style: `left:${x0}%;top:${y0}%;width:${x1 - x0}%;` +
        `height:${y1 - y0}%;border-color:${colour(frame.label)}` }));
    }
    const figure = el("figure", { class: "frame" }, picture,
      el("div", { class: "track" }, el("i", { style: `width:${100 * frame.score / highest}%;` +
        `background:${colour(frame.label)}` })),
      el("span", {}, `${frame.score.toFixed(3)} ${frame.label}`),
      el("div", { class: "muted" }, `${frame.time.toFixed(1)} s`));
    figure.addEventListener("click", () => seek(detail, frame.time));
    return figure;
  }));
}

function fill(detail, row) {
  const { video, person } = row;
  const facts = [video.uri, video.split && `split ${video.split}`,
    video.duration != null && `${clock(video.duration)} long`, `${person.frames ?? 0} frames`,
    `${person.faces ?? 0} faces`, person.error].filter(Boolean).join(" · ");
  detail.append(el("p", {}, facts));
  if (person.probabilities.length) detail.append(el("div", { class: "probabilities" },
    ...D.emotions.map((name, i) => el("span", {}, el("span", { class: "dot",
      style: `background:${colour(name)}` }), `${name} ${percent(person.probabilities[i])}`))));
  if (video.preview) detail.append(el("video", { controls: "", preload: "metadata",
    src: video.preview }));
  if (video.preview || video.link) detail.append(el("p", {}, el("a", {
    href: video.preview || video.link }, video.preview ? "preview" : "open the video")));
  if (person.times.length || person.windows.length) detail.append(timeline(row, detail));
  if (person.context) detail.append(el("p", { class: "muted context" }, person.context));
  if (person.strip.length) detail.append(strip(row, detail));
}

function rowNode(row) {
  const { video, person } = row;
  const label = el("span", {}, el("span", { class: "dot", style: `background:${
    person.label ? colour(person.label) : "#c9ced5"}` }), row.label);
  const sure = person.confidence == null ? el("span", {}) : el("span", {},
    el("span", { class: "meter" }, el("i", { style: `width:${100 * person.confidence}%;` +
      `background:${colour(person.label)}` })), person.confidence.toFixed(2));
  const outcome = person.right == null ? el("span", { class: "muted" }, person.status) :
    el("span", { class: person.right ? "right" : "wrong" },
      person.right ? "right" : `true: ${video.truth}`);
  const node = el("details", { class: "row", "data-video": video.id,
    "data-person": person.id || "" }, el("summary", {},
    el("span", { class: "name", title: video.uri }, video.name),
    el("span", { class: "muted" }, personName(person.id)), label, sure, outcome));
  node.addEventListener("toggle", () => {
    if (!node.open || node.querySelector(".detail")) return;
    const detail = el("div", { class: "detail" });
    node.append(detail);
    fill(detail, row);
  });
  return node;
}

const ORDERS = {
  order: (a, b) => a.order - b.order,
  high: (a, b) => (b.person.confidence ?? -1) - (a.person.confidence ?? -1),
  low: (a, b) => (a.person.confidence ?? 2) - (b.person.confidence ?? 2),
  name: (a, b) => a.video.name.localeCompare(b.video.name),
};

function update() {
  $("minvalue").value = Number($("min").value).toFixed(2);
  const found = rows.filter(row => matches(row)).sort(ORDERS[$("sort").value]);
  countBars($("labels"), "label", [...D.emotions, ...D.other_labels], colour);
  countBars($("statuses"), "status", D.statuses, name => name === "ok" ? "#2c7a4b" : "#9aa1ab");
  confidenceBars(found);
  overTime(found);
  $("count").textContent = `${found.length} of ${rows.length} rows`;
  $("rows").replaceChildren(...found.slice(0, shown).map(rowNode));
  $("more").hidden = found.length <= shown;
}

$("title").textContent = D.title;
$("subtitle").textContent = D.subtitle;
if (D.warning) { $("warning").textContent = D.warning; $("warning").hidden = false; }
$("tiles").append(...D.tiles.map(([value, name]) =>
  el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name))));
$("outcomelabel").hidden = !rows.some(row => row.person.right != null);
$("filters").addEventListener("input", () => { shown = PAGE_ROWS; update(); });
$("filters").addEventListener("submit", event => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(() => {
  chosen.label.clear(); chosen.status.clear(); update(); }));
$("more").addEventListener("click", () => { shown += PAGE_ROWS; update(); });
update();
"""
