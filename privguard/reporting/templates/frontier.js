// The frontier: what leaks against what the policy earns, under the chosen attack and measure.
const MEASURES = {
  ra: { label: "reconstruction accuracy", low: -0.04, high: 1.06, chance: "ra_prior",
    chanceText: "guessing from the prior", limit: (row) => row.limit_ra },
  leakage: { label: "leakage", low: -0.04, high: 1.06, chanceText: "nothing learnt from the gradient",
    limit: (row) => row.limit_ra === null || row.ra_prior === null || row.ra_prior >= 1 ? null
      : Math.max(0, (row.limit_ra - row.ra_prior) / (1 - row.ra_prior)) },
  identified: { label: "records identified among 1,000", low: -0.04, high: 1.06,
    chance: "identified_prior", chanceText: "guessing from the prior", limit: () => null },
  nmse: { label: "error (NMSE), high is private", log: true, chanceText: "guessing the mean",
    limit: (row) => row.floor_nmse },
  psnr: { label: "PSNR of the frames (dB)", free: true, chance: "psnr_prior",
    chanceText: "guessing from the prior", limit: () => null },
};
const SMALLEST_ERROR = 1e-6;

function mean(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function interval(row, name) {
  const at = row[`${name}_mean`];
  if (at === null || at === undefined) return "not measured";
  const [low, high] = [row[`${name}_low`], row[`${name}_high`]];
  return low === null || low === undefined ? short(at) : `${short(at)} [${short(low)}, ${short(high)}]`;
}

function levelName(row) {
  if (row.defense === "none") return "no defence";
  return row.level === null ? row.defense : `${row.defense}, ${row.level_name ?? "level"} ${row.label}`;
}

function title(row, measure) {
  const reward = data.normalized ? `normalised return ${interval(row, "normalized_return")}` : `return ${interval(row, "return")}`;
  return `${levelName(row)}\n${MEASURES[measure].label} ${interval(row, measure)}${
    row.attack ? ` (${row.attack})` : ""}\n${reward}${row.usable ? "" : `\n${row.state}`}`;
}

function shownRows() {
  const view = data.views[state.release];
  if (!view) return [];
  const places = state.attack === "worst" ? view.worst[state.measure] ?? [] : view.alone[state.attack] ?? [];
  return places.map((place) => data.rows[place]).filter((row) => !state.hidden.has(row.defense));
}

function returnAxis(rows) {
  const name = data.normalized ? "normalized_return" : "return";
  const found = rows.map((row) => row[`${name}_mean`]).filter((value) => value !== null);
  const clip = data.normalized ? data.limits.clip : -Infinity;
  const [least, most] = data.normalized ? [Math.min(0, ...found), Math.max(1, ...found)]
    : [Math.min(...found), Math.max(...found)];
  const margin = data.normalized ? 0.08 : 0.08 * (most - least) || 1;
  const label = data.normalized ? "normalised return (0 = idle, 1 = undefended)"
    : "return (sum of an episode's rewards)";
  return { name, clip, low: Math.max(least, clip) - margin, high: most + margin, label };
}

function within(axis, row, name) {
  const [low, high] = [row[`${name}_low`], row[`${name}_high`]];
  if (low === null || low === undefined || high === null) return {};
  return { low: Math.max(low, axis.low), high: Math.min(high, axis.high) };
}

function drawFrontier() {
  const host = document.getElementById("frontier-chart");
  const measure = MEASURES[state.measure];
  const rows = shownRows().filter((row) => row[`${state.measure}_mean`] !== null);
  const axis = returnAxis(rows);
  const drawable = rows.filter((row) => row[`${axis.name}_mean`] !== null);
  if (!drawable.length) {
    host.textContent = "Nothing to draw: no level has both a return and this score under this choice.";
    return;
  }
  const value = (row) => measure.log ? Math.max(row.nmse_mean, SMALLEST_ERROR) : row[`${state.measure}_mean`];
  const y = { label: measure.label, log: measure.log, low: measure.low, high: measure.high };
  if (measure.log) {
    const all = [1, ...drawable.flatMap((row) => [value(row), row.nmse_low, row.nmse_high, measure.limit(row)])
      .filter((v) => v !== null)];
    [y.low, y.high] = [Math.max(SMALLEST_ERROR, Math.min(...all)) / 1.5, Math.max(...all) * 1.5];
  }
  if (measure.free) {
    const all = drawable.flatMap((row) => [value(row), row[measure.chance]]).filter((v) => v !== null);
    [y.low, y.high] = [Math.min(...all) - 2, Math.max(...all) + 2];
  }
  const front = new Set(state.attack === "worst" ? data.views[state.release].front : []);
  const series = data.defenses.map((defense) => ({
    ...defense, radius: defense.name === "none" ? 9 : 6,
    points: drawable.filter((row) => row.defense === defense.name).map((row) => {
      const at = row[`${axis.name}_mean`];
      const across = at < axis.clip ? {} : within(axis, row, axis.name);
      const up = within(y, row, state.measure);
      const limit = measure.limit(row);
      return {
        x: Math.max(at, axis.clip), y: value(row), xlow: across.low, xhigh: across.high,
        ylow: up.low, yhigh: up.high, cut: at < axis.clip, hollow: !row.usable,
        ring: front.has(data.rows.indexOf(row)),
        limit: limit === null || limit === undefined ? null : Math.min(Math.max(limit, y.low), y.high),
        text: defense.name === "none" ? "undefended" : row.label, title: title(row, state.measure), row,
      };
    }),
  }));
  const chance = measure.log ? 1 : measure.chance ? mean(drawable.map((row) => row[measure.chance])) : 0;
  const guides = chance === null ? [] : [{ y: chance, class: "chance", text: measure.chanceText }];
  const areas = [];
  if (data.normalized) {
    guides.push({ x: 0, class: "grid" }, { x: 1, class: "grid" });
    if (state.measure === "ra" || state.measure === "leakage") {
      areas.push({ x0: 1 - data.limits.loss, x1: axis.high, y0: y.low,
        y1: chance + data.limits.leakage * (1 - chance), class: "good", text: "good" });
    }
  }
  plot(host, {
    label: `Frontier, ${state.release} releases: ${measure.label} against return of ${drawable.length} levels. `
      + "Arrow keys go from point to point; the tables below hold the same numbers.",
    height: Math.min(560, Math.max(380, host.clientWidth * 0.6)), x: axis, y, areas, guides, series,
    names: true, choose: (point, group) => showDetails(point.row, group),
  });
}

function showDetails(row, group) {
  document.querySelectorAll(".point.chosen").forEach((other) => other.classList.remove("chosen"));
  group?.classList.add("chosen");
  const list = document.createElement("dl");
  for (const column of data.columns) {
    const value = row[column];
    if (value === null || value === "") continue;
    const [name, text] = [document.createElement("dt"), document.createElement("dd")];
    name.textContent = column;
    text.textContent = typeof value === "number" && column !== "level" ? short(value) : String(value);
    text.title = String(value);
    list.append(name, text);
  }
  const heading = document.createElement("h3");
  heading.textContent = levelName(row);
  document.getElementById("details").replaceChildren(heading, list);
}
