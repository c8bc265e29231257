"use strict";
// Small drawings in SVG: curves with a shared cursor, intervals before and after, bars. All text goes in as text.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const colour = (i) => `var(--c${i % 8})`;

function percent(value, digits = 1) {
  return value == null ? "" : `${(100 * value).toFixed(digits)}%`;
}

function number(value) {
  if (value == null) return "";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// Mean of [step, value] points under a Gaussian window over a fortieth of the curve (it does not lag behind a trend).
function smoothed(points) {
  const sigma = Math.max(1.5, points.length / 40), reach = Math.ceil(3 * sigma);
  return points.map(([x], i) => {
    let sum = 0, weight = 0;
    for (let j = Math.max(0, i - reach); j <= Math.min(points.length - 1, i + reach); j++) {
      const w = Math.exp(-(((i - j) / sigma) ** 2) / 2);
      sum += w * points[j][1];
      weight += w;
    }
    return [x, sum / weight];
  });
}

const tip = {
  show(event, ...lines) {
    const box = document.getElementById("tip");
    box.replaceChildren(...lines.map((line) => el("div", {}, line)));
    box.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
    const above = event.clientY - box.offsetHeight - 12;
    box.style.left = `${Math.max(8, left)}px`;
    box.style.top = `${above > 8 ? above : event.clientY + 18}px`;
  },
  hide() { document.getElementById("tip").hidden = true; },
};

const charts = new Set();      // those on the page share the cursor's step

function lineChart({title, series, format, share, smooth}) {
  const W = 400, H = 210, left = 50, right = 12, top = 10, bottom = 26;
  const all = series.flatMap((s) => s.points), xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  if (y0 >= 0 && y0 < 0.35 * y1) y0 = 0;
  const gap = y1 - y0;
  if (gap < 1e-12) [y0, y1] = y1 > 0 ? [0, 1.5 * y1] : y1 < 0 ? [1.5 * y1, 0] : [0, 1];
  else { y1 += gap * 0.04; if (y0) y0 -= gap * 0.04; }
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (W - left - right);
  const Y = (y) => H - bottom - ((y - y0) / (y1 - y0)) * (H - top - bottom);
  const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": describe(title, series, format)});
  const marks = ticks(y0, y1, 4), whole = marks.every((y) => Math.abs(100 * y - Math.round(100 * y)) < 1e-6);
  for (const y of marks) {
    root.append(svg("line", {class: "gridline", x1: left, x2: W - right, y1: Y(y), y2: Y(y)}));
    root.append(svg("text", {x: left - 7, y: Y(y) + 4, "text-anchor": "end"},
      share ? percent(y, whole ? 0 : 1) : number(y)));
  }
  root.append(svg("text", {x: 2, y: H - 8}, "step"));
  for (const x of ticks(x0, x1, 5).filter(Number.isInteger)) {
    root.append(svg("text", {x: X(x), y: H - 8, "text-anchor": "middle"}, x.toLocaleString("en")));
  }
  root.append(svg("line", {class: "axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom}));
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
  for (const s of series) {
    const drawn = smooth && s.points.length > 15;
    if (drawn) root.append(svg("path", {class: "raw", d: path(s.points), style: `stroke:${s.colour}`}));
    const line = drawn ? smoothed(s.points) : s.points;
    root.append(svg("path", {class: "curve", d: path(line), style: `stroke:${s.colour}`}));
    if (line.length <= 15) {
      for (const [x, y] of line) root.append(svg("circle", {cx: X(x), cy: Y(y), r: 3, style: `fill:${s.colour}`}));
    }
  }
  const cursor = svg("g", {});
  root.append(cursor);
  const point = (step) => {
    cursor.replaceChildren();
    if (step == null || step < x0 || step > x1) return [];
    cursor.append(svg("line", {class: "cursor", x1: X(step), x2: X(step), y1: top, y2: H - bottom}));
    return series.flatMap((s) => {
      const near = nearest(s.points, step);
      cursor.append(svg("circle", {cx: X(near[0]), cy: Y(near[1]), r: 4, style: `fill:${s.colour}`}));
      return [`${series.length > 1 ? s.name + ", " : ""}step ${near[0]}: ${format(near[1])}`];
    });
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const x = x0 + (((event.clientX - box.left) / box.width) * W - left) / (W - left - right) * (x1 - x0);
    const step = nearest(all, Math.max(x0, Math.min(x1, x)))[0];
    charts.forEach((other) => other.point(step));
    tip.show(event, title, ...point(step));
  });
  root.addEventListener("pointerleave", () => { charts.forEach((other) => other.point(null)); tip.hide(); });
  charts.add({point});
  return root;
}

function nearest(points, x) {
  return points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best), points[0]);
}

function describe(title, series, format) {
  const ends = series.map((s) => `${s.name} from ${format(s.points[0][1])} to ${format(s.points.at(-1)[1])}`);
  return `${title}: ${ends.join("; ")}`;
}

// Rows of {label, name, colour, before, after}, each of those {value, low, high} or null, on a scale from 0 to 100 %.
function intervalChart(rows) {
  const W = Math.max(320, Math.min(1080, innerWidth - 90)), step = 46, left = 78, right = 34, top = 12;
  const H = top + step * rows.length + 26;
  const X = (v) => left + v * (W - left - right);
  const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": rows.map((r) =>
    `${r.name}: ${percent(r.before?.value)} before, ${percent(r.after?.value)} after`).join("; ")});
  for (const v of [0, 0.25, 0.5, 0.75, 1]) {
    root.append(svg("line", {class: "gridline", x1: X(v), x2: X(v), y1: top, y2: H - 26}));
    root.append(svg("text", {x: X(v), y: H - 8, "text-anchor": "middle"}, percent(v, 0)));
  }
  rows.forEach((row, i) => {
    const y = top + step * (i + 0.5), g = svg("g", {});
    g.append(svg("text", {class: "strong", x: 0, y: y + 4}, row.label));
    if (row.before && row.after) {
      g.append(svg("line", {x1: X(row.before.value), x2: X(row.after.value), y1: y, y2: y,
        style: `stroke:${row.colour};stroke-width:2;opacity:.35`}));
    }
    for (const [side, filled] of [[row.before, false], [row.after, true]]) {
      if (!side) continue;
      const stroke = filled ? row.colour : "var(--quiet)";
      if (side.low != null) {
        g.append(svg("rect", {x: X(side.low), width: X(side.high) - X(side.low), y: y - 5, height: 10, rx: 3,
          style: `fill:${stroke};opacity:.3`}));
      }
      g.append(svg("circle", {cx: X(side.value), cy: y, r: 6,
        style: `fill:${filled ? row.colour : "var(--card)"};stroke:${stroke};stroke-width:2`}));
    }
    const close = row.before && row.after && Math.abs(X(row.after.value) - X(row.before.value)) < 52;
    if (row.before) g.append(svg("text", {x: X(row.before.value), y: y - 12, "text-anchor":
      close ? (row.before.value <= row.after.value ? "end" : "start") : "middle"}, percent(row.before.value)));
    if (row.after) g.append(svg("text", {class: "strong", x: X(row.after.value), y: y - 12, "text-anchor":
      close ? (row.before.value <= row.after.value ? "start" : "end") : "middle"}, percent(row.after.value)));
    const told = [["before", row.before], ["after", row.after]].filter(([, side]) => side).map(([when, side]) =>
      `${when} ${percent(side.value)}` +
      (side.low == null ? "" : `, 95 % interval ${percent(side.low)} to ${percent(side.high)}`));
    g.addEventListener("pointermove", (event) => tip.show(event, row.name, ...told));
    g.addEventListener("pointerleave", tip.hide);
    root.append(g);
  });
  return root;
}

// How often each reward was given: `bins` of [label, count, colour].
function histogram(bins, W, H, labelled) {
  const most = Math.max(1, ...bins.map((b) => b[1])), foot = labelled ? 20 : 0, head = labelled ? 16 : 0;
  const width = W / bins.length, bar = Math.min(0.84 * width, 0.3 * W);
  const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": bins.map(([label, count]) => `${count} at ${label}`).join(", ")});
  bins.forEach(([label, count, fill], i) => {
    const height = (count / most) * (H - foot - head), x = i * width;
    root.append(svg("rect", {x: x + (width - bar) / 2, y: H - foot - height, width: bar, height, rx: 2,
      style: `fill:${fill}`}));
    if (labelled) {
      root.append(svg("text", {x: x + width / 2, y: H - 5, "text-anchor": "middle"}, label));
      const over = {class: "strong", x: x + width / 2, y: H - foot - height - 5, "text-anchor": "middle"};
      if (count) root.append(svg("text", over, count));
    }
  });
  root.append(svg("line", {class: "axis", x1: 0, x2: W, y1: H - foot, y2: H - foot}));
  return root;
}
