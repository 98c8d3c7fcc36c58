// Draws one chart as SVG. Knows nothing of attacks or defences.
const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

// A series' colour, lighter on a dark page.
function paint(color) {
  return color ? `color-mix(in oklab, ${color} var(--strength), white)` : "var(--ink)";
}

// Three digits, as in the tables: 0.1, 0.03, 1e-3, 30, 1e4.
function short(value) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 0.01 && size < 1e4) {
    return size < 1000 ? String(Number(value.toPrecision(3))) : value.toFixed(0);
  }
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

function scale(axis, from, to) {
  const at = axis.log ? Math.log10 : (value) => value;
  const [low, high] = axis.reversed ? [at(axis.high), at(axis.low)] : [at(axis.low), at(axis.high)];
  return (value) => from + ((at(value) - low) / (high - low || 1)) * (to - from);
}

function niceTicks(axis, wanted) {
  if (axis.ticks) return axis.ticks;
  if (axis.log) {
    const first = Math.ceil(Math.log10(axis.low) - 1e-9);
    const last = Math.floor(Math.log10(axis.high) + 1e-9);
    const step = Math.max(1, Math.ceil((last - first) / wanted));
    const found = [];
    for (let power = first; power <= last; power += step) found.push([10 ** power, short(10 ** power)]);
    return found;
  }
  const raw = (axis.high - axis.low) / wanted;
  const base = 10 ** Math.floor(Math.log10(raw));
  const step = base * ([1, 2, 5, 10].find((factor) => factor * base >= raw) ?? 10);
  const found = [];
  for (let value = Math.ceil(axis.low / step) * step; value <= axis.high + step * 1e-9; value += step) {
    const clean = Math.abs(value) < step * 1e-9 ? 0 : value;
    found.push([clean, axis.format ? axis.format(clean) : short(Number(clean.toPrecision(6)))]);
  }
  return found;
}

const STAR = Array.from({ length: 10 }, (_, i) => {
  const [angle, length] = [(i * Math.PI) / 5 - Math.PI / 2, i % 2 ? 0.45 : 1.15];
  return [Math.cos(angle) * length, Math.sin(angle) * length];
});
function polygon(sides, turn, stretch = 1) {
  return Array.from({ length: sides }, (_, i) => {
    const angle = (i * 2 * Math.PI) / sides + turn - Math.PI / 2;
    return [Math.cos(angle) * stretch, Math.sin(angle) * stretch];
  });
}
const CROSS = [[-0.35, -1], [0.35, -1], [0.35, -0.35], [1, -0.35], [1, 0.35], [0.35, 0.35],
  [0.35, 1], [-0.35, 1], [-0.35, 0.35], [-1, 0.35], [-1, -0.35], [-0.35, -0.35]];
const SHAPES = {
  s: polygon(4, Math.PI / 4, 1.15), "^": polygon(3, 0, 1.2), v: polygon(3, Math.PI, 1.2),
  "<": polygon(3, -Math.PI / 2, 1.2), ">": polygon(3, Math.PI / 2, 1.2), D: polygon(4, 0, 1.2),
  h: polygon(6, 0, 1.1), p: polygon(5, 0, 1.1), P: CROSS, "*": STAR,
};

function marker(shape, x, y, radius, attributes, parent) {
  const corners = SHAPES[shape];
  if (!corners) return draw("circle", { cx: x, cy: y, r: radius, ...attributes }, parent);
  const size = shape === "*" ? radius * 1.5 : radius;
  const points = corners.map(([a, b]) => `${(x + a * size).toFixed(1)},${(y + b * size).toFixed(1)}`);
  return draw("polygon", { points: points.join(" "), ...attributes }, parent);
}

