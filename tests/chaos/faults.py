"""A TCP proxy that resets, stalls, drops or slows down what goes through it; and a folder that can be full."""

import asyncio
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

Mode = Literal["pass", "reset", "stall", "drop", "slow"]
FAULTS: tuple[Mode, ...] = ("reset", "stall", "drop")
_POLL_S = 0.05
_SLOW_S = 0.2


class TcpProxy:
    """Listens on :attr:`port`, with a thread of its own. ``mode`` may be changed at any time.

    ``reset``: connections are broken off, new ones too. ``stall``: nothing passes until later. ``drop``: what is
    connected, or connects meanwhile, stays silent for good, as behind a router that forgot it. ``slow``: late.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._mode: Mode = "pass"
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])

    @property
    def mode(self) -> Mode:
        """What happens to what goes through."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "reset":
            self._loop.call_soon_threadsafe(self._reset)

    def close(self) -> None:
        """Break off everything."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reset()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        if self._mode == "reset":
            self._reset()
            return
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._open.add(there_writer)
            pumps = [self._pump(reader, there_writer), self._pump(there_reader, writer)]
            try:
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                self._open.discard(there_writer)
                there_writer.close()
        self._open.discard(writer)
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dead = False
        with suppress(OSError):
            while data := await reader.read(2**16):
                while self._mode == "stall":
                    await asyncio.sleep(_POLL_S)
                if self._mode == "slow":
                    await asyncio.sleep(_SLOW_S)
                dead = dead or self._mode == "drop"
                if not dead:
                    writer.write(data)
                    await writer.drain()
        if not dead and writer.can_write_eof():
            with suppress(OSError):
                writer.write_eof()

    def _reset(self) -> None:
        for writer in self._open:
            with suppress(OSError, AttributeError):
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        self._open.clear()


@contextmanager
def tcp_proxy(port: int) -> Iterator[TcpProxy]:
    """A proxy before a port of this machine."""
    made = TcpProxy(port)
    try:
        yield made
    finally:
        made.close()


class SmallDisk:
    """A file system of its own in a folder, which can be full or read-only. Takes root: a tmpfs is mounted."""

    def __init__(self, folder: Path, megabytes: int = 8) -> None:
        self.folder = folder
        folder.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))

    def fill(self) -> None:
        """Leave no room."""
        with (self.folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Have room again."""
        (self.folder / "ballast").unlink()

    def read_only(self, yes: bool) -> None:
        """Refuse to be written to, or not any more. Not while a file is being written: asked again until it works."""
        _run("mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.folder))

    def close(self) -> None:
        """Take it away."""
        _run("umount", "-l", str(self.folder))


def can_mount() -> bool:
    """Whether this process may mount: root with the capability."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    for _ in range(200):
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0 or b"busy" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
