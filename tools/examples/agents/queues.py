"""The three queues of the demo, as every agent declares them: whoever comes first makes them, and the others change nothing.

turns    chat.ask    the whole answer      deadline: what the user was promised       in order, one at a time of each session
tools    tool.call   what it asks          two fifths of that
models   model.ask   what it asks          four fifths of that
"""

from story import SORRY


def queues(deadline_ms):
    """The three queues. A turn's deadline is a promise to its user; what it waits for has to give up before."""
    apology = {"text": SORRY}
    again = {"attempts": 100, "backoff_ms": 20}
    return [
        {"queue": "turns", "patterns": ["chat.ask"], "lease_ms": deadline_ms // 6, "deadline_ms": deadline_ms, **again}
        | {"order": "session", "fallback": {"topic": "chat.answer", "data": apology}, "dead_letter": "chat.answer"},
        {
            "queue": "tools",
            "patterns": ["tool.call"],
            "lease_ms": deadline_ms // 6,
            "deadline_ms": deadline_ms * 2 // 5,
            **again,
        }
        | {"order": "none", "fallback": {"topic": "tool.gave_up", "data": {}}, "dead_letter": "tool.gave_up"},
        {
            "queue": "models",
            "patterns": ["model.ask"],
            "lease_ms": deadline_ms // 6,
            "deadline_ms": deadline_ms * 4 // 5,
            **again,
        }
        | {"order": "none", "fallback": {"topic": "model.gave_up", "data": {}}, "dead_letter": "model.gave_up"},
    ]
