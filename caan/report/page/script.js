"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const PAGE_ROWS = 60, BINS = 20, NO_LABEL = D.labels.length - 1;
const $ = id => document.getElementById(id);
const colourOf = name => D.colours[name] || D.colours.other;
const personName = id => /^[0-9]+$/.test(id ?? "") ? `person ${id}` : id || "";
const percent = x => x == null ? "" : (100 * x).toFixed(1) + "%";
const number = x => x.toLocaleString("en");
const clock = s => { const t = Math.max(0, Math.round(s)), two = n => String(n).padStart(2, "0");
  return (t >= 3600 ? Math.floor(t / 3600) + ":" : "") + two(Math.floor(t / 60) % 60) + ":" +
    two(t % 60); };

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "style") node.style.cssText = value;
    else if (value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child != null && child !== ""));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const dot = name => el("span", { class: "dot", style: `background:${colourOf(name)}` });

// One object per video from the compact rows; a person's index in D.people is its `row`.
const videos = D.videos.map(([id, folder, name, split, truth, duration, preview, link], order) => ({
  order, id, name, folder: D.folders[folder], split: D.splits[split] || "",
  truth: D.labels[truth] || "", duration, people: [],
  preview: preview ? D.previews + id + ".mp4" : null,
  link: link ? D.links[folder] + encodeURIComponent(name) : null,
}));
D.people.forEach(([video, id, label, confidence, right, status, frames, faces, start, end, shares],
    row) => videos[video].people.push({ row, id, label, status, right, frames, faces, start, end,
  confidence: confidence == null ? null : confidence / 1000, shares, error: D.errors[row],
  context: D.contexts[row] }));

let details = null;
function detailsOf(video) {
  details ??= JSON.parse($("details").textContent);
  return video.people.map(person => details[person.row] || {});
}

// ---- which videos are shown

function choices() {
  const text = id => $(id).value.trim().toLowerCase();
  const choice = id => $(id).value === "" ? null : Number($(id).value);
  return { q: text("q"), who: text("person"), label: choice("emotion"), status: choice("status"),
    right: choice("outcome"), min: Number($("min").value), max: Number($("max").value) };
}
function textOf(video) {
  video.text ??= [video.folder + video.name, video.id, video.split, video.truth].join(" ")
    .toLowerCase();
  return video.text;
}
function isWanted(person, c, without) {
  if (c.who && !personName(person.id).toLowerCase().includes(c.who)) return false;
  if (c.right != null && person.right !== c.right) return false;
  const sure = person.confidence ?? NaN;
  if (without !== "confidence" && (c.min > 0 || c.max < 1) && !(sure >= c.min && sure <= c.max))
    return false;
  if (without !== "label" && c.label != null && person.label !== c.label) return false;
  return without === "status" || c.status == null || person.status === c.status;
}
function peopleOf(c, without) {
  const found = [];
  for (const video of videos) {
    if (c.q && !textOf(video).includes(c.q)) continue;
    for (const person of video.people) if (isWanted(person, c, without)) found.push(person);
  }
  return found;
}

const confidences = video => video.people.map(person => person.confidence ?? NaN)
  .filter(value => !isNaN(value));
const ORDERS = {
  order: video => video.order,
  high: video => -Math.max(-1, ...confidences(video)),
  low: video => Math.min(2, ...confidences(video)),
  long: video => -(video.duration || 0),
  people: video => -video.people.filter(person => person.label !== NO_LABEL).length,
};
function sorted(found, c) {
  const way = $("sort").value;
  if (way === "order") return found;
  if (way === "name") return found.sort((a, b) => a.name.localeCompare(b.name));
  const keys = new Map(found.map(video => [video, ORDERS[way]({ ...video,
    people: video.people.filter(person => isWanted(person, c)) })]));
  return found.sort((a, b) => keys.get(a) - keys.get(b) || a.order - b.order);
}

// ---- overview

