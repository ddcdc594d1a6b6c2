"""What the tests of the tail share: a command, and a client on another shard."""

from tide import Client


def publish(session, number, **more):
    return {"type": "publish", "session": session, "topic": "chat.message", "message_id": f"m{number}", "data": number, **more}


async def elsewhere(server, shard):
    """A client on a shard that is not `shard`."""
    for _ in range(64):
        client = await Client.open(server.url)
        if client.welcome["shard"] != shard:
            return client
        await client.close()
    raise AssertionError("64 connections, all on one shard")
