"""A real Jupyter kernel, as a page would drive it."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

from llmserve.engines.process.processes import has_ended

SRC = Path(__file__).parents[2] / "src"


@dataclass
class Cell:
    """What one cell came to."""

    status: str
    stdout: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    """Mime bundles of displays, results and updates, in order."""
    error: str = ""
    """The traceback as shown; IPython shows none where the raising frame has no line number."""
    raised: str = ""
    """The exception's class."""

    @property
    def text(self) -> str:
        """Everything readable on the page."""
        shown = "\n".join(str(bundle.get("text/plain", "")) for bundle in self.displays)
        return f"{self.stdout}\n{shown}"


class Kernel:
    """`run` a cell, or `start` it, do something meanwhile, and `finish` it."""

    def __init__(self, manager: KernelManager, client: Any) -> None:
        self.manager = manager
        self._client = client

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def run(self, code: str, timeout: float = 120) -> Cell:
        return self.finish(self.start(code), timeout)

    def ok(self, code: str, timeout: float = 120) -> Cell:
        cell = self.run(code, timeout)
        assert cell.status == "ok", cell.error[-600:]
        return cell

    def start(self, code: str) -> str:
        return str(self._client.execute(code))

    def wait_for_output(self, started: str, text: str, timeout: float = 120) -> None:
        """Return once the running cell has shown `text`; what comes before stays for nobody."""
        until = monotonic() + timeout
        while True:
            message = self._message(started, until)
            # the kernel echoes the code before it runs: an interrupt then hits no cell
            if message["msg_type"] != "execute_input" and text in str(message["content"]):
                return

    def wait_for_update(self, started: str, timeout: float = 120) -> None:
        """Return once the running cell has redrawn something it displayed."""
        until = monotonic() + timeout
        while self._message(started, until)["msg_type"] != "update_display_data":
            pass

    def finish(self, started: str, timeout: float = 120) -> Cell:
        until = monotonic() + timeout
        cell = Cell("")
        while True:
            message = self._message(started, until)
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                cell.stdout += content["text"]
            elif kind in ("display_data", "update_display_data", "execute_result"):
                cell.displays.append(content["data"])
            elif kind == "error":
                cell.error = "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
        reply = self._reply(started, until)
        cell.status, cell.raised = str(reply["status"]), str(reply.get("ename", ""))
        return cell

    def subshell(self) -> str:
        """A shell beside the one that runs cells, as JupyterLab opens for its widgets."""
        message = self._client.session.msg("create_subshell_request", {})
        self._client.control_channel.send(message)
        while True:
            reply = self._client.get_control_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return str(reply["content"]["subshell_id"])

    def tell_widget(self, model_id: str, data: dict[str, Any], subshell: str) -> None:
        """A page's message to a widget, over the subshell."""
        message = self._client.session.msg("comm_msg", {"comm_id": model_id, "data": data})
        message["header"]["subshell_id"] = subshell
        self._client.shell_channel.send(message)

    def interrupt(self) -> None:
        """SIGINT to the kernel's process group, as the page's stop button does."""
        self.manager.interrupt_kernel()

    def restart(self) -> None:
        self.manager.restart_kernel()
        while self._client.iopub_channel.msg_ready():  # or the old kernel's words pass for the
            self._client.get_iopub_msg()  # new one's, before that is heard at all
        self._client.wait_for_ready(timeout=90)

    def complete(self, code: str) -> list[str]:
        asked = self._client.complete(code)
        while True:
            reply = self._client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == asked:
                return list(reply["content"]["matches"])

    def family(self) -> set[int]:
        """The kernel's process and all that came of it."""
        kernel = psutil.Process(self.pid)
        return {self.pid, *(child.pid for child in kernel.children(recursive=True))}

    def _message(self, started: str, until: float) -> dict[str, Any]:
        while True:
            left = until - monotonic()
            if left <= 0:
                raise TimeoutError("the cell did not end in time")
            try:
                message: dict[str, Any] = self._client.get_iopub_msg(timeout=left)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") == started:
                return message

    def _reply(self, started: str, until: float) -> dict[str, Any]:
        while True:
            reply = self._client.get_shell_msg(timeout=max(1.0, until - monotonic()))
            if reply["parent_header"].get("msg_id") == started:
                content: dict[str, Any] = reply["content"]
                return content


@contextmanager
def kernel(*folders: Path) -> Iterator[Kernel]:
    """Started with this checkout's sources first on its path, then these folders; gone when the
    block is left."""
    parts = [str(SRC), *map(str, folders), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(parts).rstrip(os.pathsep)
    manager = KernelManager(kernel_name="python3", transport="ipc")  # no port that may be taken
    manager.start_kernel(env={**os.environ, "PYTHONPATH": path})
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=90)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def gone(pids: set[int], timeout: float = 60) -> set[int]:
    """Wait for the processes to end; those that did not."""
    alive, until = list[psutil.Process](), monotonic() + timeout
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            alive.append(psutil.Process(pid))
    while (left := [one for one in alive if not has_ended(one)]) and monotonic() < until:
        sleep(0.02)
    return {process.pid for process in left}
