"""The whole of `medseg train`: check, plan, prepare, train each member, score it, and write one model.

Each stage leaves what it came to in the workspace, so that the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import torch

from medseg import zoo
from medseg.bundle import Bundle, Weights
from medseg.errors import TrainingError
from medseg.inference import device as kinds
from medseg.progress import silent
from medseg.training.cache import Cached
from medseg.training.devices import Alone, Devices
from medseg.training.finetune import start_weights
from medseg.training.finish import finished_model, halved, member_bundle
from medseg.training.journal import Journal, draw_curves
from medseg.training.loop import Place, Step, fit
from medseg.training.recipe import EPOCH, Recipe
from medseg.training.request import Listener, Request
from medseg.training.scoring import Scored, from_data, score_members_cases, to_data
from medseg.training.setup import Setup, prepare_cases, set_up
from medseg.training.workspace import Workspace

_RESERVE = (0.01, 2.0)  # share of the budget, and seconds, for saving and what nobody foresaw
_SCORING = 0.25  # of the budget at most
_SHORTEST = 2.0  # seconds in which a member can learn anything
_MOST_STEPS = 10_000_000
_RATES = {"adamw": 2e-3, "sgd": 1e-2}
_DECAYS = {"adamw": 1e-2, "sgd": 3e-5}


@dataclass(frozen=True)
class Budget:
    """Seconds for the loop of each member, and for scoring its held-back cases; None where epochs count."""

    learning: float | None
    scoring: float | None


def train(request: Request, listener: Listener, *, began: float | None = None) -> Bundle | None:
    """Train a model as asked, or go on with it; return it, or None in a process that only helps.

    Parameters
    ----------
    request : Request
        What is asked.
    listener : Listener
        Is told how it goes.
    began : float, optional
        `time.monotonic()` at which the budget began; now when left out.

    Raises
    ------
    MedsegError
        If options, data or machine do not allow it; what was done so far is kept.
    """
    began = time.monotonic() if began is None else began
    request.check()
    devices = _devices(request)
    with ExitStack() as stack:
        stack.enter_context(_determinism(asked=request.deterministic))
        if devices.rank:
            if not devices.agree(0.0):
                return None
            training = _Training(request, Listener(), devices)
            training.begin()
        else:
            training = _Training(request, listener, devices)
            try:
                training.hold(stack)
                training.begin(began)
            except BaseException:
                devices.agree(0.0)
                raise
            devices.agree(1.0)
        return training.run()


class _Training:
    """The members of one training."""

    setup: Setup
    cases: Sequence[Cached]

    def __init__(self, request: Request, listener: Listener, devices: Devices) -> None:
        self.request, self.listener, self.devices = request, listener, devices
        self.workspace = Workspace(request.output)

    def hold(self, stack: ExitStack) -> None:
        """Hold the workspace, and see that it is of this training."""
        request = self.request
        stack.enter_context(self.workspace.held(restart=request.restart, fold=request.fold))
        threads = torch.get_num_threads() if request.deterministic else None
        self.workspace.agree({**request.settings(), "threads": threads})

    def begin(self, began: float | None = None) -> None:
        """Do all that stands before the first step; the process that gives `began` decides on the budget."""
        self.setup = set_up(self.request, self.workspace, self.listener)
        self.cases = prepare_cases(self.setup, self.workspace, self.listener)
        if began is not None and self.workspace.read("budget.json") is None:
            self.workspace.write("budget.json", asdict(self._budget(began)))
        self.budget = self.workspace.parsed("budget.json", lambda said: Budget(**said)) or Budget(None, None)

    @property
    def members(self) -> int:
        """How many networks the model will have."""
        return len(self.setup.splits)

    def run(self) -> Bundle | None:
        """Train and score each member that is not done yet; return the model."""
        chosen = range(self.members) if self.request.fold is None else [self.request.fold]
        for member in chosen:
            if not self.workspace.weights(member).exists():
                self._learn(member)
            if not self.devices.rank and not self.workspace.scores(member).exists():
                self._score(member)
            self.devices.wait()
        if self.devices.rank:
            return None
        with self.workspace.finishing():
            return self._finish()

    def _learn(self, member: int) -> None:
        learned, held = self.setup.splits[member]
        self.listener.member(
            member, self.members, f"{len(learned)} case{'s' * (len(learned) > 1)}, {len(held)} held back"
        )
        journal = Journal(self.workspace.log(member), self.setup.plan, self.setup.batch / len(learned))

        def hear(step: Step) -> None:
            if not self.devices.rank:
                journal.write(step)
                self.listener.step(step)

        try:
            weights = fit(
                [self.cases[n].sample for n in learned],
                self.setup.plan,
                self._recipe(member),
                start=self._start(member),
                held_back=[self.cases[n].sample for n in held],
                place=Place(self.devices, self.workspace.checkpoint(member), self._mark(member)),
                on_step=hear,
            )
        finally:
            journal.close()
        if not self.devices.rank:
            member_bundle(self.request.output, self.setup, halved(weights)).save(self.workspace.weights(member))
            draw_curves(self.workspace, self.members, self.setup.plan, self.request.output.stem)
        self.devices.wait()

    def _score(self, member: int) -> None:
        held = self.setup.splits[member][1]
        until = None if self.budget.scoring is None else time.monotonic() + self.budget.scoring
        scored = score_members_cases(
            Bundle.load(self.workspace.weights(member)),
            [self.setup.cases[n] for n in held],
            self.setup.legend,
            device=str(self.devices.device),
            until=until,
            progress=self.listener.stage,
        )
        self.workspace.write(self.workspace.scores(member).name, to_data(scored))

    def _finish(self) -> Bundle:
        """Write the model of all members that are done, unless the run of another fold has been faster."""
        done = [n for n in range(self.members) if self.workspace.scores(n).exists()]
        if not self.workspace.weights(done[0]).exists():
            return Bundle.load(self.request.output)
        scored = [case for n in done for case in self.workspace.parsed(self.workspace.scores(n).name, from_data) or []]
        bundle = finished_model(
            self.request.output,
            self.setup,
            [Bundle.load(self.workspace.weights(n)) for n in done],
            [case.measures for case in self.cases],
            scored,
            self._how(done, scored),
        )
        bundle.save(self.request.output)
        if len(done) == self.members:
            self.workspace.tidy()
        return bundle

    def _how(self, done: Sequence[int], scored: Sequence[Scored]) -> str:
        """Return in words which cases were held back, and by whom they were predicted."""
        held = sum(len(self.setup.splits[n][1]) for n in done)
        some = f"; {held - len(scored)} more were left out for lack of time" if len(scored) < held else ""
        if self.members == 1:
            return f"held back from training{some}"
        which = f"fold{'s' * (len(done) > 1)} {', '.join(map(str, done))} of {self.members}"
        folds = f"{self.members} folds" if len(done) == self.members else which
        return f"cross-validation over {folds}, each case predicted by the member that had not seen it{some}"

    def _budget(self, began: float) -> Budget:
        """Return how much time there is for each member, after all that stands before."""
        whole = self.request.budget
        if whole is None:
            return Budget(None, None)
        spent = time.monotonic() - began
        members = self.members if self.request.fold is None else 1
        most = max(len(held) for _, held in self.setup.splits)
        left = whole * (1 - _RESERVE[0]) - _RESERVE[1] - spent
        scoring = min(left * _SCORING, most * self._seconds_to_score() * members) / members if most else 0.0
        learning = left / members - scoring
        if learning < _SHORTEST:
            raise TrainingError(
                f"check and preparation took {spent / 60:.1f} of {whole / 60:g} minutes, too little is left to learn",
                hint="give more --minutes; the prepared cases are kept",
            )
        return Budget(learning, scoring)

    def _seconds_to_score(self) -> float:
        """Return how long one held-back case will take, from one that a network without training predicts."""
        member = next(n for n, (_, held) in enumerate(self.setup.splits) if held)
        case = self.setup.cases[self.setup.splits[member][1][0]]
        weights = fit([self.cases[0].sample], self.setup.plan, Recipe(steps=1, batch=1))
        bundle = member_bundle(self.request.output, self.setup, weights)
        began = time.monotonic()
        device = str(self.devices.device)
        score_members_cases(bundle, [case], self.setup.legend, device=device, until=None, progress=silent)
        return time.monotonic() - began

    def _recipe(self, member: int) -> Recipe:
        request = self.request
        return Recipe(
            steps=_MOST_STEPS if request.epochs is None else request.epochs * EPOCH,
            batch=self.setup.batch,
            seconds=self.budget.learning,
            optimizer=request.optimizer,
            schedule=request.schedule,
            rate=request.rate or _RATES[request.optimizer],
            weight_decay=_DECAYS[request.optimizer],
            mirror=self.setup.plan.mirror,
            patience=request.patience,
            freeze=request.freeze,
            seed=request.seed + member,
        )

    def _start(self, member: int) -> Weights | None:
        if self.request.start is None:
            return None
        bundle = Bundle.load(zoo.find(self.request.start))
        weights, new = start_weights(bundle, member, self.setup.plan)
        if new and not self.devices.rank:
            self.listener.say(f"{bundle.card.name} does not know {', '.join(new)}: their part of the head begins anew")
        return weights

    def _mark(self, member: int) -> str:
        """Return what tells the checkpoints of this member from all others."""
        known = [self.request.settings(), self.workspace.read("setup.json"), member]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _devices(request: Request) -> Devices:
    device = kinds.choose(request.device)
    if request.alone:
        return Alone(device)
    from medseg.training.distributed import Together

    return Together(device.type, request.devices, request.nodes)


@contextmanager
def _determinism(*, asked: bool) -> Iterator[None]:
    """Let only operations run that give the same bits every time."""
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA refuses to be deterministic
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
