"""A TCP proxy to Postgres that can cut a connection at the worst moment: when a COMMIT is under way."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator

from sqlalchemy import make_url


class Proxy:
    """Passes bytes on. With `lose_reply` the next `COMMIT` reaches the server, its answer does not come back."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._target = (parsed.host or "127.0.0.1", parsed.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        own = parsed.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        self.url = own.render_as_string(hide_password=False)
        self.lose_reply = False
        self.cut = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        waiting = selectors.DefaultSelector()
        waiting.register(client, selectors.EVENT_READ)
        waiting.register(server, selectors.EVENT_READ)
        losing = False
        with contextlib.suppress(OSError), client, server:
            while True:
                for key, _ in waiting.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is client:
                        if self.lose_reply and b"COMMIT" in data:
                            self.lose_reply, losing = False, True
                        server.sendall(data)
                    elif losing:
                        # The server has answered, so the commit is done; nobody will ever hear of it.
                        self.cut += 1
                        return
                    else:
                        client.sendall(data)


@contextlib.contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """A proxy to the database of this URL."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
