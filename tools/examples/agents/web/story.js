// What happened in a conversation, from its log and nothing else: the same fold as `story.py`.
//
//   chat.ask ─► turn.claimed ─► tool.call ─► tool.result ─► model.ask ─► model.started ─► deltas … ─► model.result ─► chat.answer
//
// A turn's text is what the stream says that the last `model.started` named; that event cuts what an earlier worker may have said
// beyond what its successor had read.

export const SORRY = "I could not finish this in time. Please try again.";

const offsetOf = (eventId) => Number(eventId.slice(eventId.lastIndexOf(":") + 1));

class Turn {
  constructor(frame) {
    Object.assign(this, {
      number: offsetOf(frame.event_id),
      eventId: frame.event_id,
      askedBy: frame.client,
      askedAt: frame.time,
    });
    this.question = frame.data.text;
    // Text by the worker who said it: what a takeover looks like.
    this.parts = [];
    this.stream = null;
    this.outcome = null;
    this.reason = "";
    this.endedAt = null;
    this.marks = [];
  }

  get text() {
    return this.parts.map((part) => part.text).join("");
  }

  cut(length) {
    for (const part of this.parts) {
      part.text = part.text.slice(0, length);
      length -= part.text.length;
    }
    this.parts = this.parts.filter((part) => part.text);
  }

  end(frame) {
    const data = frame.data;
    if (frame.client === "$server") {
      // What was streamed is all there; a partial result may be a part of it.
      const text = this.text || data.partial?.text;
      this.outcome = text ? "partial" : "fallback";
      if (!this.text) this.parts = [{ agent: "server", text: text ?? data.data?.text ?? SORRY }];
      this.reason = data.reason;
    } else {
      this.outcome = data.outcome;
      this.reason = data.reason ?? "";
      if (data.text !== this.text) this.parts = [{ agent: frame.client, text: data.text }];
    }
    this.endedAt = frame.time;
  }
}

const WHAT = {
  "tool.call": (data) => `asks the tool for “${data.query}”`,
  "tool.result": () => "found it",
  "model.ask": () => "asks a model",
  "model.result": (data) => `model done: ${data.status}`,
  "control.cancel": () => "says stop",
  "control.steer": (data) => `steers: ${data.text}`,
  "turn.claimed": (data) => (data.attempt === 1 ? "takes the turn" : `takes the turn, attempt ${data.attempt}`),
  "model.started": (data) => (data.after === 0 ? "answers" : `goes on after ${data.after} characters`),
  "tool.gave_up": (data) => `tool gave up: ${data.reason}`,
  "model.gave_up": (data) => `model gave up: ${data.reason}`,
};

export class Story {
  constructor() {
    this.turns = new Map();
    this.streams = new Map();
  }

  get last() {
    return [...this.turns.values()].at(-1);
  }

  /** Takes an event or a merged delta in; returns the turns that it changed. */
  take(frame) {
    if (frame.type === "stream.delta")
      return frame.streams.map((one) => this.#say(one.stream, one.delta ?? "")).filter(Boolean);
    if (frame.type !== "event") return [];
    if (frame.stream !== undefined) return [this.#say(frame.stream, frame.data ?? "")].filter(Boolean);
    if (frame.topic === "chat.ask") {
      const turn = new Turn(frame);
      this.turns.set(turn.number, turn);
      return [turn];
    }
    const turn = this.#turnOf(frame);
    if (!turn) return [];
    this.#mark(turn, frame);
    return [turn];
  }

  #say(stream, text) {
    const turn = this.streams.get(stream);
    if (turn && stream === turn.stream && !turn.outcome) turn.parts.at(-1).text += text;
    return turn;
  }

  #turnOf(frame) {
    const cause = frame.prev_event_id;
    if (frame.topic === "chat.answer" && frame.client === "$server") return this.turns.get(offsetOf(cause));
    if (frame.data?.turn !== undefined) return this.turns.get(frame.data.turn);
    return [...this.turns.values()].find((turn) => turn.marks.some((mark) => mark.eventId === cause));
  }

  #mark(turn, { topic, data, client, time, event_id: eventId }) {
    let who = client === "$server" ? "server" : (data.agent ?? client);
    if (topic === "model.started") {
      turn.cut(data.after);
      turn.parts.push({ agent: data.agent, text: "" });
      turn.stream = data.stream;
      this.streams.set(data.stream, turn);
    }
    if (topic === "chat.answer" && !turn.outcome) turn.end({ client, data, time });
    const what =
      topic === "chat.answer" ? turn.outcome + (turn.reason ? `: ${turn.reason}` : "") : (WHAT[topic]?.(data) ?? topic);
    turn.marks.push({ at: time, who, topic, what, data, eventId });
  }
}
