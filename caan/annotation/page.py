"""The page on which an annotator votes by keyboard: HTML, style and script."""

GENDERS = {"m": "male", "f": "female"}
"""Keys and their words (paper Section 3.1)."""

AGE_RANGES = {"c": "child", "t": "teenager", "a": "adult"}
"""Keys and their words (paper Section 3.1)."""

PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>Votes</title>
<meta name=viewport content="width=device-width">
<link rel=icon href="data:,">
<style>
:root{color-scheme:light dark;--mark:#e5484d;--chosen:#2563eb}
[hidden]{display:none!important}
*{box-sizing:border-box}
body{font:16px/1.45 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem 1.5rem}
header{display:flex;gap:1.5rem;align-items:baseline;justify-content:space-between}
h1{font-size:1.1rem;margin:0}
progress{width:12rem;vertical-align:middle}
main{display:grid;grid-template-columns:minmax(0,3fr) minmax(15rem,1fr);gap:1.5rem;margin-top:1rem}
@media(max-width:50rem){main{grid-template-columns:1fr}}
.seen{position:relative;line-height:0;background:#000;width:fit-content;margin:auto}
.seen video{max-width:100%;max-height:70vh;min-height:20vh}
.mark{position:absolute;border:3px solid var(--mark);outline:1px solid #fff;pointer-events:none;
 border-radius:3px}
figure{margin:0}figcaption{margin-top:.4rem;font-size:.9rem}
#who video{max-height:8.5rem;min-height:0}
fieldset{border:0;padding:0;margin:0 0 1rem;display:flex;flex-wrap:wrap;gap:.4rem}
legend{font-weight:600;margin-bottom:.3rem}
button{font:inherit;padding:.3rem .7rem;border:1px solid #8888;border-radius:.4rem;cursor:pointer;
 background:none;color:inherit}
button[aria-pressed=true]{background:var(--chosen);border-color:var(--chosen);color:#fff}
kbd{font:600 .85em ui-monospace,monospace;border:1px solid #8888;border-radius:.25rem;
 padding:0 .35em;margin-right:.35em}
#save:disabled{opacity:.4;cursor:default}
#said{min-height:1.5em}.bad{color:var(--mark);font-weight:600}
small{opacity:.75}
</style>
<header><h1>Which emotion does the person show?</h1>
<div><span id=left></span> <progress id=done></progress></div></header>
<main id=work>
<div><div class=seen id=film><video id=video autoplay loop muted playsinline></video>
<div class=mark id=mark hidden></div></div><p id=said role=status></p></div>
<div>
<figure id=who hidden><div class=seen><video id=still muted playsinline></video>
<div class=mark id=face></div></div><figcaption>The marked person</figcaption></figure>
<fieldset id=emotion><legend>Emotion</legend></fieldset>
<fieldset id=gender><legend>Gender</legend></fieldset>
<fieldset id=age_range><legend>Age</legend></fieldset>
<p><button id=save><kbd>Enter</kbd>Save, next video</button></p>
<p><button id=back><kbd>Backspace</kbd>Previous</button>
<button id=skip><kbd>n</kbd>Later</button></p>
<p><small><kbd>Space</kbd>pause, <kbd>r</kbd>from the start, <kbd>,</kbd><kbd>.</kbd>picture by
picture. Answer what is seen, not what you know of the scene. Only the emotion is required.</small>
</div></main>
<script>
const $ = id => document.getElementById(id)
let info, videos, at = -1, vote = {}, sending = false
const FIELDS = ["emotion", "gender", "age_range"]

function show(index) {
  at = index
  const row = videos[at]
  $("work").hidden = !row
  const left = videos.filter(v => !v.vote).length
  $("left").textContent = `${info.annotator}: ` +
    (left ? `${left} of ${videos.length} videos left` : "all videos have your vote")
  $("done").max = videos.length
  $("done").value = videos.length - left
  if (!row) { $("video").removeAttribute("src"); $("still").removeAttribute("src"); return }
  vote = {emotion: "", gender: "", age_range: "", ...row.vote}
  tell(row.vote ? "You voted on this one; Enter saves what you change." : "")
  $("mark").hidden = true
  $("video").src = "/video/" + encodeURIComponent(row.video_id)
  $("who").hidden = !row.face_box
  if (row.face_box) {
    $("still").src = "/video/" + encodeURIComponent(row.video_id)
    $("still").onloadedmetadata = () => { $("still").currentTime = row.face_pts_seconds || 0 }
    $("still").onseeked = () => place($("face"), $("still"), row)
  } else $("still").removeAttribute("src")
  paint()
}
function place(mark, film, row) {
  // Boxes count stored pixels, which need not be square: videoWidth may be another.
  const [x0, y0, x1, y1] = row.face_box
  const w = (row.width || film.videoWidth) / 100, h = (row.height || film.videoHeight) / 100
  mark.style.cssText =
    `left:${x0 / w}%;top:${y0 / h}%;width:${(x1 - x0) / w}%;height:${(y1 - y0) / h}%`
}
function follow() {
  const row = videos && videos[at], film = $("video")
  if (row && row.face_box && film.videoWidth) {
    // The box is of one moment: it is drawn around that, and the person moves on.
    const near = Math.abs(film.currentTime - (row.face_pts_seconds || 0)) < 0.6
    if (near && $("mark").hidden) place($("mark"), film, row)
    $("mark").hidden = !near
  }
  requestAnimationFrame(follow)
}
function paint() {
  for (const field of FIELDS) for (const button of $(field).querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(vote[field] === button.value))
  $("save").disabled = !vote.emotion
}
function tell(text, bad) { $("said").textContent = text; $("said").className = bad ? "bad" : "" }
function choose(field, word) {
  vote[field] = vote[field] === word && field !== "emotion" ? "" : word
  paint()
}
function next(from) {
  for (let step = 1; step <= videos.length; step++) {
    const index = (from + step) % videos.length
    if (!videos[index].vote) return index
  }
  return -1
}
async function save() {
  if (sending || at < 0 || !vote.emotion) return
  sending = true
  const row = videos[at], body = {video_id: row.video_id, label: vote.emotion,
    gender: vote.gender, age_range: vote.age_range, revise: Boolean(row.vote)}
  try {
    const answer = await fetch("/vote", {method: "POST", body: JSON.stringify(body),
      headers: {"Content-Type": "application/json"}})
    if (answer.ok) { row.vote = {...vote}; show(next(at)) }
    else tell("The vote was not saved: " + await answer.text(), true)
  } catch (error) { tell("The vote was not saved: the program that serves this page ended.", true) }
  sending = false
}
function back() {
  const voted = videos.map((v, i) => v.vote ? i : -1).filter(i => i >= 0 && (at < 0 || i < at))
  if (voted.length) show(voted[voted.length - 1])
}
function step(film, pictures) { film.pause(); film.currentTime += pictures / 25 }
function key(event) {
  if (!videos || event.ctrlKey || event.metaKey || event.altKey) return
  const film = $("video"), name = event.key
  if (event.target.tagName === "BUTTON" && (name === "Enter" || name === " ")) return
  const pressed = Object.keys(info.keys).find(k => k === name.toLowerCase())
  if (name === "Backspace") back()
  else if (at < 0) return
  else if (pressed) choose(...info.keys[pressed])
  else if (name === "Enter") save()
  else if (name === "n") show(next(at) < 0 ? at : next(at))
  else if (name === " ") film.paused ? film.play() : film.pause()
  else if (name === "r") film.currentTime = 0
  else if (name === ",") step(film, -1)
  else if (name === ".") step(film, 1)
  else return
  event.preventDefault()
}
async function begin() {
  info = await (await fetch("/videos")).json()
  videos = info.videos
  for (const [k, [field, word]] of Object.entries(info.keys)) {
    const button = document.createElement("button"), cap = document.createElement("kbd")
    cap.textContent = k
    button.value = word
    button.append(cap, word)
    button.onclick = () => choose(field, word)
    $(field).append(button)
  }
  $("save").onclick = save
  $("back").onclick = back
  $("skip").onclick = () => show(next(at))
  $("video").onerror = () => at >= 0 && tell("This browser cannot play the file: cut it with " +
    "`jobs.annotate clip`, which writes what browsers play.", true)
  // After the mouse, Enter saves; after Tab, it presses the button that has the focus.
  addEventListener("click", event => event.detail && document.activeElement.blur())
  addEventListener("keydown", key)
  show(next(-1))
  follow()
}
begin()
</script></html>"""
