"""What happened in a conversation, from its log and nothing else.

    chat.ask ─► turn.claimed ─► tool.call ─► tool.result ─► model.ask ─► model.started ─► deltas … ─► model.result ─► chat.answer
       n            (again)                  tool.gave_up                 (again: goes on `after` so much text)      ends turn n

A turn's text is what the stream says that the last `model.started` named; that event cuts what an earlier worker may have said
beyond what its successor had read. `web/story.js` is the same for the page.
"""

import dataclasses

ANSWER, PARTIAL, FALLBACK = "answer", "partial", "fallback"
SORRY = "I could not finish this in time. Please try again."


def offset_of(event_id):
    return int(event_id.rsplit(":", 1)[1])


@dataclasses.dataclass
class Turn:
    """One question and what became of it. `marks` are (Unix ms, who, what)."""

    number: int
    event_id: str
    asked_by: str
    asked_at: int
    question: str
    text: str = ""
    stream: str | None = None
    outcome: str | None = None
    reason: str = ""
    ended_at: int | None = None
    endings: int = 0
    marks: list = dataclasses.field(default_factory=list)

    def end(self, frame):
        """The event that ends the turn: by the orchestrator, or by the server at the deadline."""
        data = frame["data"]
        if frame["client"] == "$server":
            # What was streamed is all there; a partial result may be a part of it.
            text = self.text or (data.get("partial") or {}).get("text")
            self.outcome = PARTIAL if text else FALLBACK
            self.text = text or (data.get("data") or {}).get("text", SORRY)
            self.reason = data["reason"]
        else:
            self.outcome, self.text, self.reason = data["outcome"], data["text"], data.get("reason", "")
        self.ended_at = frame["time"]


class Story:
    """Turns of a session, by number: the offset of their question."""

    def __init__(self):
        self.turns = {}
        self.streams = {}

    def take(self, frame):
        """Takes an event or a merged delta in. Returns the turns that it changed, each with what it adds: text, or None."""
        if frame["type"] == "stream.delta":
            return [
                self._say(one["stream"], one.get("delta", "")) for one in frame["streams"] if one["stream"] in self.streams
            ]
        if frame["type"] != "event":
            return []
        if "stream" in frame:
            return [self._say(frame["stream"], frame.get("data", ""))] if frame["stream"] in self.streams else []
        if frame["topic"] == "chat.ask":
            number = offset_of(frame["event_id"])
            self.turns[number] = Turn(number, frame["event_id"], frame["client"], frame["time"], frame["data"]["text"])
            return [(self.turns[number], None)]
        turn = self._turn_of(frame)
        if not turn:
            return []
        self._mark(turn, frame)
        return [(turn, None)]

    def _say(self, stream, text):
        turn = self.streams[stream]
        if stream == turn.stream and not turn.outcome:
            turn.text += text
            return turn, text
        return turn, ""

    def _turn_of(self, frame):
        """By what the event says, or, where the server speaks, by its cause."""
        data = frame.get("data")
        if frame["topic"] == "chat.answer" and frame["client"] == "$server":
            return self.turns.get(offset_of(frame["prev_event_id"]))
        if isinstance(data, dict) and "turn" in data:
            return self.turns.get(data["turn"])
        cause = frame.get("prev_event_id")
        return next((turn for turn in self.turns.values() if cause in (event_id for _, _, _, event_id in turn.marks)), None)

    def _mark(self, turn, frame):
        topic, data = frame["topic"], frame["data"]
        who = data.get("agent") or frame["client"]
        what = topic
        if topic == "model.started":
            turn.text, turn.stream = turn.text[: data["after"]], data["stream"]
            self.streams[data["stream"]] = turn
            what = "answers" if data["after"] == 0 else f"goes on after {data['after']} characters"
        elif topic == "chat.answer":
            turn.endings += 1
            if turn.endings == 1:
                turn.end(frame)
            what = f"{turn.outcome}{': ' + turn.reason if turn.reason else ''}"
        elif topic == "turn.claimed":
            what = "takes the turn" if data["attempt"] == 1 else f"takes the turn, attempt {data['attempt']}"
        elif topic in ("tool.gave_up", "model.gave_up"):
            who, what = "$server", f"{topic.split('.')[0]} gave up: {data['reason']}"
        else:
            what = {
                "tool.call": f"asks the tool for “{data.get('query')}”",
                "tool.result": "found it",
                "model.ask": "asks a model",
                "model.result": f"model done: {data.get('status')}",
                "control.cancel": "says stop",
                "control.steer": f"steers: {data.get('text')}",
            }.get(topic, topic)
        turn.marks.append((frame["time"], "server" if who == "$server" else who, what, frame["event_id"]))


def timeline(turn, ops=()):
    """Lines that tell a turn, with what happened to the processes meanwhile: [(Unix ms, who, what)]."""
    end = turn.ended_at or max([turn.asked_at, *(at for at, *_ in turn.marks)])
    told = [(turn.asked_at, turn.asked_by, f"asks: {turn.question}")]
    told += [(at, who, what) for at, who, what, _ in turn.marks]
    told += [(at, who, what) for at, who, what in ops if turn.asked_at <= at <= end + 2000]
    width = max(len(who) for _, who, _ in told)
    return [
        f"{(at - turn.asked_at) / 1000:+7.2f} s  {who:<{width}}  {what}"
        for at, who, what in sorted(told, key=lambda one: one[0])
    ]
