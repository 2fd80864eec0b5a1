"""`python -m tests.soak` (`make soak`): exit code 0 when nothing has failed and nothing is left."""

from __future__ import annotations

import argparse
import random
import sys
import time
from contextlib import ExitStack

from rich.console import Console

from tests.rogue.ends import CHANNEL_LIES, CRASHES, HANGS, MEMORY, RING_LIES, SANDBOX, End
from tests.rogue.programs import NullNeighbour, VirglNeighbour
from tests.soak.figures import Figure, memory_figures, print_figures
from tests.soak.services import Holdings, Subject
from tests.soak.sessions import Tally, VmSessions, VtestSessions

WARM_UP = 3
"""Sessions on each service before it is looked at what it holds."""

_ENDS: tuple[End, ...] = (*CRASHES, *HANGS, *CHANNEL_LIES, *RING_LIES)
_OUTSIDE: tuple[End, ...] = tuple(end for end in _ENDS if end.deed in ("", "null-read", "bus-error", "exit-with"))
_VTEST_ENDS = tuple(end for end in _OUTSIDE if end.name != "stopped")


class Soak:
    """Three services and what happens to them."""

    def __init__(self, stack: ExitStack, sandbox: str) -> None:
        more = SANDBOX if sandbox == "enforce" else ()
        options = [f"--sandbox={sandbox}"]
        vm_options = [*options, "--keep-listening", "--spawn-rate=100000/1"]
        self.tally = Tally()
        null = stack.enter_context(
            Subject("null", "serve", [*vm_options, "--engine=null", "--hang-timeout=1", "--max-memory=256M"])
        )
        virgl = stack.enter_context(Subject("virgl", "serve", [*vm_options, "--hang-timeout=3"]))
        vtest = stack.enter_context(Subject("vtest", "vtest", options))
        self.subjects = (null, virgl, vtest)
        self._vms = (
            VmSessions(null, NullNeighbour, [*_ENDS, *more, *([MEMORY] if more else [])], self.tally),
            VmSessions(virgl, VirglNeighbour, [*_ENDS, *more], self.tally),
        )
        self._sessions = (*self._vms, VtestSessions(vtest, [*_VTEST_ENDS, *more], self.tally))

    def session(self, seed: str, which: int) -> None:
        """One on a service, which is idle afterwards when its memory is looked at."""
        self._sessions[which].play(seed)
        self.subjects[which].sample_memory()
        self.tally.sessions += 1

    def holdings(self) -> list[Holdings]:
        """Of all services, with nobody served."""
        for vm in self._vms:
            vm.leave()
        return [subject.settle() for subject in self.subjects]

    def figures(self, before: list[Holdings], after: list[Holdings]) -> list[Figure]:
        """What was done and what is left."""
        figures = [Figure(name.replace("_", " "), value) for name, value in vars(self.tally).items()]
        for subject in self.subjects:
            subject.lab.read_losses()
        figures.append(Figure("incidents", sum(len(subject.lab.losses) for subject in self.subjects)))
        for vm, subject in zip(self._vms, self.subjects, strict=False):
            figures.append(Figure(f"{subject.name}: descriptors outstanding", vm.descriptors, 0))
            figures.append(Figure(f"{subject.name}: fences outstanding", vm.fences, 0))
        for subject, then, now in zip(self.subjects, before, after, strict=True):
            for what, more in now.minus(then).items():
                figures.append(Figure(f"{subject.name}: {what.replace('_', ' ')} left", more, 0))
            masters, launchers = ([sample[i] for sample in subject.memory] for i in (0, 1))
            figures += memory_figures(subject.name, "master", masters)
            figures += memory_figures(subject.name, "launcher", launchers)
        return figures


def run(minutes: float, seed: int, sandbox: str, console: Console) -> bool:
    """Whether nothing has failed and nothing is left."""
    deadline = time.monotonic() + 60 * minutes
    chance = random.Random(seed)
    with ExitStack() as stack:
        soak = Soak(stack, sandbox)
        for number in range(WARM_UP):
            for which in range(len(soak.subjects)):
                soak.session(f"{seed}-warm-{number}", which)
        before = soak.holdings()
        number = 0
        while time.monotonic() < deadline:
            number += 1
            which = chance.choices((0, 1, 2), (4, 2, 1))[0]
            soak.session(f"{seed}-{number}", which)
        after = soak.holdings()
        figures = soak.figures(before, after)
    figures += [Figure(f"{subject.name}: exit code", abs(subject.code), 0) for subject in soak.subjects]
    return print_figures(figures, console)


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (%(default)g)")
    parser.add_argument("--seed", type=int, default=None, help="of all that is left to chance (by default a new one)")
    parser.add_argument("--sandbox", choices=("enforce", "audit", "off"), default="enforce", help="of the services")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    console = Console()
    console.print(f"soak of {options.minutes:g} minutes with --seed={seed}")
    return 0 if run(options.minutes, seed, options.sandbox, console) else 1


if __name__ == "__main__":
    sys.exit(main())
