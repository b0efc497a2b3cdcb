"""The demo, scene by scene."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from pickaxe._states import StepState
from pickaxe.cli._explain import Node, last_takeover, tree, was_replayed
from pickaxe.cli._follow import follow_tree, print_markdown
from pickaxe.cli._screen import Screen
from pickaxe.cli._show import print_run
from pickaxe.cli._text import Cell, say, short, short_worker
from pickaxe.client import Run
from pickaxe.demo._check import Proof, Victim, prove
from pickaxe.demo._fleet import Surroundings, surroundings
from pickaxe.streams import Transition

PROCESSES_PER_WORKER = 2
RECORDED_BEFORE_KILL = 6
"""Extractions that have ended when the worker of another one is killed."""
PATIENCE = 120.0
"""Seconds the run may take before the demo gives up."""

GOOD, BAD = ("  ✓ ", "bold green"), ("  ✗ ", "bold red")


class Demo:
    """See `pickaxe demo --help`."""

    def __init__(self, *, question: str, workers: int, keep: bool) -> None:
        self._question = question
        self._workers = workers
        self._keep = keep
        self._extracted = 0
        self._on: dict[tuple[str, str], str] = {}
        self._victim: Victim | None = None

    def run(self) -> int:
        """Play it. Returns the exit code."""
        signal.signal(signal.SIGTERM, _leave)
        began = time.monotonic()
        _heading("Services")
        with surroundings() as around:
            _told(began, "Postgres and Redis run, from wheels, with Pickaxe's tables")
            around.start_workers(self._workers)
            around.wait_for_workers(self._workers * PROCESSES_PER_WORKER)
            names = ", ".join(child.name for child in around.children.running)
            _told(began, f"{self._workers} Celery workers run: {names}; {PROCESSES_PER_WORKER} processes each")
            run = self._play(around)
            node = tree(around.app.client, uuid.UUID(run.id))
            failed = self._conclude(around, node, run)
            _heading("Try next")
            self._say_next(run)
            if self._keep:
                self._wait(around)
        say(("everything was stopped and removed", "dim"), f"  {time.monotonic() - began:.0f} s")
        return failed

    def _play(self, around: Surroundings) -> Run[Any]:
        _heading("The run")
        run: Run[Any] = around.app.handles["research"].enqueue({"text": self._question})
        say("  run ", (run.id, "bold"))
        say("  ", (self._question, "italic"))
        say()
        with Screen(around.app.client, run.id) as screen:
            for of, transition in follow_tree(around.app.client, run.id, PATIENCE):
                screen.feed(of, transition)
                if transition.kind == "step" and of == run.id:
                    self._watch(around, run, transition, screen)
        return run

    def _watch(self, around: Surroundings, run: Run[Any], t: Transition, screen: Screen) -> None:
        place = (t.step, str(t.attempt))
        if t.state == "running":
            self._on[place] = str(t.more.get("worker", ""))
        if t.name == "extract" and t.state == "succeeded":
            self._extracted += 1
        in_the_middle = t.name == "extract" and t.state == "progress"
        if in_the_middle and self._victim is None and self._extracted >= RECORDED_BEFORE_KILL:
            self._kill(around, run, t, screen)
        if t.state == "requested" and t.more.get("type") == "signal":
            time.sleep(1.0)
            run.signal("review", {"approved": True, "reviewer": "the demo", "comment": "Sent as a person would."})
            screen.note(("            ✉ the demo answers, as a person would: ", "bold blue"),
                        (f"pickaxe signal {short(run.id)} review '{{\"approved\": true}}'", "blue"))  # fmt: skip

    def _kill(self, around: Surroundings, run: Run[Any], t: Transition, screen: Screen) -> None:
        """Kill the worker of a step, once the log, the ledger's keeper and the kernel agree that it is in it."""
        worker = self._on.get((t.step, str(t.attempt)), "")
        pid = int(worker.rpartition(" ")[2] or 0)
        child = around.owner_of(pid) if pid else None
        step = next(s for s in run.steps() if s.key == t.step)
        if child is None or step.state is not StepState.RUNNING or step.attempt != t.attempt:
            return
        self._victim = Victim(t.step, t.attempt, short_worker(worker), pid, time.time())
        child.kill()
        screen.note()
        screen.note(("            ✗ kill -9 ", "bold red"), (f"{child.name}, all of its processes, ", "red"),
                    (f"in the middle of {t.step} (process {pid})", "red"))  # fmt: skip
        screen.note()

    def _conclude(self, around: Surroundings, node: Node, run: Run[Any]) -> int:
        result = run.result(timeout=5)
        _heading("The report")
        print_markdown(result.markdown)
        _heading("The timeline")
        print_run(around.app.client, node, summary=False)
        _heading("The check")
        if self._victim is None:
            say(BAD, "no worker could be killed in the middle of a step: the run was over too soon")
            return 1
        return self._check(node, self._victim, prove(node, around.ledger, self._victim))

    def _check(self, node: Node, victim: Victim, proof: Proof) -> int:
        takeover = last_takeover(node)
        replayed = sum(was_replayed(s, n.run, takeover) for n in node.walk() for s in n.steps)
        say(GOOD, f"{victim.step} was cut short with {victim.worker}, and finished elsewhere")
        say(GOOD, f"{replayed} steps were replayed from the log: recorded before the fleet noticed, not run again")
        say(GOOD, f"{proof.recorded} tool steps are recorded; by the tools' own ledger {proof.bodies} bodies began")
        unrecorded = (
            f", {proof.unrecorded} ended, but its worker died before that was recorded" if proof.unrecorded else ""
        )
        say(GOOD, f"the difference: {proof.cut_short} cut short by the kill{unrecorded}")
        for violation in proof.violations:
            say(BAD, violation)
        if proof.violations:
            return 1
        say(GOOD, ("no recorded step ran twice", "bold"))
        return 0

    def _say_next(self, run: Run[Any]) -> None:
        question = '{"text": "Which of these licences grant patents?"}'
        if self._keep:
            say("  everything keeps running until Ctrl-C. In another terminal, in this folder:")
            commands: list[tuple[str, str]] = [
                (f"pickaxe show {short(run.id)}", "this run again"),
                (f"pickaxe run research '{question}' --follow", "another one; it waits for you"),
                ("pickaxe signal latest review '{\"approved\": true}'", "your review, from a third terminal"),
            ]
        else:
            commands = [
                ("pickaxe dev", "the same fleet, kept, reloaded when code changes"),
                (f"pickaxe run research '{question}' --follow", "from a second terminal: a run that waits for you"),
                ("pickaxe signal latest review '{\"approved\": true}'", "from a third: your review"),
            ]
        here = "" if shutil.which("pickaxe") else f"{os.path.relpath(Path(sys.argv[0]).parent)}/"
        for command, what in commands:
            say("  ", (here + command, "bold cyan"))
            say("      ", (what, "dim"))

    def _wait(self, around: Surroundings) -> None:
        from pickaxe.cli._dev import announced

        with announced(around.services, around.children.folder), suppress(KeyboardInterrupt):
            while True:
                time.sleep(0.5)


def _heading(text: str) -> None:
    say()
    say((f"── {text} ".ljust(78, "─"), "bold yellow"))


def _told(began: float, *cells: Cell) -> None:
    say(GOOD, *cells, (f"  {time.monotonic() - began:.1f} s", "dim"))


def _leave(*_: object) -> None:
    sys.exit(143)
