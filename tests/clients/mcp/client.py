"""A real MCP client, of the official Python SDK, that does what it is told on a socket.

    client.py HOST:PORT

connects there, reads requests and writes answers, each a JSON object on a line:

    {"do": "open", "url": URL, "reuse": true}        begins a session; if connections are not to be used again, each request
                                                     comes to whichever pod a balancer of connections takes
    {"do": "tools"}                                  lists the tools
    {"do": "call", "tool": NAME, "arguments": {}}    calls one
    {"do": "look"}                                   does nothing
    {"do": "close"}                                  ends the session

Answers are {"ok": RESULT} or {"error": {"code": CODE, "message": TEXT}}, and have beside it
    "http":     [{"method", "status", "pod"}]        the HTTP requests of the session that were answered since the last answer
    "changed":  how often the server has said that the list of tools changed, in this session

What it checks is decided by who drives it. It ends when the socket does.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack

import httpx2
import mcp_types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

# Longer than anything takes; streams may be silent for longer.
ANSWER = 60.0
SILENCE = 3600.0
CANNOT_CONNECT = -1


class Session:
    """One session, from `open` to `close`."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self.client: Client | None = None
        self.id: str | None = None
        self.http: list[dict] = []
        self.changed = 0

    async def open(self, url: str, reuse: bool) -> dict:
        timeout = httpx2.Timeout(ANSWER, read=SILENCE)
        limits = httpx2.Limits() if reuse else httpx2.Limits(max_keepalive_connections=0)
        http = httpx2.AsyncClient(timeout=timeout, limits=limits, event_hooks={"response": [self.answered]})
        await self.stack.enter_async_context(http)
        transport = streamable_http_client(url, http_client=http)
        client = Client(transport, message_handler=self.told, read_timeout_seconds=ANSWER)
        self.client = await self.stack.enter_async_context(client)
        return {"session": self.id, "protocol": self.client.protocol_version}

    async def answered(self, response: httpx2.Response) -> None:
        self.id = response.headers.get("mcp-session-id", self.id)
        pod = response.headers.get("x-vmcp-pod")
        self.http.append({"method": response.request.method, "status": response.status_code, "pod": pod})

    async def told(self, message: object) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self.changed += 1

    async def close(self) -> None:
        await self.stack.aclose()


async def obey(request: dict, session: Session) -> object:
    match request:
        case {"do": "open", "url": url, "reuse": reuse}:
            return await session.open(url, reuse)
        case {"do": "tools"}:
            listed = await session.client.list_tools()
            return sorted(tool.name for tool in listed.tools)
        case {"do": "call", "tool": tool, "arguments": arguments}:
            result = await session.client.call_tool(tool, arguments)
            text = " ".join(block.text for block in result.content if block.type == "text")
            return {"failed": bool(result.is_error), "text": text}
        case {"do": "look"}:
            return {}
        case {"do": "close"}:
            await session.close()
            return {}
    raise ValueError(f"not understood: {request}")


async def main(address: str) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    session = Session()
    while line := await reader.readline():
        request = json.loads(line)
        if request["do"] == "open":
            await session.close()
            session = Session()
        try:
            answer = {"ok": await obey(request, session)}
        except MCPError as error:
            answer = {"error": {"code": error.code, "message": error.message}}
        except httpx2.TransportError as error:
            answer = {"error": {"code": CANNOT_CONNECT, "message": repr(error)}}
        answer["http"], session.http = session.http, []
        answer["changed"] = session.changed
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    await session.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
