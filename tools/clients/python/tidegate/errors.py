"""What can go wrong, as seen by a program: the server said no, or this client is over."""

import json


class Refused(Exception):
    """The server refused a command. `name` says why, `frame` is its whole answer.

    `repeated` is true where the command had been sent before on a connection that was lost: its first try may have been carried
    out, and this refusal be about the second. Events cannot be doubled by that (their ids are known), but a conditional change of
    an entry may answer `wrong_revision` because it was made already.
    """

    def __init__(self, frame, repeated=False):
        super().__init__(f"{frame.get('refusal')} ({frame.get('field', '-')}): {frame.get('message')}")
        self.frame = frame
        self.name = frame.get("refusal")
        self.code = int(frame.get("code", 4200))
        self.repeated = repeated

    @property
    def temporary(self):
        """May the same command succeed a little later?"""
        return self.code < 4200


class Over(Exception):
    """This client will not connect again: it was closed, or told not to come back (close codes 4200 to 4299)."""


def said(frame):
    """Frames as one line of a log."""
    return json.dumps(frame, ensure_ascii=False)[:400]
