"""The models that a server offers, and those of them that are held in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from medseg import zoo
from medseg.bundle import Bundle
from medseg.errors import BundleError, UsageError
from medseg.inference import Predictor


class Shelf:
    """Models by name.

    Parameters
    ----------
    models : tuple of str
        Names or files; all of the zoo when empty.
    options : mapping
        Of `medseg.Predictor`.
    held : int
        How many are in memory at a time.

    Raises
    ------
    BundleError
        If one is none.
    UsageError
        If two have one name, or there is none.
    """

    def __init__(self, models: tuple[str, ...], options: Mapping[str, Any], *, held: int) -> None:
        self._paths: dict[str, Path] = {}
        self._cards: dict[str, Bundle] = {}
        for model in models or tuple(zoo.models()):
            path = zoo.find(model)
            bundle = Bundle.load(path)
            if bundle.card.name in self._cards:
                raise UsageError(f"two models are called {bundle.card.name!r}", hint="leave one of them out")
            self._paths[bundle.card.name] = path
            self._cards[bundle.card.name] = replace(bundle, members=(), locator=None)
        self._options, self._held = dict(options), held
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()
        self._lock = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were given."""
        return tuple(self._cards)

    def card(self, name: str) -> Bundle:
        """Return what is known of a model, without its weights."""
        return self._cards[name]

    def predictor(self, name: str) -> Predictor:
        """Return a model that is ready; it is loaded if it is not held, and that asked for longest ago goes.

        Raises
        ------
        BundleError
            If its file was changed since the server began.
        """
        with self._lock:
            if name not in self._loaded:
                while len(self._loaded) >= self._held:
                    self._loaded.popitem(last=False)
                bundle = Bundle.load(self._paths[name])
                if bundle.sha256 != self._cards[name].sha256:
                    raise BundleError(f"{name}: the file of the model was changed", hint="start the server again")
                self._loaded[name] = Predictor(bundle, **self._options)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of those that are in memory."""
        return tuple(self._loaded)
