// The page: a client of the server like any other. It talks to the WebSocket directly; the launcher only serves these files.
//
//   session S (log) ─► Story ─► conversation, timeline          room `agents` ─► cards          bucket `agents` ◄─► what models do
//   session `ops` ◄─ ops.kill    ─► ops.died, ops.started       room S ─► how many devices

import { Client } from "./tidegate.js";
import { Agents } from "./agents.js";
import { Story } from "./story.js";
import { draw, list } from "./timeline.js";

const SUGGESTIONS = [
  "Why do tide gates close by themselves?",
  "How does a log survive a crash?",
  "Does the moon pull harder than the sun?",
];
const ENDINGS = { answer: "answered", partial: "partial answer", fallback: "fallback" };
const $ = (id) => document.getElementById(id);

const config = await (await fetch("config.json")).json();
let name = sessionStorage.getItem("client");
if (!name) sessionStorage.setItem("client", (name = `tab-${crypto.randomUUID().slice(0, 8)}`));

let session = decodeURIComponent(location.hash.slice(1)) || config.session;
let story = new Story();
let shown = null;
const ops = [];
const items = new Map();

const client = new Client(config.url, { name, storage: sessionStorage, pauseMsMax: 1000, onConnection: connection });
const agents = new Agents($("agents"), {
  put: (agent, settings) => client.call({ type: "entry.put", bucket: "agents", key: agent, data: settings }).catch(say),
  kill: (agent) => client.publish("ops", "ops.kill", { name: agent }).catch(say),
});

// --- what comes

function connection(connected, pause, over) {
  $("connection").textContent = over ?? (connected ? "connected" : "reconnecting …");
  $("connection").dataset.state = over ? "over" : connected ? "up" : "down";
  agents?.server(connected);
}

async function open(next) {
  if (client.subscriptions.has(session)) {
    await Promise.all([client.unsubscribe(session), client.unwatch("presence", { session }), client.leave(session)]);
  }
  session = next;
  story = new Story();
  shown = null;
  items.clear();
  $("turns").replaceChildren();
  $("session").value = session;
  location.hash = encodeURIComponent(session);
  const mine = session;
  const role = { role: "page" };
  await Promise.all([
    client.subscribe(session, { from: "earliest", policy: "rollup" }, (frame) => mine === session && take(frame)),
    client.watch("presence", { session }, (members) => devices(members.size)),
    client.enter(session, role),
  ]);
}

function devices(count) {
  $("devices").textContent = count === 1 ? "1 device" : `${count} devices`;
}

function take(frame) {
  for (const turn of story.take(frame)) later(turn);
}

// Many events may come at once: what they changed is drawn once a frame.
const dirty = new Set();
function later(turn) {
  if (dirty.size === 0) requestAnimationFrame(paint);
  dirty.add(turn);
}

function paint() {
  const bottom = $("turns").scrollHeight - $("turns").scrollTop - $("turns").clientHeight < 60;
  for (const turn of dirty) show(turn);
  dirty.clear();
  if (bottom) $("turns").scrollTop = $("turns").scrollHeight;
  if (!shown || !shown.chosen) shown = story.last && { turn: story.last };
  $("empty").hidden = story.turns.size > 0;
  const running = [...story.turns.values()].some((turn) => !turn.outcome);
  $("stop").hidden = $("steer").hidden = !running;
  happened();
}

function happened() {
  if (!shown) return;
  $("which").textContent = `turn ${shown.turn.number}, from the log`;
  draw($("timeline"), shown.turn, ops, config.deadline_ms);
  list($("marks"), shown.turn, ops);
}
setInterval(() => shown && !shown.turn.outcome && happened(), 200);

// --- one turn

function show(turn) {
  let item = items.get(turn.number);
  if (!item) {
    item = document.createElement("li");
    item.innerHTML = `<p class="question"></p><div class="answer"><div class="text"></div><footer></footer></div>`;
    item.querySelector(".question").textContent = turn.question;
    item.onclick = () => {
      shown = { turn, chosen: turn !== story.last };
      happened();
    };
    items.set(turn.number, item);
    $("turns").append(item);
  }
  item.className = `turn ${turn.outcome === "answer" ? "answered" : (turn.outcome ?? "running")}`;
  item.querySelector(".text").replaceChildren(...texts(turn));
  item.querySelector("footer").textContent = footer(turn);
}

/** The text, with a mark at each place where another worker went on. */
function texts(turn) {
  const nodes = [];
  for (const [at, part] of turn.parts.entries()) {
    if (at > 0) {
      const seam = document.createElement("span");
      seam.className = "seam";
      seam.textContent = `${part.agent} goes on`;
      nodes.push(seam);
    }
    const text = document.createElement("span");
    text.textContent = part.text;
    nodes.push(text);
  }
  if (turn.outcome && !turn.text) {
    nodes.push(Object.assign(document.createElement("em"), { textContent: "Nothing was said before it ended." }));
  }
  if (!turn.outcome) nodes.push(Object.assign(document.createElement("i"), { className: "caret" }));
  return nodes;
}

function footer(turn) {
  const workers = [...new Set(turn.parts.map((part) => part.agent))].filter((one) => one !== "server").join(" → ");
  if (turn.outcome) {
    const took = ((turn.endedAt - turn.askedAt) / 1000).toFixed(1);
    return [ENDINGS[turn.outcome] + (turn.reason ? `: ${turn.reason}` : ""), `${took} s`, workers]
      .filter(Boolean)
      .join(" · ");
  }
  const last = turn.marks.at(-1);
  return last ? `${last.who} ${last.what} …` : "waiting for an orchestrator …";
}

// --- what is typed and clicked

function say(no) {
  $("hint").textContent = no?.message ?? "";
}

async function ask(text) {
  say();
  try {
    await client.publish(session, "chat.ask", { text });
  } catch (no) {
    say(no);
  }
}

function control(topic, data = {}) {
  const turn = [...story.turns.values()].find((one) => !one.outcome);
  if (turn) client.publish(session, topic, { turn: turn.number, ...data }, { prev_event_id: turn.eventId }).catch(say);
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  $("text").value = "";
  if (text) ask(text);
};
$("stop").onclick = () => control("control.cancel");
$("steer").onclick = () => {
  const text = $("text").value.trim() || "shorter, please";
  $("text").value = "";
  control("control.steer", { text });
};
$("session").onchange = () => {
  const next = $("session").value.trim();
  if (/^[A-Za-z0-9_.:-]{1,128}$/.test(next) && next !== session) open(next).catch(say);
  else $("session").value = session;
};
addEventListener("hashchange", () => {
  const next = decodeURIComponent(location.hash.slice(1));
  if (next && next !== session) open(next).catch(say);
});
$("theme").onclick = () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
};
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
for (const text of SUGGESTIONS) {
  const button = Object.assign(document.createElement("button"), {
    type: "button",
    textContent: text,
    onclick: () => ask(text),
  });
  $("suggestions").append(button);
}

function op(frame) {
  if (frame.type !== "event" || !["ops.died", "ops.started"].includes(frame.topic)) return;
  const died = frame.topic === "ops.died";
  ops.push({ at: frame.data.at, name: frame.data.name, died, what: died ? frame.data.how : "is back" });
  happened();
}

connection(false);
await Promise.all([
  open(session),
  client.subscribe("ops", { from: "earliest" }, op),
  client.watch("presence", { session: "agents" }, (members) => agents.present(members)),
  client.watch("entry", { bucket: "agents" }, (entries) => agents.set(entries)),
]).catch(say);