function bars(target, select, kind, names, colour, c, titles) {
  const counts = new Array(names.length).fill(0);
  peopleOf(c, kind).forEach(person => { counts[person[kind]] += 1; });
  const highest = Math.max(1, ...counts), chosen = select.value;
  target.replaceChildren(...names.map((name, i) => {
    if (!counts[i] && String(i) !== chosen && D.optional.includes(name)) return null;
    const bar = el("button", { class: "bar", type: "button", "data-name": name,
      title: titles?.[name], "aria-pressed": String(i) === chosen }, el("span", {}, name),
    el("i", { style: `width:${100 * counts[i] / highest}%;background:${colour(name)}` }),
    el("em", {}, number(counts[i])));
    bar.addEventListener("click", () => {
      select.value = select.value === String(i) ? "" : String(i);
      update();
      target.querySelector(`[data-name="${CSS.escape(name)}"]`)?.focus();
    });
    return bar;
  }).filter(Boolean));
}

function confidenceBars(c) {
  const bins = Array.from({ length: BINS }, () => new Map());
  const people = peopleOf(c, "confidence").filter(person => person.confidence != null);
  people.forEach(person => {
    const bin = bins[Math.min(BINS - 1, Math.floor(BINS * person.confidence + 1e-9))];
    bin.set(person.label, (bin.get(person.label) || 0) + 1);
  });
  if (!people.length) return $("confidence").replaceChildren(el("p", { class: "empty" },
    "nobody has a label"));
  const sums = bins.map(bin => [...bin.values()].reduce((a, b) => a + b, 0));
  const highest = Math.max(1, ...sums);
  const columns = el("div", { class: "columns" }, ...bins.map((bin, i) => {
    const low = i / BINS, high = (i + 1) / BINS;
    const isChosen = c.min === low && c.max === high;
    const column = el("button", { type: "button", "aria-pressed": isChosen,
      "aria-label": `${sums[i]} people from ${low.toFixed(2)} to ${high.toFixed(2)}`,
      title: `${low.toFixed(2)} to ${high.toFixed(2)}: ${sums[i]} people` },
    ...[...bin].sort((a, b) => b[0] - a[0]).map(([label, count]) => el("i", {
      style: `height:${100 * count / highest}%;background:${colourOf(D.labels[label])}` })));
    column.addEventListener("click", () => {
      $("min").value = isChosen ? 0 : low;
      $("max").value = isChosen ? 1 : high;
      update();
      $("confidence").querySelectorAll("button")[i].focus();
    });
    return column;
  }));
  $("confidence").replaceChildren(columns, el("div", { class: "axis" },
    ...["0", "0.25", "0.5", "0.75", "1"].map(text => el("span", {}, text))));
}

function reliability() {
  if (!D.reliability) return;
  $("calibration").hidden = false;
  const size = 200, chart = svg("svg", { viewBox: `-26 -6 ${size + 34} ${size + 28}`, role: "img",
    "aria-label": "accuracy against confidence", style: "max-height:190px" });
  const at = value => value.toFixed(1), y = value => at(size * (1 - value));
  [0, 0.5, 1].forEach(value => chart.append(
    svg("line", { x1: 0, x2: size, y1: y(value), y2: y(value), stroke: "var(--line)" }),
    svg("text", { x: -6, y: Number(y(value)) + 4, "text-anchor": "end" }, String(value)),
    svg("text", { x: size * value, y: size + 16, "text-anchor": "middle" }, String(value))));
  D.reliability.forEach(([lower, count, confidence, accuracy]) => {
    if (!count) return;
    chart.append(svg("rect", { x: at(size * lower + 1), width: at(size / D.reliability.length - 2),
      y: y(accuracy), height: at(size * accuracy), fill: "var(--accent)", opacity: 0.45 },
    svg("title", {}, `${count} videos: confidence ${confidence.toFixed(2)}, right ${
      percent(accuracy)}`)), svg("circle", { cx: at(size * confidence), cy: y(accuracy), r: 3.5,
      fill: "var(--ink)" }));
  });
  chart.append(svg("line", { x1: 0, y1: size, x2: size, y2: 0, stroke: "var(--muted)",
    "stroke-dasharray": "4 4" }));
  $("reliability").append(chart, el("p", { class: "facts" }, "Share of right labels by " +
    "confidence. On the dashed line the two are equal. Expected calibration error " +
    D.calibration_error.toFixed(3) + "."));
}

