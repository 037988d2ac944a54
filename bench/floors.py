"""The floors: costs of the standard library and the machine alone, each in a process of its own.

    floors.py server                     the plainest http.server over the AF_UNIX socket that is descriptor 3
    floors.py bare MODULE …              imports the modules, and answers one request after another on descriptor 3
    floors.py call HOST PORT PATH CHATS COUNT
                                         calls on one kept http.client connection
    floors.py append FOLDER COUNT WRITERS
                                         lines made durable at the end of a file that was allocated before, by so many
                                         threads, one fdatasync(2) each

The last two print JSON: `cpu` seconds each, and `seconds`, how long each of them took.
"""

import sys


def server():
    import json
    import socket
    import socketserver
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = json.dumps({"ok": True}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def address_string(self):
            return "unix"

        def log_message(self, format, *arguments):
            """No line for a request, so that the floor is the lowest there is."""

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    listener = socket.socket(fileno=3)
    plain = Server(listener.getsockname(), Handler, bind_and_activate=False)
    plain.socket.close()
    plain.socket = listener
    plain.serve_forever()


def bare(modules):
    import importlib
    import socket

    for name in modules:
        importlib.import_module(name)
    listener = socket.socket(fileno=3)
    while True:
        connection, _ = listener.accept()
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        connection.close()


def call(host, port, path, chats, count):
    import http.client
    import json
    import time

    connection = http.client.HTTPConnection(host, port)
    seconds, cpu = [], time.process_time()
    for number in range(count):
        begin = time.perf_counter()
        body = json.dumps({"chat_id": 1 + number % chats, "text": f"floor {number}"})
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        if not json.loads(connection.getresponse().read())["ok"]:
            sys.exit("floors.py: Telegram's stand-in refused a call")
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"cpu": (time.process_time() - cpu) / count, "seconds": seconds}))


def append(folder, count, writers):
    import json
    import os
    import threading
    import time

    line, seconds, lock = b"x" * 399 + b"\n", [], threading.Lock()
    descriptor = os.open(f"{folder}/lines", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, bytes(count * len(line)))
    os.fsync(descriptor)
    ends = iter(range(0, count * len(line), len(line)))

    def write():
        for _ in range(count // writers):
            begin = time.perf_counter()
            with lock:
                os.pwrite(descriptor, line, next(ends))
            os.fdatasync(descriptor)
            seconds.append(time.perf_counter() - begin)

    cpu = time.process_time()
    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"cpu": (time.process_time() - cpu) / len(seconds), "seconds": seconds}))


def main():
    kind, *arguments = sys.argv[1:]
    if kind == "server":
        server()
    elif kind == "bare":
        bare(arguments)
    elif kind == "call":
        call(*arguments[:3], *map(int, arguments[3:]))
    else:
        append(arguments[0], *map(int, arguments[1:]))


if __name__ == "__main__":
    main()
