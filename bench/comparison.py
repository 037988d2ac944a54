"""The comparison: the same job on aiohttp, with one kept ClientSession and nothing stored.

usage: comparison.py USERS_FILE API_URL    (TELEGRAM_BOT_TOKEN in the environment, a listening socket as descriptor 3)

It knows who calls, looks the chat up in the same file, keeps order within a chat, and calls again after `retry_after`.
What it has accepted is in memory only.
"""

import asyncio
import json
import os
import pwd
import signal
import socket
import struct
import sys

from aiohttp import ClientSession, web

MAX_CALLS = 100


class Service:
    """`users` is read again when the file has changed, as ours does."""

    def __init__(self, users_file, api_url, token):
        self._users_file, self._url = users_file, f"{api_url}/bot{token}/sendMessage"
        self._version, self._users = None, {}
        self._orders, self._tasks = {}, set()
        self._session = None

    async def run_with(self, app):
        async with ClientSession() as self._session:
            yield

    def _chat_of(self, user):
        status = os.stat(self._users_file)
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if version != self._version:
            with open(self._users_file, "rb") as file:
                self._users, self._version = json.load(file), version
        return self._users[user]["chat_id"] if user in self._users else None

    async def send(self, request):
        credentials = request.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        caller = pwd.getpwuid(struct.unpack("3i", credentials)[1]).pw_name
        try:
            fields = await request.json()
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        chat_id = self._chat_of(fields.get("user") or caller)
        if chat_id is None:
            return web.json_response({"error": "no linked Telegram"}, status=404)
        task = asyncio.create_task(self._deliver({"chat_id": chat_id, "text": fields["text"],
                                                  "parse_mode": fields.get("parse_mode", "Markdown")}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not fields.get("wait", 20):
            return web.json_response({"ok": True, "queued": True}, status=202)
        return web.json_response({"ok": True}, status=200 if await task else 502)

    async def _deliver(self, message):
        async with self._orders.setdefault(message["chat_id"], asyncio.Lock()):
            for _ in range(MAX_CALLS):
                async with self._session.post(self._url, json=message) as response:
                    answer = await response.json()
                if answer["ok"]:
                    return True
                if response.status != 429:
                    return False
                await asyncio.sleep(answer["parameters"]["retry_after"])
        return False

    async def health(self, request):
        return web.json_response({"ok": True, "queued": len(self._tasks), "linked": len(self._users)})


def main():
    service = Service(sys.argv[1], sys.argv[2], os.environ["TELEGRAM_BOT_TOKEN"])
    app = web.Application()
    app.cleanup_ctx.append(service.run_with)
    app.add_routes([web.post("/send", service.send), web.get("/health", service.health)])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    web.run_app(app, sock=socket.socket(fileno=3), access_log=None, print=None, handle_signals=False)


if __name__ == "__main__":
    main()
