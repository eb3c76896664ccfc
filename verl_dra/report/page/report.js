"use strict";
// Fields of a completion, as page.py packs it.
const TEXT = 0, REWARD = 1, ADJUSTED = 2, SMI = 3, WEIGHT = 4, WITH = 5, WITHOUT = 6, CLUSTER = 7;
const DASHES = ["solid", "dot", "dash", "dashdot", "longdash", "longdashdot"];
// By size within the group, the last for all smaller ones. None of those of runs (terminal/colours.py), and none that a
// theme hides.
const CLUSTER_COLOURS = ["#2A9490", "#C2577A", "#8C8A2E", "#A64CA6", "#4F8F3A", "#B0703C", "#888888"];
const DARK = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);
const shade = (colours) => colours[DARK.matches ? 1 : 0];
const colourOf = (family) => shade(family.colours);
const colourOfRun = (run) => colourOf(data.families[data.runs[run].family]);
const clusterColour = (cluster) => CLUSTER_COLOURS[Math.min(cluster, CLUSTER_COLOURS.length - 1)];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let data;
let groups = [];
const hidden = new Set();
// `beside` is the part that is shown beside, or null.
const at = { part: 0, step: 0, group: 0, beside: null };
let beside = { step: null, groups: [] };

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
      drawShares();
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

const LARGE = 2;

function drawCharts() {
  data.charts.forEach((chart, i) => {
    if (!$(`chart-${i}`)) {
      const same = chart.same.map((group) => `${[...new Set(group.map((s) => lookOf(chart.series[s])))].join(" and ")} coincide`);
      const note = [chart.note, same.length ? `${same.join("; ")}: the narrower line lies on the wider one` : ""];
      const caption = element("figcaption", {}, chart.title, element("small", {}, ` ${note.filter(Boolean).join(". ")}`));
      const plot = picture(`chart-${i}`, `Curves of ${chart.title}: ${chart.series.map(ends).join("; ")}`);
      $("charts").append(element("figure", { className: i < LARGE ? "large" : "" }, caption, plot));
    }
    inView($(`chart-${i}`), () => drawChart(chart, $(`chart-${i}`)));
  });
}

// What a curve looks like: of one colour and one dash are the seeds of a setting.
function lookOf(series) {
  return [data.families[data.runs[series.run].family].name, series.name].filter(Boolean).join(" · ");
}

// How many looks lie over a curve that coincides with others, each narrower than the one below.
function covered(chart, i) {
  const group = (chart.same.find((same) => same.includes(i)) ?? [i]).map((s) => chart.series[s]);
  const looks = [...new Set(group.filter((s) => !hidden.has(data.runs[s.run].family)).map(lookOf))];
  return looks.length - 1 - looks.indexOf(lookOf(chart.series[i]));
}

function drawChart(chart, plot) {
  const numbered = chart.series.map((s, i) => ({ ...s, width: 2 + 4 * covered(chart, i) }));
  const traces = numbered.filter((s) => !hidden.has(data.runs[s.run].family)).map((s) => ({
    x: s.x, y: s.y, mode: s.x.length > 40 ? "lines" : "lines+markers", marker: { size: 2 + s.width },
    name: nameOf(s), showlegend: false,
    line: { color: colourOf(data.families[data.runs[s.run].family]), dash: DASHES[s.dash % DASHES.length], width: s.width },
  }));
  const lines = [...new Set(chart.series.map((s) => s.name).filter(Boolean))];
  // Dashes have a legend of their own; colours are those of the buttons above.
  lines.length > 1 && lines.forEach((name) => traces.push({
    x: [null], y: [null], mode: "lines", name,
    line: { color: css("--faint"), width: 2, dash: DASHES[chart.series.find((s) => s.name === name).dash % DASHES.length] },
  }));
  Plotly.react(plot, traces, layout({
    hovermode: "closest", xaxis: { title: { text: chart.x === "k" ? "k" : "step", standoff: 4 }, zeroline: false, ...(chart.x === "k" ? tries(chart) : {}) }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    margin: { l: 40, r: 8, t: lines.length > 1 ? 24 : 8, b: 32 },
  }), CONFIG);
}

