// What leaked: pictures side by side, and every coordinate true against reconstructed.
const TOLERANCE = 0.1;
const EXACT_PSNR = 100;
const RANKS = ["best", "second best", "third best"];

function chosenLeaks() {
  return (data.leaks[state.leaked] ?? []).filter((leak) => !state.hidden.has(data.rows[leak.row].defense)
    && (state.reader === "all" || (state.reader === "strongest" ? leak.strongest
      : data.rows[leak.row].attack === state.reader)));
}

// The records that any leak of this kind of release has, as [key, text] for a list of choices.
function chosenRecords() {
  const longest = (data.leaks[state.leaked] ?? []).reduce(
    (most, leak) => leak.records.length > most.length ? leak.records : most, []);
  const targets = Math.max(0, ...longest.map((one) => one.target + 1));
  return longest.map((one) => [`${one.target}.${one.rank}`, `${one.target + 1} of ${targets}: round ${
    one.round.toLocaleString("en")}${longest.some((other) => other.rank) ? `, ${RANKS[one.rank]} match` : ""}`]);
}

function recordOf(leak) {
  const [target, rank] = state.example.split(".").map(Number);
  return leak.records.find((one) => one.target === target && one.rank === rank) ?? leak.records.at(-1);
}

// Calls show(grid, leaks, row) for every level, one grid a defence.
function byDefense(host, size, show) {
  host.replaceChildren();
  let grid = null;
  let last = null;
  const levels = [];
  for (const leak of chosenLeaks()) {
    const [row, before] = [leak, levels.at(-1)?.[0]].map((one) => one && data.rows[one.row]);
    if (before && before.defense === row.defense && before.level === row.level) levels.at(-1).push(leak);
    else levels.push([leak]);
  }
  for (const own of levels) {
    const row = data.rows[own[0].row];
    if (row.defense !== last) {
      const name = document.createElement("h3");
      name.textContent = row.defense === "none" ? "undefended"
        : row.level === null ? row.defense : `${row.defense}, more private to the right`;
      grid = document.createElement("div");
      grid.className = `panels ${size}`;
      host.append(name, grid);
      last = row.defense;
    }
    show(grid, own, row);
  }
  if (!levels.length) host.textContent = "No reconstruction of this kind was kept.";
}

function levelOnly(row) {
  return row.level === null ? "" : `${row.level_name ?? "level"} ${row.label}`;
}

function foundText(points) {
  const found = points.filter(([a, b]) => Math.abs(a - b) <= TOLERANCE).length;
  return `${found} of ${points.length} coordinates within ${TOLERANCE} σ`;
}

// What a picture shows: of frames how clear it is, else how many coordinates are found.
function pictureText(record) {
  if (record.pictures[1] === null && !record.points.length) return "nothing reconstructed";
  if (record.psnr === null) return foundText(record.points);
  if (record.psnr >= EXACT_PSNR) return "every pixel exact";
  return `PSNR ${record.psnr.toFixed(1)} dB (mean frame: ${record.mean_psnr.toFixed(1)})`;
}

function originText(record) {
  const among = record.of === 1 ? "" : record.of === null ? `, ${RANKS[record.rank]} match of those kept`
    : `, ${RANKS[record.rank]} match of ${record.of}`;
  return `round ${record.round.toLocaleString("en")}${among}`;
}

function tile(place, name, alt, note) {
  const cell = document.createElement("figure");
  const shown = document.createElement(place === null ? "div" : "img");
  if (place === null) {
    shown.className = "unknown";
    shown.textContent = "not drawn";
  } else {
    shown.src = data.pictures[place];
    shown.alt = alt;
  }
  cell.append(shown, Object.assign(document.createElement("figcaption"), { textContent: name }));
  if (note) cell.append(Object.assign(document.createElement("p"), { textContent: note }));
  return cell;
}

function drawPictures() {
  const host = document.getElementById("pictures");
  if (!host) return;
  const several = state.reader === "all";
  byDefense(host, several ? "rows" : "pairs", (grid, leaks, row) => {
    const box = panel(grid, levelOnly(row));
    const tiles = document.createElement("div");
    tiles.className = several ? "poses many" : "poses";
    let last = null;
    for (const leak of leaks) {
      const record = recordOf(leak);
      const attack = data.rows[leak.row].attack;
      const [truth, answer] = record.pictures;
      // The best matched record may be another one for each attack.
      if (truth !== last || last === null) {
        tiles.append(tile(truth, "true", `True state behind a release of ${originText(record)}`,
          several ? originText(record) : ""));
      }
      last = truth;
      tiles.append(tile(answer, `read by ${attack}${several && leak.strongest ? ", the strongest" : ""}`,
        `State reconstructed by ${attack} under ${levelName(row)}: ${pictureText(record)}`,
        several ? pictureText(record) : ""));
    }
    box.append(tiles);
    if (!several) {
      const record = recordOf(leaks[0]);
      box.append(Object.assign(document.createElement("p"), {
        textContent: `${pictureText(record)}; ${originText(record)}` }));
    }
  });
}

function drawScatter() {
  const host = document.getElementById("scatter");
  if (!host) return;
  byDefense(host, "small", (grid, leaks, row) => {
    for (const leak of leaks) {
      const attack = data.rows[leak.row].attack;
      const points = leak.records.flatMap((record) => record.points);
      const reach = 3;
      const axis = { low: -reach, high: reach, ticks: [-2, 0, 2].map((value) => [value, String(value)]) };
      const clip = (value) => Math.min(reach, Math.max(-reach, value));
      const box = panel(grid, levelOnly(row));
      const color = data.defenses.find((defense) => defense.name === row.defense).color;
      plot(box.appendChild(document.createElement("div")), {
        label: `${levelName(row)}: true against reconstructed coordinates by ${attack}, ${foundText(points)}`,
        height: 190, x: { ...axis, label: "true (σ)" }, y: { ...axis, label: "read (σ)" },
        guides: [], series: [
          { color: "var(--quiet)", width: 1, points: [{ x: -reach, y: -reach }, { x: reach, y: reach }] },
          { color, width: 0, marker: "o", radius: 2.6, points: points.map(([a, b]) => ({ x: clip(a), y: clip(b) })) },
        ] });
      box.append(Object.assign(document.createElement("p"), { textContent: `${attack}: ${foundText(points)}` }));
    }
  });
}

// The attacks and examples on offer depend on the kind of release.
function chooseLeaked() {
  const kept = data.leaks[state.leaked] ?? [];
  const readers = [...new Set(kept.map((leak) => data.rows[leak.row].attack))].sort();
  if (![...readers, "all"].includes(state.reader)) state.reader = "strongest";
  choices("reader", [["strongest", "the strongest at each level"],
    ...(readers.length > 1 ? [["all", "all, side by side"]] : []),
    ...readers.map((name) => [name, `${name} alone`])], "reader", drawLeaked);
  const records = chosenRecords();
  if (!records.some(([key]) => key === state.example)) {
    const last = records.filter(([key]) => key.endsWith(".0")).at(-1);
    state.example = last ? last[0] : "";
  }
  choices("example", records, "example", drawPictures);
  for (const note of document.querySelectorAll("[data-release]")) {
    note.hidden = note.dataset.release !== state.leaked;
  }
  drawLeaked();
}

function drawLeaked() {
  drawPictures();
  drawScatter();
}
