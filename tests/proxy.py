"""A TCP proxy between a client and a server that can be told to misbehave, from now on and for what is open."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

Mood = Literal["pass", "refuse", "drop", "silent", "slow", "cut"]


class Proxy:
    """Forwards bytes to a port of this machine.

    pass    as if it were not there
    refuse  nobody can connect, and what was connected is closed
    drop    what is connected is closed at its next byte; new connections are closed at once
    silent  it takes everything and answers nothing: a black hole
    slow    every reply comes late, by `late` seconds
    cut     a reply ends in the middle, and the connection with it
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.mood: Mood = "pass"
        self.late = 0.02  # seconds
        self.connections = 0  # that clients have made
        self.bytes = [0, 0]  # from clients, from the server
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = self._listen()

    def _listen(self) -> threading.Thread:
        thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        thread.start()
        return thread

    def be(self, mood: Mood) -> None:
        """Behave so from now on."""
        was, self.mood = self.mood, mood
        if mood == "refuse":
            self._stop_listening()
            self._hang_up()
        elif was == "refuse":
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._accepting = self._listen()
        elif was == "silent":
            self._hang_up()  # replies to what was asked meanwhile are lost

    def close(self) -> None:
        """Close everything."""
        if self.mood != "refuse":
            self._stop_listening()
        self._hang_up()

    def _stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()

    def _hang_up(self) -> None:
        held, self._open = self._open, []
        for each in held:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            if self.mood == "drop":
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            for source, sink, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=(source, sink, is_reply), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self.bytes[is_reply] += len(data)
                if self.mood == "slow" and is_reply:
                    threading.Event().wait(self.late)
                if self.mood == "silent":
                    continue
                if self.mood == "drop":
                    break
                if self.mood == "cut" and is_reply:
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
