// The page: a sound in, what the server says of it out. Nothing is stored, here or there.

import { decode, draw, isReadByServer, Microphone, mono, toWav } from "./audio.js";
import { download, element, Labels } from "./labels.js";

const $ = (id) => document.getElementById(id);
const player = $("player"), canvas = $("spectrogram");
let info = { classes: null, recordings: null, sample_rate: 16000 };
let sound = null; // { name, blob, url, seconds }
let stretch = null; // [start, end] in seconds
let until = null; // second at which a label's playback ends
let turn = 0; // answers for an earlier sound are dropped
const labels = new Labels($("timeline"), $("labels").tBodies[0], play);

const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const say = (text) => { $("status").textContent = text; };
const complain = (error) => { $("problem").textContent = error ? String(error.message || error) : ""; };

async function ask(path, query) {
  const parameters = new URLSearchParams({ ...query, name: sound.name });
  const answer = await fetch(`${path}?${parameters}`, {
    method: "POST", body: sound.blob, headers: { "Content-Type": "application/octet-stream" } });
  const values = await answer.json();
  if (!answer.ok) throw new Error(values.error);
  return values;
}

async function begin() {
  info = await (await fetch("/info")).json();
  const classes = info.classes ? counted(info.classes.length, "class").replace("sss", "sses") : "no classifier";
  const index = info.recordings === null ? "no index" : `index of ${counted(info.recordings, "recording")}`;
  $("about").textContent = `${info.model}, ${classes}, ${index}, up to ${info.max_seconds} s`;
  $("known").replaceChildren(...(info.classes || []).map((name) => element("option", { value: name })));
  $("settings").hidden = $("classes").hidden = !info.classes;
  $("neighbours").hidden = info.recordings === null;
}

async function open(blob, name) {
  const mine = ++turn;
  complain(""); say(`Reading ${name}`);
  player.pause();
  try {
    const head = new Uint8Array(await blob.slice(0, 12).arrayBuffer());
    const plain = isReadByServer(head);
    let samples = null;
    try {
      const buffer = await decode(blob);
      samples = mono(buffer);
      if (!plain) blob = toWav(samples, buffer.sampleRate);
      if (mine === turn) draw(canvas, samples, buffer.sampleRate, info.sample_rate / 2);
    } catch (error) {
      if (!plain) throw new Error(`${name}: neither the server nor this browser can decode it`);
    }
    if (mine !== turn) return;
    if (sound) URL.revokeObjectURL(sound.url);
    sound = { name, blob, url: URL.createObjectURL(blob), seconds: samples ? samples.length / 48000 : 0 };
    player.src = sound.url;
    $("picture").hidden = player.hidden = !samples;
    await analyse(mine);
  } catch (error) {
    if (mine === turn) { complain(error); say(""); }
  }
}

async function analyse(mine) {
  choose(null);
  labels.set([], sound.seconds || 1);
  $("name").textContent = sound.name;
  $("result").hidden = $("columns").hidden = false;
  canvas.setAttribute("aria-label", `Spectrogram of ${sound.name}, ${sound.seconds.toFixed(1)} seconds`);
  showAxis();
  say("Listening");
  const work = [];
  if (info.classes) work.push(ask("/predict", { top: 5 }).then((v) => mine === turn && showScores(v)), findEvents(mine));
  else work.push(ask("/embed", {}).then((v) => { if (mine === turn) setSeconds(v.seconds); }));
  if (info.recordings !== null) work.push(findNeighbours(mine));
  const failed = (await Promise.allSettled(work)).find((done) => done.status === "rejected");
  if (mine !== turn) return;
  if (failed) { complain(failed.reason); say(""); return; }
  say(`${sound.name}: ${sound.seconds.toFixed(2)} s, ${counted(labels.events.length, "label")}`);
}

function setSeconds(seconds) { sound.seconds = seconds; labels.seconds = seconds; showAxis(); }

function showScores(values) {
  const rows = values.scores.map(({ class: name, score }) => element("li", {},
    element("span", { textContent: name }),
    element("meter", { min: 0, max: 1, value: score, "aria-label": name }),
    element("span", { textContent: `${(100 * score).toFixed(1)} %` })));
  const unlike = values.unlike > 1 ? [element("li", { className: "whole", textContent: "Unlike the training sounds" })] : [];
  $("scores").replaceChildren(...unlike, ...rows);
}

async function findEvents(mine = turn) {
  const query = { events: 1, threshold: $("threshold").value, min_seconds: $("shortest").value, merge_gap: $("gap").value };
  const values = await ask("/predict", query);
  if (mine !== turn) return;
  setSeconds(values.seconds);
  labels.set(values.events, values.seconds);
}

async function findNeighbours(mine = turn) {
  const query = stretch ? { top: 6, start: stretch[0].toFixed(3), seconds: (stretch[1] - stretch[0]).toFixed(3) } : { top: 6 };
  const values = await ask("/search", query);
  if (mine !== turn) return;
  $("matches").replaceChildren(...values.matches.map((match) => {
    const start = Math.max(0, match.offset).toFixed(2);
    const where = `score ${match.score.toFixed(2)}, from ${start} s on`;
    return element("li", {},
      element("p", {}, element("strong", { textContent: match.path }), document.createTextNode(` ${where}`)),
      element("audio", { controls: true, preload: "none", src: `/recordings/${match.recording}?start=${start}&seconds=15`,
        "aria-label": `${match.path}, ${where}` }));
  }));
}

