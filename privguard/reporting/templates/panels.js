// Small charts, one a defence: against the level, attacks' efficiency, training.
const HIGHEST_EFFICIENCY = 1.3;
const LEAST_FLOOR = 1e-6; // below, the floor is rounding: nothing hides, and a ratio says nothing
const DASHES = [[], [6, 2], [1.5, 1.5], [6, 2, 1.5, 2], [3, 1.5]];

function panel(host, heading) {
  const box = document.createElement("div");
  box.className = "panel";
  if (heading) box.append(Object.assign(document.createElement(host.closest("[data-parts]") ? "h4" : "h3"), { textContent: heading }));
  host.append(box);
  return box;
}

function chartIn(box, spec) {
  const host = document.createElement("div");
  box.append(host);
  plot(host, spec);
}

function levelled() {
  return data.defenses.filter((defense) => !state.hidden.has(defense.name)
    && data.rows.some((row) => row.defense === defense.name && row.level !== null));
}

// More private is always to the right.
function levelAxis(defense, label) {
  const levels = [...new Set(data.rows.filter((row) => row.defense === defense.name && row.level !== null)
    .map((row) => row.level))].sort((a, b) => a - b);
  const ticks = levels.map((level) => [level, short(level)]);
  const [least, most] = [levels[0], levels[levels.length - 1]];
  const log = defense.log && least > 0;
  const margin = log ? (most / least) ** 0.06 || 1.1 : 0.08 * (most - least) || 1;
  return { log, ticks, reversed: defense.private_end === "low", low: log ? least / margin : least - margin,
    high: log ? most * margin : most + margin,
    label: label ? `${defense.level_name ?? "level"} (more private →)` : "" };
}

function ownRows(places, defense) {
  return (places ?? []).map((place) => data.rows[place]).filter((row) => row.defense === defense.name && row.level !== null);
}

function drawLevels() {
  const host = document.getElementById("levels");
  host.replaceChildren();
  const view = data.views[state.release];
  const control = data.trained.map((place) => data.rows[place]).find((row) => row.defense === "none");
  const every = returnAxis(data.trained.map((place) => data.rows[place]));
  for (const defense of levelled()) {
    const box = panel(host, defense.name);
    const strongest = ownRows(view?.worst.ra, defense);
    if (strongest.length) {
      const attacks = data.attacks.map((attack) => ({
        name: attack.name, color: defense.color, dash: attack.dash, width: 1.1,
        points: ownRows(view.alone[attack.name], defense).map((row) => ({ x: row.level, y: row[`${SCORE}_mean`] })),
      }));
      const floor = { name: "floor", color: "var(--quiet)", dash: [1.5, 3],
        points: strongest.map((row) => ({ x: row.level, y: MEASURES[SCORE].limit(row) })) };
      const worst = { ...defense, dash: [], width: 2.2, points: strongest.map((row) => ({
        x: row.level, y: row[`${SCORE}_mean`], ylow: row[`${SCORE}_low`] ?? undefined,
        yhigh: row[`${SCORE}_high`] ?? undefined, hollow: !row.usable, title: title(row, SCORE), row })) };
      const prior = imaged ? 0 : mean(strongest.map((row) => row.ra_prior));
      chartIn(box, { label: `${defense.name}: ${MEASURES[SCORE].label} against level, ${state.release} releases`,
        height: 190, x: levelAxis(defense, false), y: { low: -0.04, high: 1.06, label: imaged ? "leakage" : "accuracy" },
        guides: prior === null ? [] : [{ y: prior, class: "chance" }],
        series: [...attacks, floor, worst], choose: (point, group) => showDetails(point.row, group) });
    } else {
      box.append(Object.assign(document.createElement("p"), { textContent: `No attacked ${state.release} release.` }));
    }
    const trained = ownRows(data.trained, defense)
      .sort((a, b) => a.level - b.level).filter((row) => row[`${every.name}_mean`] !== null);
    if (!trained.length) continue;
    const points = trained.map((row) => {
      const at = row[`${every.name}_mean`];
      const bar = at < every.clip ? {} : within(every, row, every.name);
      return { x: row.level, y: Math.max(at, every.clip), ylow: bar.low, yhigh: bar.high, hollow: !row.usable,
        title: `${levelName(row)}\nreturn ${interval(row, "return")}${data.normalized
          ? `\nnormalised ${interval(row, "normalized_return")}` : ""}`, row };
    });
    const guides = [{ y: data.normalized ? 0 : data.training.idle, class: "idle" },
      { y: control?.[`${every.name}_mean`], class: "guide" }];
    chartIn(box, { label: `${defense.name}: return against level`, height: 190,
      x: levelAxis(defense, true), y: { low: every.low, high: every.high, label: data.normalized ? "norm. return" : "return" },
      guides: guides.filter((guide) => guide.y !== null && guide.y !== undefined),
      series: [{ ...defense, dash: [], points }], choose: (point, group) => showDetails(point.row, group) });
  }
}