// Doubling k is one step to the right.
function tries(chart) {
  return { type: "log", tickvals: [...new Set(chart.series.flatMap((s) => s.x))], ticktext: [...new Set(chart.series.flatMap((s) => s.x))].map(String) };
}

const RANKS = ["largest", "2nd", "3rd", "4th", "5th", "6th", "all smaller ones"];

function drawShares() {
  for (const kind of ["validation", "training"]) {
    const panels = data.shares.map((share, i) => [share, i]).filter(([share]) => data.shown[share.part].kind === kind);
    if (!panels.length) continue;
    if (!$(`shares-${kind}`)) {
      const ranks = RANKS.filter((_, rank) => panels.some(([share]) => share.shares[rank].some((value) => value > 0)));
      const swatches = element("span", { className: "swatches" }, ...ranks.map((name, rank) => {
        const swatch = element("i");
        swatch.style.background = clusterColour(RANKS.indexOf(name));
        return element("span", {}, swatch, name);
      }));
      const caption = element("figcaption", {}, `Shares of clusters, ${kind} `,
        element("small", {}, `of each group's largest cluster, its second largest and so on, mean over the groups of a step that this report shows. Texts of a cluster have a mean cosine above ${data.cluster_cosine}; the largest cluster of one prompt need not be that of another`),
        swatches);
      const figure = element("figure", { id: `shares-${kind}`, className: "whole" }, caption,
        element("div", { className: "panels" }, ...panels.map(([share, i]) => sharePanel(share, i, kind))));
      $("charts").insertBefore(figure, $("charts").querySelector("figure:not(.large, .whole)"));
    }
    const last = Math.max(...panels.map(([share]) => share.x[share.x.length - 1]));
    panels.forEach(([share, i]) => {
      const { run } = data.shown[share.part];
      $(`share-${i}`).parentElement.hidden = hidden.has(data.runs[run].family);
      $(`share-${i}`).parentElement.querySelector("i").style.background = colourOfRun(run);
      inView($(`share-${i}`), () => drawShare(share, $(`share-${i}`), last));
    });
  }
}

function sharePanel(share, i, kind) {
  const name = data.runs[data.shown[share.part].run].name;
  const [largest] = share.shares;
  const percent = (value) => `${Math.round(100 * value)} %`;
  return element("div", { className: "panel" }, element("p", {}, element("i"), name),
    picture(`share-${i}`, `Shares of clusters of ${name}, ${kind}: the largest from ${percent(largest[0])} to ${percent(largest[largest.length - 1])}`));
}

function drawShare(share, plot, last) {
  Plotly.react(plot, share.shares.map((values, rank) => ({
    x: share.x, y: values, name: RANKS[rank], stackgroup: "shares", mode: "lines", fillcolor: clusterColour(rank),
    line: { color: css("--panel"), width: 1 }, hovertemplate: `%{y:.0%}<extra>${RANKS[rank]}</extra>`,
  })), layout({
    showlegend: false, hovermode: "x", xaxis: { title: { text: "step", standoff: 4 }, zeroline: false, range: [share.x[0], last] },
    yaxis: { range: [0, 1], tickformat: ".0%" },
  }), CONFIG);
}

function drawControls() {
  $("browser").hidden = $("to-groups").hidden = data.shown.length === 0;
  $("part").replaceChildren(...data.shown.map((part, i) =>
    element("option", { value: i }, nameOfPart(part))));
  drawBeside();
}

const nameOfPart = (part) => `${data.runs[part.run].name}, ${part.kind}`;

// What can stand beside a part: the same kind of another run.
const rivals = () => data.shown.map((_, i) => i).filter((i) =>
  i !== at.part && data.shown[i].kind === data.shown[at.part].kind);

