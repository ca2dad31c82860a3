// What lies under the pointer, of charts that say it in their attribute data-hover (chart.py, heat_map.py); of all else
// <title> does.
"use strict";
const tip = document.getElementById("tip");

function show(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const right = event.clientX + 16 + tip.offsetWidth > window.innerWidth;
  tip.style.left = (right ? event.clientX - 12 - tip.offsetWidth : event.clientX + 16) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 8) + "px";
}

// Index of the entry of a sorted list that is nearest to a value.
function nearest(list, value) {
  let best = 0;
  list.forEach((x, i) => { if (Math.abs(list[best] - value) > Math.abs(x - value)) best = i; });
  return best;
}

function number(value) {
  if (value === null) return "not finite";
  const size = Math.abs(value);
  if (size >= 1000) return value.toLocaleString("en", {maximumFractionDigits: 0});
  return size === 0 || size >= 1e-4 ? String(Number(value.toPrecision(4))) : value.toPrecision(3);
}

// Curves: {x: name of the axis, low, high: its ends, left, right: their pixels, unit, series: [{name, xs, ys}]}.
function curves(svg, data, at, event) {
  const x = data.low + (at.x - data.left) / (data.right - data.left) * (data.high - data.low);
  const reach = 8 / (data.right - data.left) * (data.high - data.low);
  const hits = data.series.map((s) => ({s, i: nearest(s.xs, x)}));
  const first = hits.reduce((a, b) => Math.abs(b.s.xs[b.i] - x) >= Math.abs(a.s.xs[a.i] - x) ? a : b);
  const place = first.s.xs[first.i];
  const lines = hits.filter((h) => reach >= Math.abs(h.s.xs[h.i] - place)).map((h) => {
    const where = h.s.xs[h.i] === place ? "" : " (" + data.x + " " + number(h.s.xs[h.i]) + ")";
    return h.s.name + ": " + number(h.s.ys[h.i]) + where;
  });
  const cursor = svg.querySelector(".cursor");
  const pixel = data.left + (place - data.low) / (data.high - data.low) * (data.right - data.left);
  cursor.setAttribute("x1", pixel);
  cursor.setAttribute("x2", pixel);
  cursor.style.visibility = "visible";
  show(event, data.x + " " + number(place) + (data.unit ? ", " + data.unit : "") + "\n" + lines.join("\n"));
}

// Cells: {xs: left edges and the last right one, top, height: of a row, columns, rows: names, unit, values[row][column]}.
function cells(svg, data, at, event) {
  const row = Math.floor((at.y - data.top) / data.height);
  const column = data.xs.findIndex((x) => x > at.x) - 1;
  if (!(row in data.values) || !(column in data.columns)) { tip.hidden = true; return; }
  show(event, data.rows[row] + ", " + data.columns[column] + "\n" + number(data.values[row][column]) + " " + data.unit);
}

document.querySelectorAll("svg[data-hover]").forEach((svg) => {
  const data = JSON.parse(svg.dataset.hover);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const at = {x: (event.clientX - box.left) * view.width / box.width, y: (event.clientY - box.top) * view.height / box.height};
    (data.series ? curves : cells)(svg, data, at, event);
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    const cursor = svg.querySelector(".cursor");
    if (cursor) cursor.style.visibility = "hidden";
  });
});