function overTime(people) {
  const spans = people.flatMap(person => D.windows[person.row] ||
    (person.end > person.start && person.label < D.emotions.length ?
      [[person.start, person.end, person.label]] : []));
  const end = spans.reduce((most, span) => Math.max(most, span[1]), 0), bins = 60;
  if (!end) return $("overtime").replaceChildren(el("p", { class: "empty" },
    "none of these labels has a time"));
  const totals = Array.from({ length: bins }, () => new Float64Array(D.emotions.length));
  spans.forEach(([start, stop, label]) => {
    if (label >= D.emotions.length) return;
    for (let i = Math.floor(bins * start / end); i < bins && end * i / bins < stop; i += 1)
      totals[i][label] += Math.min(stop, end * (i + 1) / bins) - Math.max(start, end * i / bins);
  });
  const sums = totals.map(bin => bin.reduce((a, b) => a + b, 0)), most = Math.max(...sums);
  const chart = svg("svg", { viewBox: "0 0 1000 150", preserveAspectRatio: "none",
    style: "height:150px" });
  totals.forEach((bin, i) => {
    if (!sums[i]) return;
    const x = 1000 * i / bins, width = 1000 / bins - 1, length = end / bins;
    const when = `${clock(end * i / bins)} to ${clock(end * (i + 1) / bins)}`;
    let y = 0;
    bin.forEach((total, label) => {
      if (!total) return;
      const height = 118 * total / sums[i], name = D.emotions[label];
      chart.append(svg("rect", { x, width, y, height, fill: colourOf(name), "data-tip":
        `${when}: ${name} ${percent(total / sums[i])}` }));
      y += height;
    });
    const tall = 24 * sums[i] / most;
    chart.append(svg("rect", { x, width, y: 150 - tall, height: tall, fill: "var(--field)",
      "data-tip": `${when}: ${number(Math.round(10 * sums[i] / length) / 10)} people` }));
  });
  chart.addEventListener("pointermove", event => tip(event, event.target.dataset.tip));
  chart.addEventListener("pointerleave", () => tip());
  $("overtime").replaceChildren(chart, el("div", { class: "axis" }, el("span", {}, clock(0)),
    el("span", {}, "grey: number of people"), el("span", {}, clock(end))));
}

function tip(event, text) {
  $("tip").hidden = !text;
  if (!text) return;
  $("tip").textContent = text;
  const width = $("tip").offsetWidth;
  $("tip").style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
  $("tip").style.top = `${event.clientY + 16}px`;
}

// ---- one video

function seek(detail, seconds) {
  const player = detail.querySelector("video");
  if (player) player.currentTime = Math.max(0, seconds);
}

function ticks(last) {
  const step = [0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600].find(s => last / s <= 8) ||
    Math.ceil(last / 8 / 3600) * 3600;
  const marks = [];
  for (let t = 0; t < last - step / 3; t += step) marks.push(t);
  const text = t => last < 10 ? `${t.toFixed(1)} s` : clock(t);
  return el("div", { class: "lane" }, el("div", { class: "ticks" },
    ...marks.map(t => el("span", { style: `left:${100 * t / last}%` }, text(t))),
    el("span", { class: "last", style: "left:100%" }, text(last))));
}

function lanes(video, detail) {
  const found = detailsOf(video), shown = video.people.map((person, i) => [person, found[i]])
    .filter(([person, data]) => data.times || D.windows[person.row]);
  if (!shown.length) return null;
  const last = Math.max(video.duration || 0, 0.1, ...shown.map(([person, data]) =>
    Math.max(person.end || 0, (data.times?.at(-1) || 0) / 100 + (data.gap || 0))));
  const node = el("div", { class: "lanes" }, el("h3", {}, "Emotion scores over time ",
    el("span", { class: "muted" }, "height: how much the frame counted; colour: what it shows" +
      (shown.some(([person]) => D.windows[person.row]) ? "; band above: label of the window" : ""))));
  shown.forEach(([person, data]) => node.append(lane(video, person, data, last, detail)));
  node.append(ticks(last));
  const player = detail.querySelector("video");
  if (player) {
    const move = () => node.querySelectorAll(".now").forEach(mark => {
      mark.hidden = false;
      mark.style.left = `${Math.min(100, 100 * player.currentTime / last)}%`;
    });
    ["timeupdate", "seeking", "seeked"].forEach(name => player.addEventListener(name, move));
  }
  return node;
}

