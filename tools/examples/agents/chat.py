"""A conversation in a terminal. It is a client like any other: kill it, start it again, and it goes on where it was.

text          asks            /stop            ends the answer, from any device
/steer TEXT   while it talks  /kill NAME       orchestrator, tool, model-1, model-2, server
/timeline     what happened   /stall NAME, /crash NAME, /delay NAME MS, /well NAME          what a model does
/why          the server's own view of the last answer       /top    what the server does now
/quit
"""

import argparse
import asyncio
import json
import logging
import os
import pathlib
import subprocess
import sys
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients" / "python"))

from story import Story, offset_of, timeline  # noqa: E402

from tidegate import Client  # noqa: E402

DIM, BOLD, RESET = ("\033[2m", "\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
MARK = {"answer": "✓", "partial": "◐", "fallback": "✗"}


class Chat:
    """What the terminal shows, and what is typed into it."""

    def __init__(self, client, options):
        self.client = client
        self.options = options
        self.story = Story()
        self.ops = []
        self.last = None
        self.mine = None
        self.ended = asyncio.Event()
        # What the log held when this process began: it is told in short, and not again.
        self.begin_at = 0
        self.at_line_start = True
        # A question that may not have reached the server yet: it is asked again, under its old id, by the next process.
        self.draft = pathlib.Path(options.keep).with_suffix(".ask") if options.keep else None

    def say(self, text, end="\n"):
        if end == "\n" and not self.at_line_start:
            text = f"\n{text}"
        print(text, end=end, flush=True)
        self.at_line_start = end == "\n"

    async def begin(self):
        """Reads what was said before, shows where an answer is under way, and listens from there on."""
        start = "earliest"
        async for event in self.client.history(self.options.session):
            self.story.take(event)
            _, epoch, offset = event["event_id"].rsplit(":", 2)
            self.begin_at = int(offset) + 1
            start = {"offset": self.begin_at, "epoch": epoch}
        self.last = next(reversed(self.story.turns.values()), None)
        if self.last and not self.last.outcome:
            self.say(f"{BOLD}{self.last.asked_by}: {self.last.question}{RESET}")
            self.say(self.last.text, end="")
        return await self.client.subscribe(self.options.session, start=start, policy="rollup")

    def take(self, frame):
        for turn, text in self.story.take(frame):
            self.last = turn
            if text and not self.options.quiet:
                self.say(text, end="")
            if text is None and frame["type"] == "event":
                self.show(frame, turn)

    def show(self, frame, turn):
        topic = frame["topic"]
        if topic == "chat.ask" and turn.asked_by != self.client.name:
            self.say(f"{BOLD}{turn.asked_by}: {turn.question}{RESET}")
        elif topic in (
            "model.started",
            "tool.call",
            "turn.claimed",
            "tool.gave_up",
            "model.gave_up",
            "control.cancel",
            "control.steer",
        ):
            _, who, what, _ = turn.marks[-1]
            self.say(f"{DIM}· {who} {what}{RESET}")
        elif topic == "chat.answer" and turn.endings == 1:
            self.conclude(turn)
            self.ended.set()

    def conclude(self, turn):
        """The last line of a turn."""
        if turn.outcome == "fallback":
            self.say(turn.text)
        why = f" ({turn.reason})" if turn.reason else ""
        took = (turn.ended_at - turn.asked_at) / 1000
        self.say(f"{DIM}{MARK[turn.outcome]} {turn.outcome}{why} after {took:.1f} s{RESET}")

    async def ask(self, text, message_id=None):
        ask = {"message_id": message_id or uuid.uuid4().hex, "text": text}
        if self.draft:
            self.draft.write_text(json.dumps(ask))
        self.mine = await self.client.publish(self.options.session, "chat.ask", {"text": text}, message_id=ask["message_id"])
        return self.mine

    def asked(self):
        """Its answer has been seen: nothing is to be asked again."""
        if self.draft:
            self.draft.unlink(missing_ok=True)

    async def command(self, line):
        word, _, rest = line.partition(" ")
        session, turn = self.options.session, self.last
        if word in ("/stop", "/steer") and turn and not turn.outcome:
            topic, data = ("control.cancel", {}) if word == "/stop" else ("control.steer", {"text": rest})
            await self.client.publish(session, topic, {"turn": turn.number, **data}, prev_event_id=turn.event_id)
        elif word == "/kill":
            await self.client.publish("ops", "ops.kill", {"name": rest})
        elif word in ("/stall", "/crash", "/delay", "/well"):
            name, _, number = rest.partition(" ")
            data = {
                "/stall": {"stall": True},
                "/crash": {"crash": True},
                "/delay": {"delay_ms": int(number or 60)},
                "/well": {},
            }[word]
            await self.client.call({"type": "entry.put", "bucket": "agents", "key": name, "data": data})
        elif word == "/timeline" and turn:
            self.say("\n".join(timeline(turn, self.ops)))
        elif word == "/why" and turn and turn.marks and self.options.binary:
            await self.ask_the_server("why", turn.marks[-1][3])
        elif word == "/top" and self.options.binary:
            await self.ask_the_server("top", "--once")
        else:
            self.say(__doc__.partition("\n\n")[2])

    async def ask_the_server(self, command, *arguments):
        """What `tidegate why` and `tidegate top` say: they ask the server over a socket in its data folder."""
        line = [self.options.binary, command, "--data", self.options.data, *arguments]
        told = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=20)
        self.say((told.stdout + told.stderr).rstrip())

    async def listen(self, feed):
        async for frame in feed:
            if frame["type"] != "notice" and offset_of(frame.get("event_id", f":{self.begin_at}")) >= self.begin_at:
                self.take(frame)

    async def hear_ops(self):
        """What happened to the processes meanwhile."""
        async for event in self.client.history("ops"):
            self.note(event)
        async for frame in await self.client.subscribe("ops"):
            self.note(frame)

    def note(self, frame):
        if frame["type"] == "event" and frame["topic"] in ("ops.died", "ops.started"):
            data = frame["data"]
            self.ops.append((data["at"], data["name"], data.get("how", "is back")))
            if not self.options.ask and frame["topic"] == "ops.died":
                self.say(f"{DIM}× {data['name']} {data['how']}{RESET}")

    async def read_lines(self):
        """Lines of the terminal until it ends."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode("utf-8", "replace"):
            line = line.strip()
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                await self.command(line)
            elif line:
                self.at_line_start = True
                await self.ask(line)


async def run(options):
    async with Client(options.url, options.name, keep=options.keep, pause_s_max=1.0) as client:
        chat = Chat(client, options)
        feed = await chat.begin()
        tasks = [asyncio.create_task(chat.listen(feed)), asyncio.create_task(chat.hear_ops())]
        try:
            draft = json.loads(chat.draft.read_text()) if chat.draft and chat.draft.exists() else None
            if draft or options.ask:
                await client.enter(options.session, data={"role": "user"})
                await chat.ask(**(draft or {"text": options.ask}))
                await wait_for_answer(chat)
                chat.asked()
                chat.say("\n".join(timeline(chat.story.turns[offset_of(chat.mine)], chat.ops)))
            else:
                await client.enter(options.session, data={"role": "user"})
                chat.say(f"{DIM}session {options.session}; ask something, or /help{RESET}")
                await chat.read_lines()
        finally:
            for task in tasks:
                task.cancel()


async def wait_for_answer(chat):
    """The answer may have come while no process of this client was alive: then it was in the log."""
    number = offset_of(chat.mine)
    turn = chat.story.turns.get(number)
    if turn and turn.outcome:
        return chat.conclude(turn)
    while not ((turn := chat.story.turns.get(number)) and turn.outcome):
        chat.ended.clear()
        await chat.ended.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--session", default="demo")
    parser.add_argument("--name", default=None, help="who you are, also after this process")
    parser.add_argument("--keep", default=None, help="file in which the client outlives its process")
    parser.add_argument("--ask", default=None, help="one question; prints the answer and what happened")
    parser.add_argument("--quiet", action="store_true", help="no tokens as they come")
    parser.add_argument("--binary", default=None, help="server binary that knows `why` and `top`")
    parser.add_argument("--data", default=None, help="the server's data folder")
    logging.basicConfig(format="%(asctime)s chat: %(message)s", level=os.environ.get("AGENTS_LOG", "WARNING"))
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