function drawBeside() {
  if (!data.shown.length) return;
  const others = rivals();
  if (!others.includes(at.beside)) at.beside = null;
  $("beside").replaceChildren(element("option", { value: "" }, others.length ? "nothing" : "no other run"),
    ...others.map((i) => element("option", { value: i }, nameOfPart(data.shown[i]))));
  $("beside").value = at.beside ?? "";
  $("beside").disabled = !others.length;
}

// The number of the step of a part that is nearest to a step.
function nearest(part, step) {
  const { steps } = data.shown[part];
  return steps.reduce((best, s, j) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? j : best), 0);
}

async function groupsOf(part, step) {
  return JSON.parse(await unpacked(`groups-${part}-${data.shown[part].steps[step]}`));
}

async function showStep() {
  const part = data.shown[at.part];
  at.step = Math.max(0, Math.min(at.step, part.steps.length - 1));
  $("part").value = at.part;
  $("step").max = part.steps.length - 1;
  $("step").value = at.step;
  $("step").setAttribute("aria-valuetext", `step ${part.steps[at.step]}`);
  $("step-shown").textContent = part.steps[at.step];
  drawBeside();
  const wanted = JSON.stringify([at.part, at.step, at.beside]);
  const other = at.beside === null ? null : nearest(at.beside, part.steps[at.step]);
  const [read, readBeside] = await Promise.all([
    groupsOf(at.part, at.step), other === null ? [] : groupsOf(at.beside, other)]);
  if (wanted !== JSON.stringify([at.part, at.step, at.beside])) return; // the slider has moved on
  groups = read;
  beside = { step: other === null ? null : data.shown[at.beside].steps[other], groups: readBeside };
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
    const lines = group.prompt.trim().split("\n").filter((line) => !/^(system|user|assistant)$/.test(line));
    const button = element("button", { type: "button" },
      element("span", {}, lines.join(" ")),
      element("span", { className: "faint" }, counts(group)));
    button.setAttribute("aria-current", String(i === at.group));
    button.onclick = () => { at.group = i; showList(); keepAddress(); };
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
  if (at.beside === null) {
    const [method, ...rest] = shownOf(group, "");
    $("group").replaceChildren(method, prompt, ...rest);
    drawPictures(group, "", null);
    return;
  }
  const other = beside.groups.find((found) => found.prompt === group.prompt) ?? null;
  const range = advantageRange([group, other]);
  const steps = data.shown[at.beside].steps;
  const missing = `${nameOfPart(data.shown[at.beside])} has no such prompt at step ${beside.step} (it has groups of ${steps.length} steps, ${steps[0]} to ${steps[steps.length - 1]}).`;
  $("group").replaceChildren(prompt, element("div", { className: "sides" },
    side(at.part, data.shown[at.part].steps[at.step], group, ...shownOf(group, "")),
    side(at.beside, beside.step, other, ...(other === null ? [element("p", {}, missing)] : shownOf(other, "-beside")))));
  drawPictures(group, "", range);
  if (other !== null) drawPictures(other, "-beside", range);
}

function side(part, step, group, ...shown) {
  const made = element("section", { className: "side" },
    element("h3", {}, `${nameOfPart(data.shown[part])}, step ${step}`),
    group && element("p", { className: "faint method" }, counts(group)), ...shown);
  made.style.setProperty("--run", colourOfRun(data.shown[part].run));
  return made;
}

function counts(group) {
  const right = group.completions.filter((c) => c[REWARD] > 0).length;
  return `${right} of ${group.completions.length} rewarded` + (group.scored ? "" : ", not scored")
    + (group.paths === null ? "" : `, ${number(group.paths)} paths`);
}

const hasAdvantages = (group) => group.completions.some((c) => c[WITH] !== null);

