"use strict";
(() => {
  const data = JSON.parse(document.getElementById("clips").textContent);
  const clips = data.clips || [], audio = data.audio || {};
  const player = document.getElementById("player"), sound = document.getElementById("audio");
  let current = -1;

  const percent = (score) => (100 * score).toFixed(1) + "\u00a0%";
  const describe = ([name, label, predicted, score]) => {
    let text = name;
    if (label) text += " – " + label;
    if (predicted) text += predicted === label ? `, recognised (${percent(score)})` : `, taken for ${predicted} (${percent(score)})`;
    return text;
  };

  // One player for the whole page.
  const mark = () => {
    for (const e of document.querySelectorAll("[data-clip].on")) {
      e.classList.remove("on");
      if (e.matches("button")) e.removeAttribute("aria-pressed");
    }
    if (current < 0 || sound.paused) return;
    for (const e of document.querySelectorAll(`[data-clip="${current}"]`)) {
      e.classList.add("on");
      if (e.matches("button")) e.setAttribute("aria-pressed", "true");
    }
  };
  const play = (number, at) => {
    if (!sound || !audio[number]) return;
    if (number === current && at === undefined) {
      if (sound.paused) sound.play(); else sound.pause();
      return;
    }
    if (number !== current) {
      current = number;
      sound.src = "data:audio/mpeg;base64," + audio[number];
      document.getElementById("now").textContent = describe(clips[number]);
      player.hidden = false;
      document.body.classList.add("playing");
    }
    if (at !== undefined) sound.currentTime = at;
    sound.play().catch(() => {});
  };
  const close = () => {
    sound.pause();
    player.hidden = true;
    document.body.classList.remove("playing");
  };
  if (sound) {
    for (const name of ["play", "pause", "ended"]) sound.addEventListener(name, mark);
    document.getElementById("close").addEventListener("click", close);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-clip]");
    if (button) play(Number(button.dataset.clip));
  });

  // The clips of a cell of the confusion matrix.
  const panel = document.getElementById("cell-clips");
  document.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell || !panel) return;
    const rows = clips.map((clip, number) => [clip, number])
      .filter(([clip]) => clip[1] === cell.dataset.true && clip[2] === cell.dataset.predicted)
      .sort((a, b) => b[0][3] - a[0][3]);
    const title = document.createElement("h3"), list = document.createElement("ul");
    title.textContent = cell.getAttribute("aria-label") + (rows.length ? "" : ": not among the clips of this page");
    for (const [clip, number] of rows) {
      const item = document.createElement("li"), text = document.createElement("span");
      if (audio[number]) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "play";
        button.dataset.clip = number;
        button.setAttribute("aria-label", "Play " + clip[0]);
        item.append(button);
      }
      text.textContent = `${clip[0]} (${percent(clip[3])})`;
      item.append(text);
      list.append(item);
    }
    panel.replaceChildren(title, list);
  });

  // Maps: point, arrow keys, Enter; groups brought to the front.
  for (const map of document.querySelectorAll(".map")) {
    const points = [...map.querySelectorAll(".point")], info = map.querySelector(".info");
    const show = (point) => {
      const number = Number(point.dataset.clip);
      info.textContent = describe(clips[number]) + (audio[number] ? "" : " (no excerpt)");
    };
    const nearest = (from, dx, dy) => {
      let best = null, least = Infinity;
      for (const p of points) {
        if (p === from || p.classList.contains("dim")) continue;
        const x = p.dataset.x - from.dataset.x, y = p.dataset.y - from.dataset.y;
        const along = x * dx + y * dy, across = Math.abs(x * dy - y * dx);
        if (along <= 0.01) continue;
        const cost = along + 2.5 * across;
        if (cost < least) { least = cost; best = p; }
      }
      return best;
    };
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    map.addEventListener("pointerover", (event) => { if (event.target.matches(".point")) show(event.target); });
    map.addEventListener("focusin", (event) => { if (event.target.matches(".point")) show(event.target); });
    map.addEventListener("keydown", (event) => {
      const point = event.target;
      if (!point.matches(".point")) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        play(Number(point.dataset.clip));
      } else if (arrows[event.key]) {
        event.preventDefault();
        const next = nearest(point, ...arrows[event.key]);
        if (next) {
          point.setAttribute("tabindex", "-1");
          next.setAttribute("tabindex", "0");
          next.focus();
        }
      }
    });
    map.addEventListener("click", (event) => {
      const button = event.target.closest(".group");
      if (!button) return;
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      const chosen = new Set([...map.querySelectorAll('.group[aria-pressed="true"]')].map((b) => b.dataset.group));
      for (const p of points) p.classList.toggle("dim", chosen.size > 0 && !chosen.has(p.dataset.group));
    });
  }

  // Timelines: a line at the time that is played; a click goes there.
  const strips = [...document.querySelectorAll("[data-timeline]")];
  const svg = "http://www.w3.org/2000/svg";
  for (const plot of strips) {
    const strip = plot.querySelector(".strip"), line = document.createElementNS(svg, "line");
    line.setAttribute("class", "cursor");
    line.setAttribute("y1", "0");
    line.setAttribute("y2", "100%");
    line.setAttribute("visibility", "hidden");
    strip.append(line);
    strip.addEventListener("click", (event) => {
      const box = strip.getBoundingClientRect();
      play(Number(plot.dataset.timeline), ((event.clientX - box.left) / box.width) * plot.dataset.seconds);
    });
  }
  const follow = () => {
    for (const plot of strips) {
      const line = plot.querySelector(".cursor"), on = Number(plot.dataset.timeline) === current;
      line.setAttribute("visibility", on ? "visible" : "hidden");
      if (on) {
        const place = Math.min(100, (100 * sound.currentTime) / plot.dataset.seconds) + "%";
        line.setAttribute("x1", place);
        line.setAttribute("x2", place);
      }
    }
    if (sound && !sound.paused) requestAnimationFrame(follow);
  };
  if (sound && strips.length) for (const name of ["play", "seeked", "pause"]) sound.addEventListener(name, follow);
})();
