"use strict";
// Draws the charts, moves by keys, and shows what is new while a run goes on. No request leaves this machine.
const COLOURS = ["#2f76b2", "#b2402f", "#1a7f4b", "#8b66c6", "#c07a12", "#4a9aa5", "#c2569a", "#7a7f3a"];
const OF_LABEL = { "CORRECT": "#1a7f4b", "INCORRECT": "#b2402f", "all CORRECT": "#1a7f4b", "mixed": "#2f76b2", "all INCORRECT": "#b2402f" };
const POLL_MS = 3000;
let plots = [];

function draw() {
  plots.forEach((plot) => plot.destroy());
  plots = [];
  const data = document.getElementById("chart-data"), holder = document.getElementById("charts");
  if (!data || !holder) return;
  holder.replaceChildren();
  for (const chart of JSON.parse(data.textContent)) drawOne(chart, holder);
}

function drawOne(chart, holder) {
  const box = document.createElement("div"), title = document.createElement("h3"), unit = document.createElement("span");
  box.className = "chart";
  unit.className = "unit";
  title.textContent = chart.title + " ";
  unit.textContent = chart.unit;
  title.append(unit);
  box.append(title);
  holder.append(box);
  const columns = [chart.x], series = [{ label: chart.xLabel }], bands = [];
  const stack = chart.x.map(() => 0), isThere = chart.x.map((x, i) => chart.curves.some((curve) => curve.values[i] != null));
  chart.curves.forEach((curve, index) => {
    const colour = OF_LABEL[curve.label] ?? COLOURS[index % COLOURS.length];
    const values = chart.stacked ? curve.values.map((v, i) => (isThere[i] ? (stack[i] += v ?? 0) : null)) : curve.values;
    if (curve.low) {
      bands.push({ series: [columns.length, columns.length + 1], fill: colour + "22" });
      for (const bound of [curve.high, curve.low]) {
        columns.push(bound);
        series.push({ show: true, width: 0, spanGaps: true, points: { show: false }, label: "", class: "bound" });
      }
    }
    columns.push(values);
    series.push({
      label: curve.label, stroke: colour, width: 1.6, fill: chart.stacked ? colour : undefined, spanGaps: true,
      value: (plot, shown, at, i) => (i == null ? "–" : text(curve.values[i])),
    });
  });
  if (chart.stacked) { // The tallest area is drawn first, so that each one shows.
    const order = series.slice(1).map((s, i) => i + 1).reverse();
    columns.splice(1, Infinity, ...order.map((i) => columns[i]));
    series.splice(1, Infinity, ...order.map((i) => series[i]));
  }
  const style = getComputedStyle(document.documentElement), soft = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
  const plot = new uPlot({
    width: box.clientWidth - 18, height: 190, series, bands, scales: { x: { time: false } },
    axes: [{ ...axis, values: (p, v) => v.map((n) => (Number.isInteger(n) ? n : "")) }, { ...axis, size: 54 }],
    legend: { live: true }, cursor: { y: false },
  }, columns, box);
  plot.root.querySelectorAll(".u-legend .bound").forEach((row) => row.remove());
  plots.push(plot);
}

function text(value) {
  return value == null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}

// A report that was opened as a file may have no storage.
function keep(storage, name, value) { try { storage.setItem(name, value); } catch { /* It is not kept. */ } }
function kept(storage, name) { try { return storage.getItem(name) ?? undefined; } catch { return undefined; } }

function shade(kind) {
  const choice = document.getElementById("shade");
  if (!choice) return;
  if (kind) choice.value = kind;
  document.querySelectorAll(".siblings").forEach((each) => { each.dataset.shade = choice.value; });
  document.querySelectorAll(".legend").forEach((each) => each.classList.toggle("on", each.dataset.of === choice.value));
  keep(sessionStorage, "shade", choice.value);
}

function theme(next) {
  const root = document.documentElement;
  if (next) keep(localStorage, "theme", next);
  const chosen = next ?? kept(localStorage, "theme");
  if (chosen) root.dataset.theme = chosen;
}

function otherTheme() {
  const dark = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme(dark === "dark" ? "light" : "dark");
  draw();
}