function drawEfficiency() {
  const host = document.getElementById("efficiency");
  host.replaceChildren();
  const view = data.views[state.release];
  for (const defense of levelled()) {
    const series = data.attacks.map((attack) => ({ ...attack, width: 1.4, radius: 4.5,
      points: ownRows(view?.alone[attack.name], defense).filter((row) => row.efficiency !== null && row.floor_nmse >= LEAST_FLOOR).map((row) => ({
        x: row.level, y: Math.min(row.efficiency, HIGHEST_EFFICIENCY), row,
        title: `${levelName(row)}\n${attack.name}: efficiency ${short(row.efficiency)}\nfloor ${
          short(row.floor_nmse)}, error ${short(row.nmse_mean)}` })) }));
    if (!series.some((one) => one.points.length)) continue;
    chartIn(panel(host, defense.name), { label: `${defense.name}: efficiency of each attack against level`,
      height: 210, x: levelAxis(defense, true), y: { low: -0.04, high: HIGHEST_EFFICIENCY + 0.04, label: "floor / error" },
      guides: [{ y: 1, class: "chance" }], series, choose: (point, group) => showDetails(point.row, group) });
  }
  if (!host.children.length) host.textContent = "No floor limits these releases: it needs noise that the bound models, continuous actions and dense networks.";
}

const thousands = (value) => value >= 1e6 ? `${short(value / 1e6)}M` : value ? `${short(value / 1e3)}k` : "0";

function drawTraining() {
  const host = document.getElementById("training");
  host.replaceChildren();
  const { curves, random, zero, idle } = data.training;
  if (!curves.length) {
    host.textContent = "No cell has been evaluated yet.";
    return;
  }
  const control = curves.find((curve) => curve.defense === "none");
  const all = curves.flatMap((curve) => curve.returns);
  const anchors = [idle, random].filter((value) => value !== null);
  const top = Math.max(...all, ...anchors);
  const bottom = Math.max(Math.min(...all), Math.min(...anchors, ...(control?.returns ?? []), (idle ?? -Infinity) - 0.6 * (top - (idle ?? top))));
  const low = Number.isFinite(bottom) ? bottom : Math.min(...all);
  const margin = 0.05 * (top - low) || 1;
  const y = { low: low - margin, high: top + margin, label: "return" };
  const x = { low: 0, high: Math.max(...curves.flatMap((curve) => curve.steps)) * 1.12, label: "environment steps", format: thousands };
  const guides = [{ y: zero, class: "idle" }, { y: random, class: "idle" }]
    .filter((guide) => guide.y !== null && guide.y >= y.low);
  const shown = data.defenses.filter((defense) => !state.hidden.has(defense.name)
    && curves.some((curve) => curve.defense === defense.name));
  const panels = shown.length > 1 ? shown.filter((defense) => defense.name !== "none") : shown;
  for (const defense of panels) {
    const own = curves.filter((curve) => curve.defense === defense.name)
      .sort((a, b) => (a.level - b.level) * (defense.private_end === "low" ? -1 : 1));
    const line = (curve, look) => ({ ...look,
      // A line needs two points.
      marker: curve.steps.length === 1 ? "o" : undefined, radius: 3, points: curve.steps.map((step, index) => ({
      x: step, y: Math.max(curve.returns[index], y.low),
      text: index === curve.steps.length - 1 ? look.text : undefined })) });
    const series = own.map((curve, index) => {
      const strength = own.length > 1 ? 60 + (40 * index) / (own.length - 1) : 100;
      return line(curve, { color: `color-mix(in oklab, ${defense.color ?? "var(--ink)"} ${strength}%, var(--paper))`,
        dash: DASHES[index % DASHES.length], width: 1.8, text: curve.level === null ? defense.name : short(curve.level) });
    });
    if (control && defense.name !== "none") series.unshift(line(control, { color: "var(--ink)", dash: [6, 3], width: 1.2, text: "none" }));
    chartIn(panel(host, defense.level_name ? `${defense.name} (${defense.level_name})` : defense.name), {
      label: `${defense.name}: return during training, ${own.length} levels`, height: 220, x, y, guides, series, names: true });
  }
}
