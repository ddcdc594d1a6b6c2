#!/usr/bin/env python3
"""Another build takes over a running server, and the one before takes over again: nothing is lost, doubled or refused.

    --from OLD: serves ─► backup ─► the binary under test takes over ─► OLD takes over again      publishers all the while
Without --from the binary under test plays both parts.
"""

import argparse
import asyncio
import os
import subprocess

from tide import GONE, Client, Server, Violations, binary, environment, history, run


class Publisher:
    """One session: goes on with the same message wherever it was cut off."""

    def __init__(self, name):
        self.name, self.acked = name, 0

    async def go_on(self, url, ended, bad):
        while not ended.is_set():
            try:
                client = await Client.open(url)
                while not ended.is_set():
                    n = self.acked
                    await client.call({"type": "publish", "session": self.name, "topic": "a", "message_id": f"m{n}", "data": n})
                    self.acked = n + 1
                await client.close()
            except ConnectionRefusedError as why:
                bad.add("refused", f"{self.name}: {why}")
            except GONE:
                await asyncio.sleep(0.05)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="old", default=binary(), help="binary of the other build")
    options = parser.parse_args()
    new, loop, bad, ended = binary(), asyncio.get_running_loop(), Violations(), asyncio.Event()
    os.environ["TIDEGATE_BIN"] = options.old
    with Server("--set=drain_grace_ms=100ms", shards=2) as server:
        publishers = [Publisher(f"s{n}") for n in range(16)]
        going = [asyncio.create_task(publisher.go_on(server.url, ended, bad)) for publisher in publishers]
        await asyncio.sleep(0.5)
        dest = os.path.join(server.folder, "before")
        command = [new, "backup", dest, "--data", server.data]
        done = await loop.run_in_executor(None, lambda: subprocess.run(command, env=environment(), capture_output=True, text=True))
        assert done.returncode == 0, done.stderr
        for build in (new, options.old):
            os.environ["TIDEGATE_BIN"] = build
            seconds, status = await loop.run_in_executor(None, server.take_over)
            assert status == 0, server.tail()
            assert os.path.realpath(f"/proc/{server.process.pid}/exe") == os.path.realpath(build)
            print(f"taken over by {os.path.basename(build)} after {seconds:.1f} s", flush=True)
            await asyncio.sleep(0.5)
        ended.set()
        await asyncio.gather(*going)
        client = await Client.open(server.url)
        for publisher in publishers:
            stored = [event["data"] for event in await history(client, publisher.name)]
            if stored != list(range(len(stored))) or not publisher.acked <= len(stored) <= publisher.acked + 1:
                bad.add("lost, doubled or out of order", f"{publisher.name}: {publisher.acked} acknowledged, stored {stored[-5:]}")
        await client.close()
        assert server.stop() == 0, server.tail()
    bad.check()
    print(f"upgrade: passed, {sum(publisher.acked for publisher in publishers)} events acknowledged", flush=True)


if __name__ == "__main__":
    run(main())
