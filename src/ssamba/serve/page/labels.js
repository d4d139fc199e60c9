// Labels in time: the lanes below the spectrogram, the table to correct them, the file.

const SUFFIXES = { audacity: ".txt", raven: ".selections.txt", csv: ".csv", json: ".json", jams: ".jams" };
const hues = new Map();

function hue(label) {
  if (!hues.has(label)) hues.set(label, (hues.size * 137 + 200) % 360);
  return hues.get(label);
}

function element(kind, settings = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(settings)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The labels of one recording. play(start, end) is called when one is to be listened to. */
export class Labels {
  constructor(timeline, body, play) {
    this.timeline = timeline; this.body = body; this.play = play;
    this.events = []; this.seconds = 1;
  }

  set(events, seconds) {
    this.events = events.map((event) => ({ ...event })); this.seconds = seconds;
    this.show();
  }

  add(start, end, label) {
    const event = { start, end, label };
    this.events.push(event);
    this.events.sort((a, b) => a.start - b.start || a.end - b.end);
    this.show();
    const row = this.body.rows[this.events.indexOf(event)];
    row.querySelectorAll("input")[2].select();
  }

  show() { this.showLanes(); this.showTable(); }

  showLanes() {
    const lanes = new Map();
    this.timeline.replaceChildren();
    this.events.forEach((event, i) => {
      if (!lanes.has(event.label)) {
        lanes.set(event.label, element("div", { className: "lane" }));
        this.timeline.append(lanes.get(event.label));
      }
      const score = event.score === undefined ? "" : `, score ${event.score.toFixed(2)}`;
      const text = `${event.label}, ${event.start.toFixed(2)} to ${event.end.toFixed(2)} s${score}`;
      const mark = element("button", { type: "button", title: text, "aria-label": text, textContent: event.label });
      mark.style.left = `${(100 * event.start) / this.seconds}%`;
      mark.style.width = `${(100 * Math.max(0, event.end - event.start)) / this.seconds}%`;
      mark.style.background = `hsl(${hue(event.label)} 75% 74%)`;
      mark.addEventListener("click", () => { this.point(i); this.play(event.start, event.end); });
      lanes.get(event.label).append(mark);
    });
  }

  point(i) {
    [...this.body.rows].forEach((row, n) => row.classList.toggle("current", n === i));
  }

  showTable() {
    this.body.replaceChildren(...this.events.map((event, i) => this.row(event, i)));
  }

  row(event, i) {
    const number = (name, text) => {
      const input = element("input", { type: "number", min: "0", max: String(this.seconds), step: "any",
        value: String(Number(event[name].toFixed(3))), "aria-label": `${text} of label ${i + 1}, seconds` });
      input.addEventListener("change", () => {
        const value = Number(input.value);
        if (input.value !== "" && input.validity.valid) { event[name] = value; delete event.score; }
        if (event.end < event.start) [event.start, event.end] = [event.end, event.start];
        this.show();
      });
      return element("td", {}, input);
    };
    const label = element("input", { type: "text", value: event.label, "aria-label": `Name of label ${i + 1}` });
    label.setAttribute("list", "known");
    label.addEventListener("change", () => {
      if (label.value.trim()) { event.label = label.value.trim(); delete event.score; }
      this.show();
    });
    const score = element("td", { textContent: event.score === undefined ? "" : event.score.toFixed(2) });
    const play = element("button", { type: "button", textContent: "Play", "aria-label": `Play label ${i + 1}` });
    play.addEventListener("click", () => { this.point(i); this.play(event.start, event.end); });
    const remove = element("button", { type: "button", textContent: "Remove", "aria-label": `Remove label ${i + 1}` });
    remove.addEventListener("click", () => { this.events.splice(i, 1); this.show(); });
    const acts = element("td", { className: "acts" }, play, remove);
    return element("tr", {}, number("start", "Start"), number("end", "End"), element("td", {}, label), score, acts);
  }
}

/** Give the labels to the reader as a file that the server writes. Throws what the server says. */
export async function download(name, seconds, events, format) {
  const body = JSON.stringify({ path: name, seconds, events });
  const answer = await fetch(`/labels?format=${format}`, {
    method: "POST", body, headers: { "Content-Type": "application/json" } });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const link = element("a", { href: URL.createObjectURL(await answer.blob()) });
  link.download = name.replace(/\.[^.]*$/, "") + SUFFIXES[format];
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return link.download;
}

export { element };
