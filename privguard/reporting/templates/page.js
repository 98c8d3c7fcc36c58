// The controls: what is chosen, and which charts depend on it.
const data = JSON.parse(document.getElementById("data").textContent);
const imaged = Object.values(data.views).some((view) => "psnr" in view.worst);
// Guessing the background finds nearly all pixels of a game: only leakage tells its levels apart.
const SCORE = imaged ? "leakage" : "ra";
const state = { release: Object.keys(data.views)[0] ?? "probe", attack: "worst", measure: SCORE,
  hidden: new Set(), leaked: Object.keys(data.leaks)[0] ?? "probe", reader: "strongest", example: "" };

function choices(id, options, key, redraw) {
  const select = document.getElementById(id);
  if (!select) return;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, state[key] === value)));
  select.onchange = () => {
    state[key] = select.value;
    redraw();
  };
}

function swatch(style) {
  const svg = draw("svg", { width: 34, height: 16, viewBox: "0 0 34 16", "aria-hidden": "true" });
  const color = paint(style.color);
  if (style.name !== "none") {
    draw("line", { x1: 0, x2: 34, y1: 8, y2: 8, style: `stroke: ${color}`, "stroke-width": 2,
      "stroke-dasharray": (style.dash ?? []).join(" ") || null }, svg);
  }
  if (style.marker) marker(style.marker, 17, 8, 5, { style: `fill: ${color}` }, svg);
  return svg;
}

function legend(id, styles, onToggle) {
  const host = document.getElementById(id);
  host.replaceChildren(...styles.map((style) => {
    const item = document.createElement("li");
    const text = style.text ?? style.name;
    if (!onToggle) {
      item.className = "key";
      item.append(swatch(style), text);
      return item;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(swatch(style), text);
    button.onclick = () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(shown));
      onToggle(style.name, shown);
    };
    item.append(button);
    return item;
  }));
}

function chooseRelease() {
  const attacks = data.views[state.release]?.attacks ?? [];
  if (!attacks.includes(state.attack)) state.attack = "worst";
  choices("attack", [["worst", attacks.length === 1 ? `worst case (${attacks[0]} alone ran)` : `worst case over ${attacks.length} attacks`], ...attacks.map((name) => [name, `${name} alone`])],
    "attack", drawFrontier);
  drawFrontier();
  drawLevels();
  drawEfficiency();
}

function drawAll() {
  chooseRelease();
  drawTraining();
  chooseLeaked();
}

const releases = (names) => names.map((name) => [name,
  name === "probe" ? "probe: single records, the worst case" : "deployed: the minibatches that trained the policy"]);
choices("release", releases(Object.keys(data.views)), "release", chooseRelease);
choices("leaked-release", releases(Object.keys(data.leaks)), "leaked", chooseLeaked);
choices("measure", [["ra", "reconstruction accuracy (RA)"], ["leakage", "leakage"], ["identified", "identified"],
  ["nmse", "error (NMSE)"], ...(imaged ? [["psnr", "PSNR (dB)"]] : [])], "measure", drawFrontier);
legend("defenses", data.defenses.map((style) => ({ ...style,
  text: style.name === "none" ? "undefended" : style.level_name ? `${style.name} (${style.level_name})` : style.name })),
  (name, shown) => {
    if (shown) state.hidden.delete(name);
    else state.hidden.add(name);
    drawAll();
  });
legend("level-key", [{ name: "worst", text: "worst case", dash: [], marker: "o" },
  ...data.attacks.map(({ name, dash }) => ({ name, dash })),
  { name: "floor", text: "attacker at the floor", dash: [1.5, 3], color: "var(--quiet)" }]);
legend("attack-key", data.attacks);
drawAll();

let width = document.documentElement.clientWidth;
window.addEventListener("resize", () => {
  if (document.documentElement.clientWidth === width) return;
  width = document.documentElement.clientWidth;
  drawAll();
});
