"use strict";
// Fields of a completion, as page.py packs it.
const TEXT = 0, REWARD = 1, ADJUSTED = 2, SMI = 3, WEIGHT = 4, WITH = 5, WITHOUT = 6, CLUSTER = 7;
const DASHES = ["solid", "dot", "dash", "dashdot", "longdash", "longdashdot"];
// None of those of runs (page.py), and none that a theme hides.
const CLUSTER_COLOURS = ["#2A9490", "#C2577A", "#8C8A2E", "#A64CA6", "#4F8F3A", "#B0703C", "#888888"];
const DARK = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);
const colourOf = (family) => family.colours[DARK.matches ? 1 : 0];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let data;
let groups = [];
const hidden = new Set();
const at = { part: 0, step: 0, group: 0 };

async function unpacked(id) {
  const binary = atob($(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function number(value, digits = 2) {
  return value === null ? "–" : Number(value.toFixed(digits)).toString();
}

function layout(more) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--faint"), linecolor: css("--line"), automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), size: 12 },
    margin: { l: 40, r: 8, t: 8, b: 32 }, hoverlabel: { namelength: -1 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

function drawFamilies() {
  $("families").replaceChildren(...data.families.map((family, i) => {
    const dot = element("i");
    dot.style.background = colourOf(family);
    const button = element("button", { type: "button" }, dot, family.name);
    button.setAttribute("aria-pressed", String(!hidden.has(i)));
    button.onclick = () => {
      hidden.has(i) ? hidden.delete(i) : hidden.add(i);
      button.setAttribute("aria-pressed", String(!hidden.has(i)));
      drawCharts();
    };
    return element("li", {}, button);
  }));
}

// Draws into a plot when it comes into view: what is below the window costs nothing until it is looked at.
const drawings = new WeakMap();
const watcher = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
  watcher.unobserve(target);
  drawings.get(target)();
}), { rootMargin: "150px" });

function inView(plot, draw) {
  drawings.set(plot, draw);
  watcher.unobserve(plot);
  watcher.observe(plot);
}

function nameOf(series) {
  return [data.runs[series.run].name, series.name].filter(Boolean).join(" · ");
}

function ends(series) {
  return `${nameOf(series)} from ${series.y[0]} to ${series.y[series.y.length - 1]}`;
}

function picture(id, label) {
  const plot = element("div", { id, className: "plot", role: "img" });
  plot.setAttribute("aria-label", label);
  return plot;
}

function drawCharts() {
  data.charts.forEach((chart, i) => {
    if (!$(`chart-${i}`)) {
      const caption = element("figcaption", {}, chart.title, element("small", {}, chart.note ? ` ${chart.note}` : ""));
      const plot = picture(`chart-${i}`, `Curves of ${chart.title}: ${chart.series.map(ends).join("; ")}`);
      $("charts").append(element("figure", { className: i < 2 ? "large" : "" }, caption, plot));
    }
    inView($(`chart-${i}`), () => drawChart(chart, $(`chart-${i}`)));
  });
}

function drawChart(chart, plot) {
  const traces = chart.series.filter((s) => !hidden.has(data.runs[s.run].family)).map((s) => ({
    x: s.x, y: s.y, mode: s.x.length > 40 ? "lines" : "lines+markers", marker: { size: 4 },
    name: nameOf(s), showlegend: false,
    line: { color: colourOf(data.families[data.runs[s.run].family]), dash: DASHES[s.dash % DASHES.length], width: 2 },
  }));
  const lines = [...new Set(chart.series.map((s) => s.name).filter(Boolean))];
  // Dashes have a legend of their own; colours are those of the buttons above.
  lines.length > 1 && lines.forEach((name) => traces.push({
    x: [null], y: [null], mode: "lines", name,
    line: { color: css("--faint"), width: 2, dash: DASHES[chart.series.find((s) => s.name === name).dash % DASHES.length] },
  }));
  Plotly.react(plot, traces, layout({
    hovermode: "closest", xaxis: { title: { text: "step", standoff: 4 }, zeroline: false }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    margin: { l: 40, r: 8, t: lines.length > 1 ? 24 : 8, b: 32 },
  }), CONFIG);
}

function drawControls() {
  $("browser").hidden = $("to-groups").hidden = data.shown.length === 0;
  $("part").replaceChildren(...data.shown.map((part, i) =>
    element("option", { value: i }, `${data.runs[part.run].name}, ${part.kind}`)));
}

async function showStep() {
  const part = data.shown[at.part];
  at.step = Math.max(0, Math.min(at.step, part.steps.length - 1));
  $("part").value = at.part;
  $("step").max = part.steps.length - 1;
  $("step").value = at.step;
  $("step").setAttribute("aria-valuetext", `step ${part.steps[at.step]}`);
  $("step-shown").textContent = part.steps[at.step];
  const wanted = `groups-${at.part}-${part.steps[at.step]}`;
  const read = JSON.parse(await unpacked(wanted));
  if (wanted !== `groups-${at.part}-${data.shown[at.part].steps[at.step]}`) return; // the slider has moved on
  groups = read;
  showList();
}

function matching() {
  const wanted = $("search").value.toLowerCase();
  const has = (text) => text.toLowerCase().includes(wanted);
  return groups.map((_, i) => i).filter((i) =>
    !wanted || has(groups[i].prompt) || groups[i].completions.some((c) => has(c[TEXT])));
}

function showList() {
  const found = matching();
  if (!found.includes(at.group)) at.group = found.length ? found[0] : 0;
  const focused = $("list").contains(document.activeElement);
  $("found").textContent = `${found.length} of ${groups.length} groups`;
  $("list").replaceChildren(...found.map((i) => {
    const group = groups[i];
    const right = group.completions.filter((c) => c[REWARD] > 0).length;
    const lines = group.prompt.trim().split("\n").filter((line) => !/^(system|user|assistant)$/.test(line));
    const button = element("button", { type: "button" },
      element("span", {}, lines.join(" ")),
      element("span", { className: "faint" },
        `${right} of ${group.completions.length} rewarded` + (group.scored ? "" : ", not scored") + (group.paths === null ? "" : `, ${number(group.paths)} paths`)));
    button.setAttribute("aria-current", String(i === at.group));
    button.onclick = () => { at.group = i; showList(); };
    return element("li", {}, button);
  }));
  const current = $("list").querySelector('[aria-current="true"]')?.parentElement;
  // Within the list alone: the page stays where it is.
  current && $("list").scrollTo({ top: current.offsetTop - $("list").offsetTop - 60, left: current.offsetLeft - $("list").offsetLeft });
  focused && current && current.firstChild.focus({ preventScroll: true });
  showGroup(found.length ? groups[at.group] : null);
}

function marked(text) {
  const wanted = $("search").value;
  if (!wanted) return [text];
  const parts = [];
  let from = 0;
  const lower = text.toLowerCase();
  for (let i; (i = lower.indexOf(wanted.toLowerCase(), from)) >= 0; from = i + wanted.length) {
    parts.push(text.slice(from, i), element("mark", {}, text.slice(i, i + wanted.length)));
  }
  return [...parts, text.slice(from)];
}

function showGroup(group) {
  if (group === null) { $("group").replaceChildren(); return; }
  const prompt = element("p", { className: "prompt", tabIndex: 0 }, ...marked(group.prompt.trim()));
  if (group.truth) prompt.append(element("span", { className: "faint" }, `\nright answer: ${group.truth}`));
  const method = group.scored ? group.method : `not scored: mean weight of the others (${group.method})`;
  const advantages = group.completions.some((c) => c[WITH] !== null);
  const clusters = new Set(group.completions.map((c) => c[CLUSTER])).size;
  const pictures = element("div", { id: "pictures" },
    group.similarity && element("figure", {}, element("figcaption", {}, "Similarity ",
      element("small", {}, "cosine of embeddings, ordered by cluster")), picture("heat", `Similarity of ${group.completions.length} completions, in ${clusters} clusters`)),
    advantages ? element("figure", {}, element("figcaption", {}, "Advantages ",
      element("small", {}, "of each completion")), picture("bars", "Advantages with DRA and without, as the completions below say")) : null);
  const head = element("p", { className: "faint" }, method);
  $("group").replaceChildren(head, prompt, pictures, element("div", { id: "completions" }, ...runsOfEqual(group.completions).map(card)));
  if (group.similarity) inView($("heat"), () => drawSimilarity(group));
  if (advantages) inView($("bars"), () => drawAdvantages(group));
}

const labelsOf = (group) => group.completions.map((_, i) => String(i + 1));
const CATEGORY = { type: "category", tickfont: { size: 10 } };

function drawSimilarity(group) {
  const labels = labelsOf(group);
  Plotly.newPlot("heat", [{
    type: "heatmap", x: labels, y: labels, z: group.similarity, zmin: 0, zmax: 1, colorscale: "Cividis",
    hovertemplate: "%{x} and %{y}: %{z:.3f}<extra></extra>", colorbar: { thickness: 10, outlinewidth: 0 },
  }], layout({ xaxis: CATEGORY, yaxis: { ...CATEGORY, autorange: "reversed" } }), CONFIG);
  $("heat").on("plotly_click", (event) => see(Number(event.points[0].y) - 1));
}

function drawAdvantages(group) {
  const bars = (field, name, colour) => ({
    type: "bar", x: labelsOf(group), y: group.completions.map((c) => c[field]), name, marker: { color: colour },
    hovertemplate: `%{x}: %{y:.3f}<extra>${name}</extra>`,
  });
  Plotly.newPlot("bars", [bars(WITHOUT, "without DRA", css("--without")), bars(WITH, "with DRA", css("--accent"))], layout({
    barmode: "group", xaxis: { ...CATEGORY, title: { text: "completion", standoff: 4 } }, margin: { l: 40, r: 8, t: 28, b: 36 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  }), CONFIG);
  $("bars").on("plotly_click", (event) => see(event.points[0].pointIndex));
}

// [first, number] of neighbours that are equal in all that a card shows.
function runsOfEqual(completions) {
  const found = [];
  completions.forEach((completion, i) => {
    const last = found[found.length - 1];
    if (last && JSON.stringify(completions[last[0]]) === JSON.stringify(completion)) last[1] += 1;
    else found.push([i, 1]);
  });
  return found.map(([first, many]) => [completions[first], first, many]);
}

function card([completion, first, many]) {
  const facts = [["reward", REWARD], ["adjusted", ADJUSTED], ["SMI", SMI], ["weight", WEIGHT], ["advantage", WITH],
    ["without DRA", WITHOUT]].filter(([, field]) => completion[field] !== null);
  const title = many === 1 ? `${first + 1}` : `${first + 1} to ${first + many}, equal`;
  const made = element("section", { className: "completion" },
    element("h3", {}, title, element("span", { className: "faint" }, `cluster ${completion[CLUSTER] + 1}`)),
    element("dl", {}, ...facts.map(([name, field]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, number(completion[field], 3))))),
    element("pre", { tabIndex: 0 }, ...marked(completion[TEXT])));
  made.dataset.first = first;
  made.style.setProperty("--cluster", CLUSTER_COLOURS[completion[CLUSTER] % CLUSTER_COLOURS.length]);
  return made;
}

function see(i) {
  document.querySelectorAll(".completion.seen").forEach((seen) => seen.classList.remove("seen"));
  const target = [...document.querySelectorAll(".completion")].filter((card) => Number(card.dataset.first) <= i).pop();
  target.classList.add("seen");
  target.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function move(by) {
  const found = matching();
  const next = found[found.indexOf(at.group) + by];
  if (next !== undefined) { at.group = next; showList(); }
}

// A run's training and validation, and another run's, are looked at for the same step where there is one.
function choosePart(i) {
  const step = data.shown[at.part].steps[at.step];
  at.part = i;
  const steps = data.shown[i].steps;
  at.step = steps.reduce((best, s, j) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? j : best), 0);
  showStep();
}

function listen() {
  $("controls").onsubmit = (event) => event.preventDefault();
  $("part").onchange = () => choosePart(Number($("part").value));
  $("step").oninput = () => { at.step = Number($("step").value); showStep(); };
  $("search").oninput = showList;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("browser").hidden) return;
    if (event.target === $("search")) { if (event.key === "Escape") $("search").blur(); return; }
    if (event.target.matches("select, input, pre, .prompt") && event.key.startsWith("Arrow")) return;
    const keys = {
      ArrowLeft: () => { at.step -= 1; showStep(); }, ArrowRight: () => { at.step += 1; showStep(); },
      j: () => move(1), k: () => move(-1), r: () => choosePart((at.part + 1) % data.shown.length),
      "/": () => $("search").focus(),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  DARK.addEventListener("change", () => { drawFamilies(); drawCharts(); showList(); });
}

async function main() {
  const [code, head] = await Promise.all([unpacked("plotly"), unpacked("data")]);
  document.head.append(element("script", { textContent: code }));
  data = JSON.parse(head);
  drawFamilies();
  drawCharts();
  drawControls();
  $("notes").replaceChildren(...data.notes.map((note) => element("p", {}, note)));
  listen();
  if (data.shown.length) {
    at.part = data.shown.length - 1;
    at.step = data.shown[at.part].steps.length - 1;
    await showStep();
  }
  document.documentElement.dataset.ready = "yes";
}

main();
