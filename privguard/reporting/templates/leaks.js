// What leaked: pictures side by side, and every coordinate true against reconstructed.
const TOLERANCE = 0.1;

function shownLeaks() {
  return data.leaks.filter((leak) => !state.hidden.has(data.rows[leak.row].defense));
}

// Calls show(grid, leak) for every leak, one grid a defence.
function byDefense(host, size, show) {
  host.replaceChildren();
  let grid = null;
  let last = null;
  for (const leak of shownLeaks()) {
    const row = data.rows[leak.row];
    if (row.defense !== last) {
      const name = document.createElement("h3");
      name.textContent = row.defense === "none" ? "undefended" : `${row.defense}, more private to the right`;
      grid = document.createElement("div");
      grid.className = `panels ${size}`;
      host.append(name, grid);
      last = row.defense;
    }
    show(grid, leak, row);
  }
}

function levelOnly(row) {
  return row.level === null ? "" : `${row.level_name ?? "level"} ${row.label}`;
}

function foundText(points) {
  const found = points.filter(([a, b]) => Math.abs(a - b) <= TOLERANCE).length;
  return `${found} of ${points.length} coordinates within ${TOLERANCE} σ`;
}

// What a picture shows: of frames how clear it is, else how many coordinates are found.
function pictureText(leak, example) {
  if (!leak.psnr.length) return foundText(leak.points[example]);
  const psnr = leak.psnr[example];
  return psnr === null ? "not reconstructed" : `PSNR ${psnr.toFixed(1)} dB over all frames`;
}

function drawPictures() {
  const host = document.getElementById("pictures");
  if (!host) return;
  byDefense(host, "pairs", (grid, leak, row) => {
    const example = Math.min(state.example, leak.pictures.length - 1);
    const box = panel(grid, levelOnly(row));
    const pair = document.createElement("div");
    pair.className = "poses";
    const names = ["true", `read by ${row.attack}`];
    leak.pictures[example].forEach((picture, index) => {
      const cell = document.createElement("div");
      const shown = document.createElement(picture ? "img" : "div");
      if (picture) {
        shown.src = picture;
        shown.alt = index ? `State reconstructed by ${row.attack} under ${levelName(row)}: ${pictureText(leak, example)}`
          : `True state behind a release of round ${leak.rounds[example]}`;
      } else {
        shown.className = "unknown";
        shown.textContent = "not drawn";
      }
      cell.append(shown, Object.assign(document.createElement("span"), { textContent: names[index] }));
      pair.append(cell);
    });
    box.append(pair, Object.assign(document.createElement("p"), {
      textContent: `${pictureText(leak, example)}; round ${leak.rounds[example].toLocaleString("en")}` }));
  });
}

function drawScatter() {
  const host = document.getElementById("scatter");
  byDefense(host, "small", (grid, leak, row) => {
    const points = leak.points.flat();
    const reach = 3;
    const axis = { low: -reach, high: reach, ticks: [-2, 0, 2].map((value) => [value, String(value)]) };
    const clip = (value) => Math.min(reach, Math.max(-reach, value));
    const box = panel(grid, levelOnly(row));
    const color = data.defenses.find((defense) => defense.name === row.defense).color;
    plot(box.appendChild(document.createElement("div")), {
      label: `${levelName(row)}: true against reconstructed coordinates by ${row.attack}, ${foundText(points)}`,
      height: 190, x: { ...axis, label: "true (σ)" }, y: { ...axis, label: "read (σ)" },
      guides: [], series: [
        { color: "var(--quiet)", width: 1, points: [{ x: -reach, y: -reach }, { x: reach, y: reach }] },
        { color, width: 0, marker: "o", radius: 2.6, points: points.map(([a, b]) => ({ x: clip(a), y: clip(b) })) },
      ] });
    box.append(Object.assign(document.createElement("p"), { textContent: `${row.attack}: ${foundText(points)}` }));
  });
}