function sibling(step) {
  const all = [...document.querySelectorAll(".sibling")];
  if (!all.length) return;
  const now = all.indexOf(document.activeElement.closest(".sibling"));
  const next = all[now < 0 ? (step > 0 ? 0 : all.length - 1) : (now + step + all.length) % all.length];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

function nextShade() {
  const choice = document.getElementById("shade");
  if (choice) shade(choice.options[(choice.selectedIndex + 1) % choice.options.length].value);
}

// What teacher and student say of the token that is pointed at, focused or touched.
function read(token) {
  const box = document.getElementById("reading") ?? document.body.appendChild(Object.assign(document.createElement("aside"), { id: "reading" }));
  box.hidden = !token;
  box.setAttribute("aria-live", "polite");
  if (!token) return;
  const said = JSON.parse(token.dataset.reading), ratio = said.teacher_logprob - said.student_logprob;
  const numbers = element("p", `log p teacher ${said.teacher_logprob.toFixed(3)}, student ${said.student_logprob.toFixed(3)}: ${ratio < 0 ? "" : "+"}${ratio.toFixed(3)} nats · JSD ${said.jsd.toFixed(4)} · entropy teacher ${said.teacher_entropy.toFixed(2)}, student ${said.student_entropy.toFixed(2)}`);
  numbers.prepend(element("code", said.token), " ");
  box.replaceChildren(numbers, topTokens("teacher", said.teacher), topTokens("student", said.student));
}

function topTokens(side, top) {
  const line = element("p", `${side}'s most probable: `);
  line.className = side;
  for (const [token, logprob, isSampled] of top) line.append(element(isSampled ? "b" : "span", token), ` ${Math.exp(logprob).toFixed(3)}  `);
  return line;
}

function element(name, text) { return Object.assign(document.createElement(name), { textContent: text }); }

function readUnder(event) {
  const token = event.target.closest?.("[data-reading]") ?? document.activeElement?.closest("[data-reading]");
  read(token ?? null);
}

async function copy(code) {
  const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  code.dataset.copied = done ? "copied" : "select it and copy it";
}

function foldDocuments() {
  const all = [...document.querySelectorAll("details.documents")], open = all.some((each) => !each.open);
  all.forEach((each) => { each.open = open; });
}

const KEYS = {
  l: () => sibling(1), h: () => sibling(-1), s: nextShade, d: foldDocuments, t: otherTheme,
  "?": () => document.getElementById("help").showModal(),
  "/": () => document.querySelector("input[type=search]")?.focus(),
};

addEventListener("keydown", (event) => {
  if (event.key === "Escape") return read(null);
  if (event.key === "Enter" && event.target.matches("code.copy")) return copy(event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const link = document.querySelector(`a[data-key="${CSS.escape(event.key)}"]`);
  if (!link && !KEYS[event.key]) return;
  event.preventDefault();
  if (link) link.click(); else KEYS[event.key]();
});

addEventListener("click", (event) => {
  if (event.target.id === "theme") otherTheme();
  if (event.target.id === "keys") document.getElementById("help").showModal();
  if (event.target.matches("code.copy")) copy(event.target);
});
for (const name of ["mouseover", "focusin", "click"]) addEventListener(name, readUnder);
addEventListener("change", (event) => { if (event.target.id === "shade") shade(); });

let version = null;
async function look() {
  const live = document.body.dataset.live;
  if (live === "no" || document.hidden) return;
  try {
    if (live === "retry") return await renew(); // The database was in use.
    const run = document.body.dataset.run, answer = await fetch("/version" + (run ? "?run=" + encodeURIComponent(run) : ""));
    const now = (await answer.json()).version;
    if (version !== null && now !== version) await renew();
    version = now;
  } catch { /* The server was stopped; the page stays as it is. */ }
}

async function renew() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...document.querySelectorAll("main details")].map((each) => each.open);
  const chosen = [...document.querySelectorAll("main input:checked")].map((each) => each.value);
  document.querySelector("main").replaceWith(page.querySelector("main"));
  document.querySelectorAll("main details").forEach((each, i) => { if (open[i]) each.open = true; });
  document.querySelectorAll("main input[type=checkbox]").forEach((each) => { each.checked = chosen.includes(each.value); });
  document.body.dataset.live = page.body.dataset.live;
  draw();
  shade();
}

theme();
addEventListener("DOMContentLoaded", () => {
  shade(kept(sessionStorage, "shade"));
  draw();
  setInterval(look, POLL_MS);
  look();
});
addEventListener("resize", () => plots.forEach((plot) => plot.setSize({ width: plot.root.parentElement.clientWidth - 18, height: 190 })));