// plot(host, {label, height, x, y, guides, areas, series, names, choose})
//   x, y: {low, high, log, reversed, label, ticks, format}
//   series: [{name, color, marker, dash, width, points: [{x, y, xlow, xhigh, ylow, yhigh, limit,
//            text, title, hollow, ring, cut}]}]; a point with a title can be reached and chosen.
function plot(host, spec) {
  const width = Math.max(host.clientWidth, 140);
  const height = spec.height;
  const edge = { left: spec.y.label ? 46 : 34, right: 14, top: 10, bottom: spec.x.label ? 40 : 24 };
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, height,
    role: "group", "aria-label": spec.label });
  const x = scale(spec.x, edge.left, width - edge.right);
  const y = scale(spec.y, height - edge.bottom, edge.top);
  axes(svg, spec, x, y, edge, width, height);
  for (const area of spec.areas ?? []) {
    draw("rect", { x: x(area.x0), width: x(area.x1) - x(area.x0), y: y(area.y1),
      height: Math.max(0, y(area.y0) - y(area.y1)), class: area.class }, svg);
    if (area.text) {
      draw("text", { x: x(area.x1) - 4, y: y(area.y0) - 4, "text-anchor": "end", class: "good-text" },
        svg, area.text);
    }
  }
  for (const guide of spec.guides ?? []) {
    const across = guide.y !== undefined;
    const at = across ? y(guide.y) : x(guide.x);
    draw("line", across ? { x1: edge.left, x2: width - edge.right, y1: at, y2: at, class: guide.class }
      : { x1: at, x2: at, y1: edge.top, y2: height - edge.bottom, class: guide.class }, svg);
    if (guide.text) {
      const wide = guide.text.length * 6;
      const clear = (left) => !spec.series.some((one) => one.points.some((point) => point.y !== null
        && Math.abs(y(point.y) - at) < 20 && x(point.x) > left - 40 && x(point.x) < left + wide + 40));
      const [left, right] = [edge.left + 4, width - edge.right - wide - 4];
      const start = [(left + right) / 2, left, right].find(clear) ?? left;
      draw("text", { x: start, y: at - 4, class: "guide-text name" }, svg, guide.text);
    }
  }
  const reached = [];
  for (const series of spec.series) curve(svg, series, x, y, spec, reached);
  roving(reached, spec.choose);
  if (spec.names) names(svg, spec, x, y, { left: edge.left, top: edge.top, right: width - edge.right,
    bottom: height - edge.bottom });
  host.replaceChildren(svg);
}

function axes(svg, spec, x, y, edge, width, height) {
  const bottom = height - edge.bottom;
  for (const [value, text] of niceTicks(spec.y, Math.max(3, height / 60))) {
    draw("line", { x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value), class: "grid" }, svg);
    draw("text", { x: edge.left - 6, y: y(value) + 4, "text-anchor": "end", class: "tick" }, svg, text);
  }
  let free = -Infinity;
  const ticks = niceTicks(spec.x, width / 80).map(([value, text]) => [x(value), text]);
  for (const [at, text] of ticks.sort((a, b) => a[0] - b[0])) {
    draw("line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, class: "axis" }, svg);
    const half = text.length * 3.3;
    if (at - half < free) continue;
    free = at + half + 4;
    draw("text", { x: at, y: bottom + 16, "text-anchor": "middle", class: "tick" }, svg, text);
  }
  draw("line", { x1: edge.left, x2: width - edge.right, y1: bottom, y2: bottom, class: "axis" }, svg);
  const middle = (edge.left + width - edge.right) / 2;
  if (spec.x.label) {
    draw("text", { x: middle, y: height - 6, "text-anchor": "middle" }, svg, spec.x.label);
  }
  if (spec.y.label) {
    const center = (edge.top + bottom) / 2;
    draw("text", { x: 12, y: center, "text-anchor": "middle", transform: `rotate(-90 12 ${center})` },
      svg, spec.y.label);
  }
}

