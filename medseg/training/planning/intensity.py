"""How intensities are normalised, and whether a blanked background is cropped away."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.errors import UsageError
from medseg.plan import Channel, Window, ZScore
from medseg.training.planning.choice import Choice
from medseg.training.planning.labels import words
from medseg.training.planning.survey import CaseFacts, Survey

_HOUNSFIELD = {"ct", "cta", "ncct", "cect", "hu", "hounsfield"}
_COLOURS = {"red", "green", "blue", "r", "g", "b", "rgb"}
_NAMELESS = {"image", "scan", "channel"}  # words that say nothing
_NEARLY_ALL = 0.9  # of the cases
_AIR = (-1100, -900)  # HU
_AIR_SHARE = 0.02  # of a scan's voxels, at least
_LOWEST_HU, _HIGHEST_HU = -4096, 32767
_CLIP = (0.5, 99.5)  # percentiles
_BLANK_SHARE = 0.25  # of a scan's voxels: more than that, and cropping pays


def plan_channels(survey: Survey, names: tuple[str, ...]) -> tuple[tuple[Channel, ...], tuple[Choice, ...]]:
    """Return the channels with their rules, and why; unnamed ones get a name.

    Raises
    ------
    UsageError
        If there are more or fewer names than channels.
    """
    names = names or _names(survey.channels)
    if len(names) != survey.channels:
        raise UsageError(
            f"{len(names)} channel names for scans of {survey.channels} channels", hint="name each channel once"
        )
    channels, choices = [], []
    for number, name in enumerate(names):
        is_ct, reason = _hounsfield(survey, number, name)
        if is_ct:
            window = _window(survey, number)
            value = f"window {window.low:.4g} to {window.high:.4g}"
            reason += f"; 99 % of the labelled voxels, mean {window.mean:.4g}, deviation {window.deviation:.4g}"
            channels.append(Channel(name=name, intensity=window))
        else:
            value = "z-score of each scan"
            channels.append(Channel(name=name, intensity=ZScore()))
        choices.append(Choice(f"channel {name}", value, reason))
    return tuple(channels), tuple(choices)


def plan_crop(survey: Survey, channels: tuple[Channel, ...]) -> tuple[float | None, Choice]:
    """Return the intensity above which a voxel is foreground, or None, and why."""
    if not survey.physical:
        return None, Choice("crop", "none", "pictures: black is not blank")
    if any(isinstance(channel.intensity, Window) for channel in channels):
        return None, Choice("crop", "none", "air is part of a CT scan")
    blanked = [case.floor_share > _BLANK_SHARE for case in survey.cases]
    if np.mean(blanked) < _NEARLY_ALL:
        return None, Choice("crop", "none", f"{sum(blanked)} of {len(blanked)} cases have a blanked background")
    floors = np.stack([case.whole.min(axis=1) for case, blank in zip(survey.cases, blanked, strict=True) if blank])
    floor = float(floors.min())
    if (floors != floor).any():
        return None, Choice("crop", "none", f"the lowest values differ ({floor:g} to {floors.max():g})")
    if cut := sum(_touches(case, floor) for case in survey.cases):
        return None, Choice("crop", "none", f"labels reach into the background of {cut} of {len(blanked)} cases")
    share = np.median([case.floor_share for case in survey.cases])
    why = (
        f"{sum(blanked)} of {len(blanked)} cases have a background of exactly that, {100 * share:.0f} % of their voxels"
    )
    return floor, Choice("crop", f"to voxels above {floor:g}", why)


def _touches(case: CaseFacts, floor: float) -> bool:
    return bool((case.foreground <= floor).all(axis=0).any())


def _names(count: int) -> tuple[str, ...]:
    return ("image",) if count == 1 else tuple(f"image_{number + 1}" for number in range(count))


def _hounsfield(survey: Survey, number: int, name: str) -> tuple[bool, str]:
    """Return whether a channel holds Hounsfield units, and what says so."""
    told = {*words(name)}
    if told & _HOUNSFIELD:
        return True, "the name says CT"
    if told & _COLOURS:
        return False, "a colour"
    if not {word.rstrip("0123456789") for word in told} <= _NAMELESS:
        return False, "not CT: units may differ from scan to scan"
    seen = sum(_looks_like_ct(case.whole[number]) for case in survey.cases)
    if seen >= _NEARLY_ALL * len(survey.cases):
        return True, f"looks like CT: air near -1000 in {seen} of {len(survey.cases)} cases"
    values = survey.intensities(foreground=False)[number]
    if values.size and values.min() >= 0 and values.max() <= 255 and (values == values.round()).all():
        return False, "bytes, 0 to 255"
    return False, "no sign of CT: units may differ from scan to scan"


def _looks_like_ct(values: npt.NDArray[np.float32]) -> bool:
    if not values.size or values.min() < _LOWEST_HU or values.max() > _HIGHEST_HU:
        return False
    air = (values >= _AIR[0]) & (values <= _AIR[1])
    return bool(air.mean() >= _AIR_SHARE and (values == values.round()).all())


def _window(survey: Survey, number: int) -> Window:
    """Return the rule of one channel: from its labelled voxels, or from all where those are constant."""
    values = np.zeros(1)
    for foreground in (True, False):
        found = survey.intensities(foreground=foreground)[number].astype(np.float64)
        if found.size and np.ptp(np.percentile(found, _CLIP)) > 0:
            values = found
            break
    low, high = (float(value) for value in np.percentile(values, _CLIP))
    kept = values.clip(low, high)
    mean, deviation = float(kept.mean()), float(kept.std()) or 1.0
    low, high, mean, deviation = (float(f"{value:.6g}") for value in (low, high, mean, deviation))
    return Window(low=low, high=high, mean=mean, deviation=deviation)