function lane(video, person, data, last, detail) {
  const times = (data.times || []).map(time => time / 100), scores = data.scores || [];
  const spans = D.windows[person.row] || [], top = spans.length ? 16 : 2;
  const chart = svg("svg", { viewBox: "0 0 1000 66", preserveAspectRatio: "none" });
  const width = Math.max(1, 880 * (data.gap || 1) / last), paths = new Map();
  spans.forEach(([start, stop, label, sure]) => chart.append(svg("rect", { class: "window",
    x: 1000 * start / last, y: 0, height: 12, width: Math.max(1, 1000 * (stop - start) / last - 1),
    fill: colourOf(D.labels[label]), opacity: 0.35 + 0.65 * sure / 1000 })));
  times.forEach((time, i) => {
    const height = Math.max(0.6, (64 - top) * scores[i] / 1000), x = 1000 * time / last;
    const name = D.emotions[parseInt(data.labels[i], 36)] || "";
    paths.set(name, (paths.get(name) || "") + `M${x.toFixed(1)} 66v${-height.toFixed(1)}h${
      width.toFixed(2)}v${height.toFixed(1)}z`);
  });
  paths.forEach((d, name) => chart.append(svg("path", { class: "scores", d, fill: colourOf(name) })));
  const player = detail.querySelector("video");
  const line = el("div", { class: player ? "timeline seekable" : "timeline", tabindex: "0",
    role: player ? "slider" : "img", "aria-valuemin": player && "0",
    "aria-valuemax": player && last.toFixed(1), "aria-valuenow": player && "0",
    "aria-label": `${personName(person.id) || "timeline"}: ${D.labels[person.label]}` }, chart,
  el("div", { class: "now", hidden: "" }));
  const timeAt = event => { const box = line.getBoundingClientRect();
    return last * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)); };
  line.addEventListener("click", event => seek(detail, timeAt(event)));
  line.addEventListener("pointermove", event => tip(event, describe(timeAt(event))));
  line.addEventListener("pointerleave", () => tip());
  line.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!player || (!step && event.key !== "Home")) return;
    event.preventDefault();
    seek(detail, step ? player.currentTime + step : 0);
    line.setAttribute("aria-valuenow", player.currentTime.toFixed(1));
  });
  function describe(time) {
    let i = times.findIndex(other => other > time);
    i = (i < 0 ? times.length : i) - 1;
    const parts = [clock(time)];
    if (i >= 0 && time - times[i] <= 2 * (data.gap || 1)) parts.push(`${
      D.emotions[parseInt(data.labels[i], 36)] || "frame"}, emotion score ${
      (scores[i] * data.highest / 1000).toFixed(3)}`);
    const span = spans.find(([start, stop]) => start <= time && time < stop);
    if (span) parts.push(`window: ${D.labels[span[2]]} ${(span[3] / 1000).toFixed(2)}`);
    return parts.join(" · ");
  }
  return el("div", { class: "lane" }, el("span", {}, dot(D.labels[person.label]), ` ${
    [personName(person.id), D.labels[person.label]].filter(Boolean).join(" · ")}`), line);
}