function curve(svg, series, x, y, spec, reached) {
  const color = paint(series.color);
  const known = series.points.filter((point) => point.y !== null && point.x !== null);
  const placed = known.map((point) => [x(point.x), y(point.y), point]);
  if (series.width !== 0 && placed.length > 1) {
    draw("polyline", { points: placed.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" "),
      fill: "none", style: `stroke: ${color}`, "stroke-width": series.width ?? 1.8,
      "stroke-dasharray": (series.dash ?? []).join(" ") || null, opacity: 0.85 }, svg);
  }
  for (const [a, b, point] of placed) {
    const bar = { style: `stroke: ${color}`, "stroke-width": 1.2, opacity: 0.6 };
    if (point.ylow !== undefined) draw("line", { x1: a, x2: a, y1: y(point.ylow), y2: y(point.yhigh), ...bar }, svg);
    if (point.xlow !== undefined) draw("line", { x1: x(point.xlow), x2: x(point.xhigh), y1: b, y2: b, ...bar }, svg);
    if (point.limit !== undefined && point.limit !== null) {
      draw("line", { x1: a - 9, x2: a + 9, y1: y(point.limit), y2: y(point.limit),
        style: `stroke: ${color}`, "stroke-width": 3 }, svg);
    }
  }
  if (!series.marker) return;
  for (const [a, b, point] of placed) {
    const group = draw("g", { class: "point" }, svg);
    const radius = series.radius ?? 6;
    marker(series.marker, a, b, radius, { style: `fill: ${point.hollow ? "var(--paper)" : color}; stroke: ${
      point.ring ? "var(--ink)" : point.hollow ? color : "var(--paper)"}`, "stroke-width": point.ring ? 2 : 1 }, group);
    if (point.hollow) {
      draw("path", { d: `M${a - 4} ${b - 4}l8 8m0 -8l-8 8`, stroke: "var(--quiet)", "stroke-width": 1.5 }, group);
    }
    if (point.cut) {
      draw("path", { d: `M${a - radius - 3} ${b}h-10m4 -4l-4 4l4 4`, stroke: "var(--quiet)", fill: "none" }, group);
    }
    if (!point.title) continue;
    draw("circle", { cx: a, cy: b, r: radius + 6, class: "halo" }, group);
    group.setAttribute("role", "img");
    group.setAttribute("aria-label", point.title.replaceAll("\n", ", "));
    reached.push([group, point]);
  }
}

// One tab stop a chart; arrow keys go from point to point.
function roving(reached, choose) {
  const go = (index) => reached[(index + reached.length) % reached.length][0].focus();
  reached.forEach(([group, point], index) => {
    group.setAttribute("tabindex", index ? -1 : 0);
    const show = () => {
      tip(group, point.title);
      choose?.(point, group);
    };
    group.addEventListener("pointerenter", show);
    group.addEventListener("focus", show);
    group.addEventListener("click", show);
    group.addEventListener("pointerleave", () => tip(null));
    group.addEventListener("blur", () => tip(null));
    group.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      reached.forEach(([other]) => other.setAttribute("tabindex", -1));
      const next = (index + step + reached.length) % reached.length;
      reached[next][0].setAttribute("tabindex", 0);
      go(next);
    });
  });
}

function tip(target, text) {
  const box = document.getElementById("tip");
  box.hidden = !target;
  if (!target) return;
  box.textContent = text;
  const place = target.getBoundingClientRect();
  const left = Math.min(place.right + 6, document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(4, left) + window.scrollX}px`;
  box.style.top = `${place.top + window.scrollY - box.offsetHeight - 4}px`;
}

// Names beside points where there is room; every name is also in the point's title.
function names(svg, spec, x, y, frame) {
  const taken = [];
  for (const series of spec.series) {
    for (const point of series.points) {
      if (point.y !== null) taken.push([x(point.x) - 6, y(point.y) - 6, x(point.x) + 6, y(point.y) + 6]);
    }
  }
  const hits = (box) => taken.some((other) => box[0] < other[2] && box[2] > other[0]
    && box[1] < other[3] && box[3] > other[1]);
  for (const series of spec.series) {
    for (const point of series.points) {
      if (!point.text || point.y === null) continue;
      const [a, b, wide] = [x(point.x), y(point.y), point.text.length * 6.2 + 2];
      const places = [[9, -6], [-9 - wide, -6], [-wide / 2, -21], [-wide / 2, 9], [7, -19], [7, 7],
        [-7 - wide, -19], [-7 - wide, 7]];
      const spot = places.map(([dx, dy]) => [a + dx, b + dy, a + dx + wide, b + dy + 12])
        .find((box) => !hits(box) && box[0] >= frame.left && box[2] <= frame.right + 12
          && box[1] >= frame.top - 8 && box[3] <= frame.bottom);
      if (!spot) continue;
      taken.push(spot);
      draw("text", { x: spot[0] + 1, y: spot[3] - 2, class: "name",
        style: `fill: ${series.color ? `color-mix(in oklab, ${series.color} 40%, var(--ink))` : "var(--ink)"}` },
        svg, point.text);
    }
  }
}
