// A client of a Tidegate server for browsers: one life over many connections. No dependencies, no build step.
//
//     const client = new Client("ws://127.0.0.1:7777/v1/ws", { name: "tab-1", storage: sessionStorage });
//     await client.publish("demo", "chat.message", { text: "hi" });
//     await client.subscribe("demo", { from: "earliest" }, (frame) => console.log(frame));
//
// Connections come and go; the program does not notice but for the time. A command is sent until it is answered, under the same
// message id, so it is done once. A subscription goes on behind the last event that it brought; frames are handed over once and in
// order, and acknowledged when their handler has returned. `src/wire/PROTOCOL.md` says what frames hold.

const SUBPROTOCOL = "tidegate.v1.json";
const PAUSE_MS_MIN = 100;
const ACK_EVERY_MS = 1000;

/** The server said no. `name` says why; `repeated`: an earlier try of the same command may have been carried out. */
export class Refused extends Error {
  constructor(frame, repeated) {
    super(`${frame.refusal} (${frame.field ?? "-"}): ${frame.message}`);
    this.frame = frame;
    this.name = frame.refusal;
    this.temporary = frame.code < 4200;
    this.repeated = repeated;
  }
}

/** [session, epoch, offset]: read from the right, a session's name may hold colons. */
export function splitEventId(eventId) {
  const [, session, epoch, offset] = /^(.*):([^:]*):(\d+)$/.exec(eventId);
  return [session, epoch, Number(offset)];
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const within = (least, most) => least + Math.random() * (most - least);

export class Client {
  /** `onConnection(connected, why)` is told of each change; `storage` keeps the life, so that a reload goes on with it. */
  constructor(url, { name, storage, credit = 512, pauseMsMax = 10_000, onConnection = () => {} } = {}) {
    Object.assign(this, { url, credit, pauseMsMax, onConnection, storage });
    this.key = `tidegate ${name}`;
    this.life = JSON.parse(storage?.getItem(this.key) ?? "null") ?? { client: name, token: null, attempt: 0 };
    this.subscriptions = new Map();
    this.watches = new Map();
    this.rooms = new Map();
    this.waiting = new Map();
    this.lastId = 0;
    this.pauseMs = PAUSE_MS_MIN;
    this.connected = false;
    this.over = null;
    this.ticker = setInterval(() => this.#acknowledge(), ACK_EVERY_MS);
    globalThis.addEventListener?.("online", () => this.wake?.());
    this.#run();
  }

  get name() {
    return this.life.client;
  }

  /** Ends the connection, not the life. */
  close() {
    this.#acknowledge();
    this.#end("closed");
    this.socket?.close();
  }

  // --- commands

  /** Sends a command until it is answered. Where the server is full it waits as told; every other refusal is thrown. */
  async call(command) {
    for (;;) {
      const { answer, repeated } = await this.#ask(command);
      if (answer.type !== "refused") return answer;
      const no = new Refused(answer, repeated);
      if (!no.temporary) throw no;
      await sleep((answer.retry_after_ms ?? 50) * within(1, 1.5));
    }
  }

  /** An event; resolves with its id once it is on disk. */
  async publish(session, topic, data, more = {}) {
    const command = { type: "publish", session, topic, data, message_id: crypto.randomUUID(), ...more };
    return (await this.call(command)).event_id;
  }

  #ask(command) {
    if (this.over) return Promise.reject(new Error(this.over));
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      const ask = { command: { ...command, id }, repeated: false, reject };
      ask.resolve = (answer) => resolve({ answer, repeated: ask.repeated });
      this.waiting.set(id, ask);
      if (this.connected) this.#send(ask.command);
    });
  }

  #send(...commands) {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify(commands.length === 1 ? commands[0] : commands));
    }
  }

  // --- subscriptions, watches, rooms

  /** `handler(frame)` for each event, delta, gap and notice of the session, once and in order. */
  async subscribe(session, { from = "latest", policy = "lossless" }, handler) {
    const subscription = { session, policy, from, handler, last: null };
    this.subscriptions.set(session, subscription);
    return this.call({ type: "subscribe", session, from, policy });
  }

  async unsubscribe(session) {
    if (this.subscriptions.delete(session)) await this.call({ type: "unsubscribe", session }).catch(() => {});
  }

  /** `handler(state)` with all that holds, by key, whenever it changed: `watch("presence", {session})`, `watch("entry", {bucket, prefix})`. */
  async watch(kind, scope, handler) {
    const key = JSON.stringify([kind, scope.session ?? null, scope.bucket ?? null, scope.prefix ?? ""]);
    const command = { type: `${kind}.watch`, ...scope };
    this.watches.set(key, { command, handler, state: new Map(), revision: null });
    return this.call(command);
  }

  async unwatch(kind, scope) {
    const key = JSON.stringify([kind, scope.session ?? null, scope.bucket ?? null, scope.prefix ?? ""]);
    if (this.watches.delete(key)) await this.call({ type: `${kind}.unwatch`, ...scope }).catch(() => {});
  }

  /** Is in a session, also after reconnects. */
  async enter(session, data) {
    const command = { type: "presence.enter", session, data };
    this.rooms.set(session, command);
    return this.call(command);
  }

  async leave(session) {
    if (this.rooms.delete(session)) await this.call({ type: "presence.leave", session }).catch(() => {});
  }

  // --- connections

  async #run() {
    while (!this.over) {
      const code = await this.#connection();
      const before = this.connected;
      this.connected = false;
      if (this.over) return;
      if (code === 4200) return this.#end("this client is at work in another place");
      if (code > 4200 && code < 4300) return this.#end(`the server closed this client: ${code}`);
      if (before) for (const ask of this.waiting.values()) ask.repeated = true;
      const pause = this.#pauseAfter(code);
      this.onConnection(false, pause);
      await Promise.race([sleep(pause), new Promise((wake) => (this.wake = wake))]);
    }
  }

  /** One connection, from the attempt to its end; resolves with its close code. */
  #connection() {
    return new Promise((resolve) => {
      const url = new URL(this.url);
      if (this.life.client) url.searchParams.set("client", this.life.client);
      const protocols = [SUBPROTOCOL, ...(this.life.token ? [`tidegate.resume.${this.life.token}`] : [])];
      this.goawayMs = null;
      this.counted = { done: 0, told: 0 };
      this.socket = new WebSocket(url, protocols);
      this.socket.onmessage = (message) => this.#take(JSON.parse(message.data));
      this.socket.onclose = (close) => resolve(close.code);
      // Browsers say `close` too where nothing was opened; Node does not.
      this.socket.onerror = () => resolve(1006);
    });
  }

  #pauseAfter(code) {
    if (code === 1001 || (code >= 4000 && code < 4100)) return this.goawayMs ?? within(0, PAUSE_MS_MIN);
    // A page does not learn why an upgrade was refused, nor for how long: it waits longer each time.
    const pause = this.pauseMs * within(0.5, 1);
    this.pauseMs = Math.min(this.pauseMs * 2, this.pauseMsMax);
    return pause;
  }

  #end(why) {
    this.over = why;
    clearInterval(this.ticker);
    this.wake?.();
    for (const ask of this.waiting.values()) ask.reject(new Error(this.over));
    this.onConnection(false, null, this.over);
  }

  #resume() {
    const { token } = this.life;
    if (!token) return this.#send({ type: "resume", id: "resume" }, { type: "hello", credit: { events: this.credit } });
    this.life.attempt += 1;
    this.#keep();
    const seen = [...this.subscriptions.values()]
      .filter((one) => one.last)
      .map((one) => `${one.session}:${one.last.join(":")}`);
    this.#send(
      { type: "resume", id: "resume", token, attempt: this.life.attempt, seen },
      { type: "hello", credit: { events: this.credit } },
    );
  }

  #resumed(frame) {
    if (frame.type === "refused") {
      const no = new Refused(frame);
      if (!no.temporary && no.name !== "stale_token" && no.name !== "bad_token") return this.socket.close();
      if (!no.temporary) Object.assign(this.life, { token: null, attempt: 0 });
      return void setTimeout(() => this.#resume(), frame.retry_after_ms ?? 0);
    }
    Object.assign(this.life, { token: frame.token, attempt: 0 });
    this.#keep();
    this.owed = frame.sessions + Number(frame.patterns);
    this.brought = new Set();
    this.connected = true;
    this.pauseMs = PAUSE_MS_MIN;
    const again = [...this.watches.values()].map((watch) =>
      watch.revision ? { ...watch.command, revision: watch.revision } : watch.command,
    );
    const asked = [...this.waiting.values()].map((ask) => ask.command);
    for (const command of [...again, ...this.rooms.values(), ...asked]) this.#send(command);
    if (this.owed === 0) this.#allRestored();
    this.onConnection(true);
  }

  /** The life has brought a subscription back, or says that it cannot. One of an earlier page is not wanted any more. */
  #restored(frame) {
    if (frame.type === "subscribed") this.brought.add(frame.session);
    if (!this.subscriptions.has(frame.session)) this.#send({ type: "unsubscribe", session: frame.session });
    this.owed -= 1;
    if (this.owed === 0) this.#allRestored();
  }

  #allRestored() {
    const asked = new Set(
      [...this.waiting.values()].filter((ask) => ask.command.type === "subscribe").map((ask) => ask.command.session),
    );
    for (const { session, policy, from, last } of this.subscriptions.values()) {
      if (this.brought.has(session) || asked.has(session)) continue;
      this.#send({ type: "subscribe", session, policy, from: last ? { offset: last[1] + 1, epoch: last[0] } : from });
    }
  }

  #keep() {
    this.storage?.setItem(this.key, JSON.stringify(this.life));
  }

  #acknowledge() {
    if (this.connected && this.counted.done > this.counted.told) {
      this.counted.told = this.counted.done;
      this.#send({ type: "ack", events: this.counted.done });
    }
  }

  // --- frames

  #take(frame) {
    if (frame.type === "welcome") {
      this.life.client = frame.client;
      return this.#resume();
    }
    if (frame.type === "goaway") return void (this.goawayMs = frame.reconnect_after_ms);
    if (frame.id === "resume") return this.#resumed(frame);
    if (frame.id !== undefined) {
      const ask = this.waiting.get(frame.id);
      this.waiting.delete(frame.id);
      return ask?.resolve(frame);
    }
    if (frame.type === "subscribed" || frame.type === "lost") return this.#restored(frame);
    if (frame.type === "entries" || frame.type === "presence") return this.#change(frame);
    if (["event", "stream.delta", "gap", "volatile", "notice"].includes(frame.type)) this.#deliver(frame);
  }

  #deliver(frame) {
    const session = frame.session ?? splitEventId(frame.event_id)[0];
    const subscription = this.subscriptions.get(session);
    let fresh = subscription !== undefined;
    if (fresh && frame.event_id && frame.type !== "notice") {
      const [, epoch, offset] = splitEventId(frame.event_id);
      fresh = !(subscription.last && subscription.last[0] === epoch && offset <= subscription.last[1]);
      if (fresh) subscription.last = [epoch, offset];
    }
    try {
      if (fresh) subscription.handler(frame);
    } finally {
      if (frame.type === "event" || frame.type === "stream.delta") this.counted.done += 1;
      if (this.counted.done - this.counted.told >= this.credit / 4) this.#acknowledge();
    }
  }

  #change(frame) {
    const kind = frame.type === "entries" ? "entry" : frame.type;
    const watch = this.watches.get(JSON.stringify([kind, frame.session ?? null, frame.bucket ?? null, frame.prefix ?? ""]));
    if (!watch) return;
    if (frame.snapshot) watch.state.clear();
    for (const one of frame.entries ?? frame.joined ?? []) watch.state.set(one.key ?? one.client, one);
    for (const one of frame.updated ?? []) watch.state.set(one.client, { ...watch.state.get(one.client), ...one });
    for (const one of frame.deleted ?? []) watch.state.delete(one.key);
    for (const client of frame.left ?? []) watch.state.delete(client);
    if (frame.more) return;
    watch.revision = frame.revision ?? null;
    watch.handler(watch.state);
  }
}