function strips(video, detail) {
  const found = detailsOf(video);
  return video.people.filter((_, i) => found[i].strip).map(person => {
    const frames = found[video.people.indexOf(person)].strip;
    const highest = Math.max(1e-9, ...frames.map(frame => frame.score));
    return el("div", { class: "strips" }, el("h3", {}, "Frames ", el("span", { class: "muted" },
      `of ${personName(person.id) || "the video"}, each with its emotion score and its own label`)),
    el("div", { class: "strip" }, ...frames.map(frame => {
      const picture = el("div", { class: "picture" });
      if (frame.picture) picture.append(el("img", { src: frame.picture, loading: "lazy",
        alt: `frame at ${frame.time.toFixed(1)} s` }));
      if (frame.picture && frame.box) {
        const [x0, y0, x1, y1] = frame.box.map(value => 100 * value);
        picture.append(el("div", { style: `left:${x0}%;top:${y0}%;width:${x1 - x0}%;` +
          `height:${y1 - y0}%;border-color:${colourOf(frame.label)}` }));
      }
      const button = el("button", { class: "frame", type: "button" }, picture,
        el("div", { class: "track" }, el("i", { style: `width:${100 * frame.score / highest}%;` +
          `background:${colourOf(frame.label)}` })),
        el("div", { class: "words" }, el("b", {}, frame.score.toFixed(3)),
          el("span", { class: "muted" }, `${frame.time.toFixed(1)} s`),
          el("span", {}, frame.label || "no label")));
      button.addEventListener("click", () => seek(detail, frame.time));
      return button;
    })));
  });
}

function shares(video) {
  const people = video.people.filter(person => person.shares);
  return el("div", { class: "shares" }, ...people.slice(0, 12).map(person => el("div", {},
    el("h3", {}, personName(person.id) || "the video", " ", el("span", { class: "muted" },
      `${person.faces ?? 0} faces in ${person.frames ?? 0} frames`)),
    ...D.emotions.map((name, i) => el("div", { class: "share" }, el("span", {}, name),
      el("div", {}, el("i", { style: `width:${person.shares[i] / 10}%;background:${
        colourOf(name)}` })), el("em", {}, percent(person.shares[i] / 1000)))),
    person.context ? el("p", { class: "muted context" }, person.context) : null)),
  people.length > 12 ? el("p", { class: "muted" }, `and ${people.length - 12} more people`) : null);
}

function fill(detail, video) {
  const first = video.people[0];
  detail.append(el("p", { class: "facts" }, [video.folder + video.name,
    video.duration != null && `${clock(video.duration)} long`, video.split &&
    `split ${video.split}`, first && !first.shares && `${first.frames ?? 0} sampled frames`,
    ...video.people.map(person => person.error)].filter(Boolean).join(" · ")));
  const source = video.preview || (/\.(mp4|m4v|webm|mov)$/i.test(video.name) ? video.link : null);
  const watch = el("div", { class: "watch" });
  if (source) {
    const player = el("video", { controls: "", preload: "metadata", playsinline: "", src: source,
      "aria-label": `video ${video.name}` });
    const link = el("a", { href: source }, video.preview ? "Preview with boxes" : "The video");
    player.addEventListener("error", () => { player.replaceWith(el("p", { class: "muted" },
      "This browser cannot play it.")); });
    watch.append(el("figure", {}, player, el("figcaption", {}, link, video.preview && video.link ?
      " · " : null, video.preview && video.link ? el("a", { href: video.link }, "The video") : null)));
  } else if (video.link) detail.append(el("p", { class: "facts" },
    el("a", { href: video.link }, "Open the video")));
  if (video.people.some(person => person.shares)) watch.append(shares(video));
  if (watch.children.length) detail.append(watch);
  const timelines = lanes(video, detail);
  if (timelines) detail.append(timelines);
  else if (video.people.some(person => person.shares)) detail.append(el("p", { class: "facts" },
    "This page has the timelines of some videos only. frame_scores/ has all."));
  detail.append(...strips(video, detail));
}