// How its rewards were adjusted, the places of its pictures, which have `suffix` in their names, and its completions.
function shownOf(group, suffix) {
  const method = group.scored ? group.method : `not scored: mean weight of the others (${group.method})`;
  const clusters = new Set(group.completions.map((c) => c[CLUSTER])).size;
  return [
    element("p", { className: "faint method" }, method),
    element("div", { className: "pictures" },
      group.similarity && element("figure", {}, element("figcaption", {}, "Similarity ",
        element("small", {}, "cosine of embeddings, ordered by cluster")), picture(`heat${suffix}`, `Similarity of ${group.completions.length} completions, in ${clusters} clusters`)),
      hasAdvantages(group) ? element("figure", {}, element("figcaption", {}, "Advantages ",
        element("small", {}, "of each completion")), picture(`bars${suffix}`, "Advantages with DRA and without, as the completions below say")) : null),
    element("div", { className: "completions" }, ...runsOfEqual(group.completions).map(card)),
  ];
}

function drawPictures(group, suffix, range) {
  if (group.similarity) inView($(`heat${suffix}`), () => drawSimilarity(group, $(`heat${suffix}`)));
  if (hasAdvantages(group)) inView($(`bars${suffix}`), () => drawAdvantages(group, $(`bars${suffix}`), range));
}

// Of the advantages of groups that stand beside each other, so that their bars compare.
function advantageRange(shown) {
  const values = shown.filter(Boolean).flatMap((group) => group.completions.flatMap((c) => [c[WITH] ?? 0, c[WITHOUT] ?? 0]));
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const room = 0.05 * (high - low || 1);
  return [low - room, high + room];
}

const labelsOf = (group) => group.completions.map((_, i) => String(i + 1));
const CATEGORY = { type: "category", tickfont: { size: 10 } };

function drawSimilarity(group, plot) {
  const labels = labelsOf(group);
  Plotly.newPlot(plot, [{
    type: "heatmap", x: labels, y: labels, z: group.similarity, zmin: 0, zmax: 1, colorscale: "Cividis",
    hovertemplate: "%{x} and %{y}: %{z:.3f}<extra></extra>", colorbar: { thickness: 10, outlinewidth: 0 },
  }], layout({ xaxis: CATEGORY, yaxis: { ...CATEGORY, autorange: "reversed" } }), CONFIG);
  plot.on("plotly_click", (event) => see(plot, Number(event.points[0].y) - 1));
}

function drawAdvantages(group, plot, range) {
  const bars = (field, name, colours) => ({
    type: "bar", x: labelsOf(group), y: group.completions.map((c) => c[field]), name, marker: { color: shade(colours) },
    hovertemplate: `%{x}: %{y:.3f}<extra>${name}</extra>`,
  });
  Plotly.newPlot(plot, [bars(WITHOUT, "without DRA", data.methods.without), bars(WITH, "with DRA", data.methods.with)], layout({
    barmode: "group", xaxis: { ...CATEGORY, title: { text: "completion", standoff: 4 } }, margin: { l: 40, r: 8, t: 28, b: 36 },
    yaxis: range === null ? {} : { range }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  }), CONFIG);
  plot.on("plotly_click", (event) => see(plot, event.points[0].pointIndex));
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
  made.style.setProperty("--cluster", clusterColour(completion[CLUSTER]));
  return made;
}

// The card of a picture's completion.
function see(plot, i) {
  document.querySelectorAll(".completion.seen").forEach((seen) => seen.classList.remove("seen"));
  const cards = plot.closest(".side, #group").querySelectorAll(".completion");
  const target = [...cards].filter((card) => Number(card.dataset.first) <= i).pop();
  target.classList.add("seen");
  target.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function move(by) {
  const found = matching();
  const next = found[found.indexOf(at.group) + by];
  if (next !== undefined) { at.group = next; showList(); keepAddress(); }
}

// A run's training and validation, and another run's, are looked at for the same step where there is one.
function choosePart(i) {
  const step = data.shown[at.part].steps[at.step];
  if (at.beside === i) at.beside = at.part; // they change places
  at.part = i;
  at.step = nearest(i, step);
  return moved();
}

function chooseBeside(i) {
  at.beside = i;
  return moved();
}

async function moved() {
  await showStep();
  keepAddress();
}

// The address says what is shown: #run/step/group, or #run:validation/step/group/run beside. Names of runs may hold
// slashes and colons, which are written as % and two digits.
function addressOf(i) {
  const { run, kind } = data.shown[i];
  return `${encodeURIComponent(data.runs[run].name)}:${kind}`;
}

function address() {
  const parts = [addressOf(at.part), data.shown[at.part].steps[at.step], at.group + 1];
  return `#${[...parts, ...(at.beside === null ? [] : [addressOf(at.beside)])].join("/")}`;
}

let kept = null;

function keepAddress() {
  $("missed").textContent = "";
  clearTimeout(kept);
  // Browsers take only so many of these while a slider is dragged.
  kept = setTimeout(() => history.replaceState(null, "", address()), 100);
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; } // a stray %
}