function showAxis() {
  const seconds = sound.seconds || 1, room = Math.max(2, Math.floor($("views").clientWidth / 70));
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
  const step = steps.find((s) => seconds / s <= room) || 3600;
  const marks = [];
  for (let i = 0; i * step < seconds - step / 3; i++) marks.push([i * step, String(Number((i * step).toFixed(1)))]);
  marks.push([seconds, `${seconds.toFixed(1)} s`]);
  $("axis").replaceChildren(...marks.map(([at, text]) => {
    const mark = element("span", { textContent: text });
    mark.style.left = `${(100 * at) / seconds}%`;
    return mark;
  }));
  const top = info.sample_rate / 2000;
  $("hertz").replaceChildren(...[0.25, 0.5, 0.75].map((part) => {
    const mark = element("span", { textContent: `${Number((top * part).toFixed(2))} kHz` });
    mark.style.top = `${100 * (1 - part)}%`;
    return mark;
  }));
}

function choose(range) {
  stretch = range && range[1] - range[0] > 0.02 ? range : null;
  $("selection").hidden = !stretch;
  if (!stretch) return;
  $("selection").style.left = `${(100 * stretch[0]) / sound.seconds}%`;
  $("selection").style.width = `${(100 * (stretch[1] - stretch[0])) / sound.seconds}%`;
}

function play(start, end) {
  until = end;
  player.currentTime = start;
  player.play().catch(() => complain(`${sound.name}: this browser cannot play it`));
}

function follow() {
  if (until !== null && player.currentTime >= until) { player.pause(); until = null; }
  const seconds = (sound && sound.seconds) || 1;
  $("playhead").style.left = `${Math.min(100, (100 * player.currentTime) / seconds)}%`;
  if (!player.paused) requestAnimationFrame(follow);
}

function addLabel() {
  if (!sound) return;
  const begin = Math.min(player.currentTime, Math.max(0, sound.seconds - 0.1));
  const [start, end] = stretch || [begin, Math.min(sound.seconds, begin + 1)];
  labels.add(start, end, (info.classes || ["label"])[0]);
}

function onKey(event) {
  if (!sound) return;
  const step = { ArrowLeft: -0.5, ArrowRight: 0.5 }[event.key];
  if (step && event.shiftKey) {
    const [start, end] = stretch || [player.currentTime, player.currentTime];
    choose([start, Math.max(start, Math.min(sound.seconds, end + step))]);
  } else if (step) player.currentTime = Math.max(0, Math.min(sound.seconds, player.currentTime + step));
  else if (event.key === " ") { until = null; if (player.paused) player.play(); else player.pause(); }
  else if (event.key === "l" || event.key === "L") addLabel();
  else if (event.key === "Escape") choose(null);
  else return;
  event.preventDefault();
}

function onDrag(event) {
  if (!sound || event.button) return;
  const at = (e) => {
    const box = canvas.getBoundingClientRect();
    return Math.max(0, Math.min(1, (e.clientX - box.left) / box.width)) * sound.seconds;
  };
  const first = at(event);
  canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = (e) => choose([Math.min(first, at(e)), Math.max(first, at(e))]);
  canvas.onpointerup = () => {
    canvas.onpointermove = canvas.onpointerup = null;
    if (!stretch) { choose(null); player.currentTime = first; }
  };
  choose(null);
}

const microphone = new Microphone();
let recordingSince = null;
async function record() {
  const button = $("record");
  button.disabled = true;
  try {
    if (recordingSince === null) {
      complain("");
      await microphone.start();
      recordingSince = performance.now();
      button.textContent = "Stop"; button.setAttribute("aria-pressed", "true");
      say("Recording"); tick();
    } else {
      const blob = await microphone.stop();
      recordingSince = null;
      button.textContent = "Record"; button.setAttribute("aria-pressed", "false"); $("clock").textContent = "";
      open(blob, "recording.wav");
    }
  } catch (error) { complain(`Microphone: ${error.message}`); say(""); } finally { button.disabled = false; }
}

function tick() {
  if (recordingSince === null) return;
  const seconds = (performance.now() - recordingSince) / 1000;
  $("clock").textContent = `${seconds.toFixed(1)} s`;
  if (seconds >= info.max_seconds - 1) record(); else setTimeout(tick, 100);
}

const inWay = (work) => (event) => { event.preventDefault(); complain(""); work(event).catch(complain); };
$("file").addEventListener("change", (e) => { const [file] = e.target.files; if (file) open(file, file.name); e.target.value = ""; });
$("record").addEventListener("click", record);
$("settings").addEventListener("submit", inWay(() => findEvents().then(() => say(`${counted(labels.events.length, "label")} found`))));
$("search").addEventListener("click", inWay(() => findNeighbours().then(() => say("Searched"))));
$("add").addEventListener("click", addLabel);
$("export").addEventListener("click", inWay(async () => {
  say(`${await download(sound.name, sound.seconds, labels.events, $("format").value)} written`);
}));
canvas.addEventListener("keydown", onKey);
canvas.addEventListener("pointerdown", onDrag);
for (const name of ["play", "seeking", "seeked", "timeupdate"]) player.addEventListener(name, follow);
player.addEventListener("pause", () => { until = null; });
addEventListener("resize", () => { if (sound) showAxis(); });
for (const name of ["dragenter", "dragover"]) addEventListener(name, (e) => { e.preventDefault(); $("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) addEventListener(name, (e) => { e.preventDefault(); $("drop").classList.remove("over"); });
addEventListener("drop", (e) => { const [file] = e.dataTransfer.files; if (file) open(file, file.name); });
begin().catch(complain);
