// The picture of one turn: a lane for each part, bars while it worked, crosses where it was killed, the deadline as a line.

const LANES = ["you", "server", "orchestrator", "tool", "model-1", "model-2"];
const LANE = 26;
const LEFT = 92;
const WIDTH = 420;
const NS = "http://www.w3.org/2000/svg";

function shape(parent, kind, attributes, text) {
  const node = document.createElementNS(NS, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  parent.append(node);
  return node;
}

/** [{who, from, to, kind}]: who worked when, by what the log says; whoever was killed worked until then. */
function bars(turn, now, ops) {
  const found = [];
  const open = new Map();
  const end = (who, at) => {
    const bar = open.get(who);
    const death = bar && ops.find((op) => op.died && op.name === who && op.at >= bar.from && op.at < at);
    if (bar) found.push({ ...bar, to: death?.at ?? at });
    open.delete(who);
  };
  for (const mark of turn.marks) {
    if (mark.topic === "turn.claimed")
      (end(mark.who, mark.at), open.set(mark.who, { who: mark.who, from: mark.at, kind: "lead" }));
    if (mark.topic === "tool.call") open.set("tool", { who: "tool", from: mark.at, kind: "work" });
    if (mark.topic === "tool.result" || mark.topic === "tool.gave_up") end("tool", mark.at);
    if (mark.topic === "model.started") {
      for (const who of LANES.filter((lane) => lane.startsWith("model"))) end(who, mark.at);
      open.set(mark.who, { who: mark.who, from: mark.at, kind: "talk" });
    }
    if (mark.topic === "model.result") end(mark.who, mark.at);
  }
  for (const who of [...open.keys()]) end(who, turn.endedAt ?? now);
  return found;
}

/** Draws a turn; `ops` are what happened to processes: [{at, name, what}]. */
export function draw(root, turn, ops, deadlineMs) {
  const now = Date.now();
  const until = Math.max(turn.endedAt ?? now, turn.askedAt + 1000);
  const span = Math.max(until - turn.askedAt, deadlineMs) * 1.02;
  const x = (at) => LEFT + (Math.max(0, Math.min(at - turn.askedAt, span)) / span) * (WIDTH - LEFT - 8);
  const y = (who) => 8 + Math.max(0, LANES.indexOf(LANES.includes(who) ? who : "you")) * LANE;
  const height = LANES.length * LANE + 26;
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "timeline of the turn");
  for (const lane of LANES) {
    shape(svg, "text", { x: 0, y: y(lane) + 13, class: "lane" }, lane);
    shape(svg, "line", { x1: LEFT, x2: WIDTH - 4, y1: y(lane) + 9, y2: y(lane) + 9, class: "rail" });
  }
  for (const bar of bars(turn, now, ops)) {
    const width = Math.max(3, x(bar.to) - x(bar.from));
    shape(svg, "rect", { x: x(bar.from), y: y(bar.who) + 2, width, height: 14, rx: 4, class: `bar ${bar.kind}` });
  }
  const near = ops.filter((op) => op.at >= turn.askedAt && op.at <= until);
  for (const { at, name, died, what } of near) {
    const dot = shape(svg, "g", { class: died ? "died" : "back", transform: `translate(${x(at)} ${y(name) + 9})` });
    if (died) shape(dot, "path", { d: "M-5-5 5 5M5-5-5 5" });
    else shape(dot, "circle", { r: 4 });
    shape(dot, "title", {}, `${name} ${what}`);
  }
  const dot = (at, who, kind, title) =>
    shape(shape(svg, "circle", { cx: x(at), cy: y(who) + 9, r: 5, class: `dot ${kind}` }), "title", {}, title);
  dot(turn.askedAt, "you", "ask", "asked");
  for (const mark of turn.marks.filter((one) => one.topic.startsWith("control."))) dot(mark.at, "you", "control", mark.what);
  for (const mark of turn.marks.filter((one) => one.topic.endsWith(".gave_up")))
    dot(mark.at, "server", "gave-up", mark.what);
  if (turn.endedAt) dot(turn.endedAt, turn.marks.at(-1)?.who === "server" ? "server" : "you", turn.outcome, turn.outcome);
  const limit = x(turn.askedAt + deadlineMs);
  shape(svg, "line", { x1: limit, x2: limit, y1: 0, y2: height - 20, class: "deadline" });
  for (const part of [0, 0.25, 0.5]) {
    const at = turn.askedAt + deadlineMs * part;
    shape(
      svg,
      "text",
      { x: x(at), y: height - 6, "text-anchor": part ? "middle" : "start" },
      `${((deadlineMs * part) / 1000).toFixed(1)} s`,
    );
  }
  shape(
    svg,
    "text",
    { x: limit, y: height - 6, class: "deadline", "text-anchor": "end" },
    `deadline ${deadlineMs / 1000} s`,
  );
  root.replaceChildren(svg);
}

/** The same in words. */
export function list(root, turn, ops) {
  const until = turn.endedAt ?? Date.now();
  const told = [
    { at: turn.askedAt, who: turn.askedBy, what: "asks" },
    ...turn.marks,
    ...ops
      .filter((op) => op.at >= turn.askedAt && op.at <= until)
      .map((op) => ({ at: op.at, who: op.name, what: op.what, died: op.died })),
  ].sort((a, b) => a.at - b.at);
  root.replaceChildren(
    ...told.map(({ at, who, what, died }) => {
      const line = document.createElement("li");
      line.className = died ? "died" : "";
      for (const [name, text] of [
        ["when", `${((at - turn.askedAt) / 1000).toFixed(2)} s`],
        ["who", who],
        ["what", what],
      ]) {
        const part = document.createElement("span");
        part.className = name;
        part.textContent = text;
        line.append(part);
      }
      return line;
    }),
  );
}