// The last part of that name, which is a run's training where that was recorded; -1 where there is none.
function partOf(text) {
  const [name, kind] = text.split(":");
  return data.shown.findLastIndex((part) =>
    data.runs[part.run].name === decoded(name) && (!kind || part.kind === kind));
}

// Goes to what an address names; false where it names no group of this report.
async function follow(hash) {
  const [run, step, group, other] = hash.replace(/^#/, "").split("/");
  if (!/^\d+$/.test(step ?? "") || !data.shown.length) return false;
  const part = partOf(run);
  if (part < 0) {
    await showStep();
    $("missed").textContent = `The address names ${decoded(run)}, which has no groups in this report.`;
    $("browser").scrollIntoView();
    return false;
  }
  at.part = part;
  at.step = nearest(part, Number(step));
  at.group = Math.max(0, Number(group ?? 1) - 1) || 0;
  at.beside = other === undefined ? null : partOf(other);
  $("search").value = "";
  await showStep();
  const found = data.shown[part].steps[at.step] === Number(step) && (group === undefined || at.group === Number(group) - 1);
  $("missed").textContent = [
    found ? "" : `The address names step ${step}, group ${group ?? 1}, which this report does not have; another is shown.`,
    other === undefined || at.beside !== null ? "" : `It names ${decoded(other)} beside it, which this report does not have.`,
  ].filter(Boolean).join(" ");
  $("browser").scrollIntoView();
  return true;
}

function listen() {
  $("controls").onsubmit = (event) => event.preventDefault();
  $("part").onchange = () => choosePart(Number($("part").value));
  $("beside").onchange = () => chooseBeside($("beside").value === "" ? null : Number($("beside").value));
  $("step").oninput = () => { at.step = Number($("step").value); moved(); };
  $("search").oninput = showList;
  addEventListener("hashchange", () => follow(location.hash));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("browser").hidden) return;
    if (event.target === $("search")) { if (event.key === "Escape") $("search").blur(); return; }
    if (event.target.matches("select, input, pre, .prompt") && event.key.startsWith("Arrow")) return;
    const keys = {
      ArrowLeft: () => { at.step -= 1; moved(); }, ArrowRight: () => { at.step += 1; moved(); },
      j: () => move(1), k: () => move(-1), r: () => choosePart((at.part + 1) % data.shown.length),
      b: () => { const others = [...rivals(), null]; chooseBeside(others[(others.indexOf(at.beside) + 1) % others.length]); },
      "/": () => $("search").focus(),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  DARK.addEventListener("change", () => { drawFamilies(); drawCharts(); drawShares(); showList(); });
}

async function main() {
  const [code, head] = await Promise.all([unpacked("plotly"), unpacked("data")]);
  document.head.append(element("script", { textContent: code }));
  data = JSON.parse(head);
  drawFamilies();
  drawCharts();
  drawShares();
  drawControls();
  $("notes").replaceChildren(...data.notes.map((note) => element("p", {}, note)));
  listen();
  if (data.shown.length) {
    at.part = data.shown.length - 1;
    at.step = data.shown[at.part].steps.length - 1;
    if (!await follow(location.hash) && !groups.length) await showStep();
  }
  document.documentElement.dataset.ready = "yes";
}

main();
