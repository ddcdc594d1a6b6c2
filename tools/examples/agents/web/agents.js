// The cards of the agents: who is there and at what, and the buttons that hurt them.

const ROLES = { orchestrator: "orchestrator", tool: "tool", "model-1": "model", "model-2": "model", server: "server" };
const ICONS = { orchestrator: "◈", tool: "⚒", model: "✦", server: "▤" };
const STATES = {
  up: "up",
  idle: "idle",
  thinking: "thinking",
  tool: "at work",
  blocked: "blocked",
  gone: "gone",
  unknown: "not seen yet",
};

export class Agents {
  /** `put(name, settings)` changes what a model does; `kill(name)` kills a process. */
  constructor(root, { put, kill }) {
    this.root = root;
    this.cards = new Map();
    this.settings = new Map();
    for (const [name, role] of Object.entries(ROLES)) this.cards.set(name, this.#card(name, role, put, kill));
  }

  #card(name, role, put, kill) {
    const card = document.createElement("article");
    card.className = "agent";
    card.dataset.state = "unknown";
    card.innerHTML = `
      <span class="icon">${ICONS[role]}</span>
      <div class="who"><strong>${name}</strong><span class="state">not seen yet</span></div>
      <p class="doing"></p>
      <div class="controls"></div>`;
    const controls = card.querySelector(".controls");
    if (role === "model") {
      const delay = document.createElement("label");
      delay.innerHTML = `<span>token every <output>25</output> ms</span><input type="range" min="5" max="400" step="5" value="25" />`;
      const range = delay.querySelector("input");
      range.oninput = () => (delay.querySelector("output").value = range.value);
      range.onchange = () => put(name, { ...this.settings.get(name), delay_ms: Number(range.value) });
      const stall = this.#button("Stall", "hangs after a dozen tokens, until taken back", () => {
        put(name, { ...this.settings.get(name), stall: !this.settings.get(name)?.stall });
      });
      stall.className = "stall";
      const crash = this.#button("Crash", "ends itself in the middle of the next answer, once", () => {
        put(name, { ...this.settings.get(name), crash: true });
      });
      crash.className = "crash";
      controls.append(delay, stall, crash);
    }
    const killing = this.#button("kill -9", `SIGKILL for ${name}; it starts again after a moment`, () => kill(name));
    killing.className = "kill danger";
    card.append(killing);
    this.root.append(card);
    return card;
  }

  #button(text, title, onclick) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: text, title, onclick });
    return button;
  }

  /** Members of the room of agents. */
  present(members) {
    for (const [name, card] of this.cards) {
      if (name === "server") continue;
      const member = members.get(name);
      const at = member?.data?.at?.[0];
      this.#say(
        card,
        member ? member.state : "gone",
        at ? (at.query ?? at.question ?? `turn ${at.turn} of ${at.session}`) : "",
      );
    }
  }

  server(connected) {
    this.#say(
      this.cards.get("server"),
      connected ? "up" : "gone",
      connected ? "the log, the queues, the rooms" : "this page comes back by itself",
    );
    if (!connected) for (const [name, card] of this.cards) if (name !== "server") this.#say(card, "unknown", "");
  }

  #say(card, state, doing) {
    card.dataset.state = state;
    card.querySelector(".state").textContent = STATES[state] ?? state;
    card.querySelector(".doing").textContent = doing;
  }

  /** Entries of the bucket `agents`. */
  set(entries) {
    for (const [name, card] of this.cards) {
      const settings = entries.get(name)?.data ?? {};
      this.settings.set(name, settings);
      card.querySelector(".stall")?.classList.toggle("on", Boolean(settings.stall));
      card.querySelector(".crash")?.classList.toggle("on", Boolean(settings.crash));
      const range = card.querySelector("input");
      if (range && settings.delay_ms && document.activeElement !== range) {
        range.value = settings.delay_ms;
        card.querySelector("output").value = settings.delay_ms;
      }
    }
  }
}