function rowNode(video, c) {
  const people = video.people.length, scored = video.people.find(person => person.right != null);
  const hasLabel = video.people.some(person => person.label !== NO_LABEL);
  const facts = [video.duration != null && clock(video.duration), people > 1 && `${people} people`,
    video.split, video.folder.split("/").slice(-2, -1)[0]].filter(Boolean).join(" · ");
  const chips = video.people.slice(0, 8).map(person => el("span", {
    class: isWanted(person, c) ? "chip" : "chip other", "data-person": person.id ?? "" },
  dot(D.labels[person.label]), [people > 1 && personName(person.id), D.labels[person.label],
    person.confidence?.toFixed(2)].filter(Boolean).join(" ")));
  if (people > 8) chips.push(el("span", { class: "muted" }, `+${people - 8}`));
  const status = D.statuses[video.people[0]?.status] || "";
  const outcome = scored ? el("span", { class: scored.right ? "outcome right" : "outcome wrong" },
    scored.right ? "right" : `is ${video.truth}`) : el("span", { class: `outcome ${
    ["ok", "no_face", "partial"].includes(status) ? "muted" : "failed"}`,
    title: D.status_words[status] }, status === "ok" && hasLabel ? "" : status);
  const node = el("details", { class: "row", "data-video": video.id }, el("summary", {},
    el("span", { class: "name" }, el("b", { title: video.name }, video.name),
      el("span", { class: "muted" }, facts)), el("span", { class: "chips" }, ...chips), outcome));
  node.addEventListener("toggle", () => {
    if (!node.open || node.querySelector(".detail")) return;
    const detail = el("div", { class: "detail" });
    node.append(detail);
    fill(detail, video);
  });
  return node;
}

// ---- the page

let found = [], shown = 0, now = choices();
function showMore() {
  $("rows").append(...found.slice(shown, shown + PAGE_ROWS).map(video => rowNode(video, now)));
  shown = Math.min(found.length, shown + PAGE_ROWS);
  $("more").hidden = shown >= found.length;
}
function update() {
  const c = now = choices();
  $("minvalue").value = c.min.toFixed(2);
  $("maxvalue").value = c.max.toFixed(2);
  found = sorted(videos.filter(video => (!c.q || textOf(video).includes(c.q)) &&
    video.people.some(person => isWanted(person, c))), c);
  bars($("labels"), $("emotion"), "label", D.labels, colourOf, c);
  bars($("statuses"), $("status"), "status", D.statuses,
    name => D.status_colours[name] || "var(--bad)", c, D.status_words);
  confidenceBars(c);
  overTime(peopleOf(c));
  const isAll = found.length === videos.length;
  $("count").textContent = isAll ? `${number(videos.length)} videos` :
    `${number(found.length)} of ${number(videos.length)} videos`;
  const isFiltered = c.q || c.who || [c.label, c.status, c.right].some(x => x != null) ||
    c.min > 0 || c.max < 1;
  $("clear").style.visibility = isFiltered ? "visible" : "hidden";
  $("none").hidden = found.length > 0;
  $("none").textContent = videos.length ? "No video matches these filters." :
    "The manifest has no videos.";
  $("rows").replaceChildren();
  shown = 0;
  showMore();
}

$("subtitle").textContent = D.subtitle;
if (D.warning) { $("warning").textContent = D.warning; $("warning").hidden = false; }
$("tiles").append(...D.tiles.map(([value, name]) =>
  el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name))));
for (const [id, names] of [["emotion", D.labels], ["status", D.statuses]])
  $(id).append(el("option", { value: "" }, "any"),
    ...names.map((name, i) => el("option", { value: i }, name)));
$("outcomelabel").hidden = !D.people.some(person => person[4] != null);
reliability();
let waiting = 0;
$("filters").addEventListener("input", event => {
  if (event.target.id === "min" && Number($("min").value) > Number($("max").value))
    $("max").value = $("min").value;
  if (event.target.id === "max" && Number($("max").value) < Number($("min").value))
    $("min").value = $("max").value;
  cancelAnimationFrame(waiting);  // at most one update per drawn frame
  waiting = requestAnimationFrame(update);
});
$("filters").addEventListener("submit", event => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(update));
$("more").addEventListener("click", showMore);
new IntersectionObserver(entries => { if (entries[0].isIntersecting && !$("more").hidden) showMore();
}, { rootMargin: "600px" }).observe($("more"));
document.addEventListener("keydown", event => {
  if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
  event.preventDefault();
  $("q").focus();
});
update();
document.documentElement.dataset.ready = Math.round(performance.now());
