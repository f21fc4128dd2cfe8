"""Validation: who is held back, what is scored, and when a clean-up is worth it."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from conftest import CARD, ORDERS, PLAN, random_bundle
from hypothesis import given
from hypothesis import strategies as st

from medseg.bundle import Bundle, LabelScore, Validation, WorstCase, canonical_json
from medseg.errors import GeometryError, UsageError
from medseg.evaluation import Case, Score
from medseg.geometry import Geometry
from medseg.plan import Label, Plan
from medseg.postprocess import keep_largest
from medseg.training.validation import (
    Effect,
    effects_of_largest,
    folds,
    held_out,
    largest_pieces_that_help,
    lines,
    score_case,
    summarise_validation,
)
from medseg.volume import LabelMap

FRONT, BACK = Label(value=1, name="front"), Label(value=2, name="back")
THREE = Plan.parse(PLAN)
GROUPS = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "long name"]), max_size=60)


def sides(groups, split):
    return [{groups[n] or n for n in part} for part in split]


def units(groups):
    return len({group or n for n, group in enumerate(groups)})


def largest_unit(groups):
    return max(Counter(group or n for n, group in enumerate(groups)).values())


class TestHeldOut:
    @given(GROUPS, st.integers(0, 5))
    def test_no_group_stands_on_both_sides_and_no_case_is_lost(self, groups, seed):
        if units(groups) < 2:
            with pytest.raises(UsageError, match="none can be held back"):
                held_out(groups, seed=seed)
            return
        training, validation = split = held_out(groups, seed=seed)
        assert sorted(training + validation) == list(range(len(groups)))
        assert training == sorted(training)
        assert validation == sorted(validation)
        assert training
        assert validation
        assert not set.intersection(*sides(groups, split))
        assert held_out(groups, seed=seed) == split

    @pytest.mark.parametrize(
        ("cases", "wanted"), [(2, 1), (9, 1), (14, 1), (16, 2), (20, 2), (260, 26), (2000, 200), (5000, 200)]
    )
    def test_about_a_tenth_at_least_one_and_at_most_200(self, cases, wanted):
        assert len(held_out([""] * cases)[1]) == wanted

    def test_a_share_is_taken_as_it_is_asked_for_and_one_case_is_always_left_to_train_on(self):
        assert len(held_out([""] * 40, share=0.25)[1]) == 10
        assert len(held_out([""] * 4, share=0.99)[0]) == 1

    def test_a_group_that_is_much_too_large_is_passed_over(self):
        groups = ["large"] * 50 + [""] * 50
        for seed in range(20):
            validation = held_out(groups, seed=seed)[1]
            assert len(validation) == 10
            assert min(validation) >= 50

    def test_a_pair_is_no_nearer_to_one_than_none(self):
        groups = [*"aabbccdd", "", ""]
        for seed in range(20):
            assert held_out(groups, seed=seed)[1] in ([8], [9])

    def test_where_all_groups_are_too_large_the_smallest_is_held_back(self):
        groups = ["a"] * 30 + ["b"] * 20 + ["c"] * 25
        for seed in range(10):
            assert held_out(groups, seed=seed)[1] == list(range(30, 50))

    def test_groups_never_take_it_beyond_the_most(self):
        groups = [f"patient {n % 150}" for n in range(4500)]  # 30 cases each
        assert len(held_out(groups)[1]) == 180

    def test_another_seed_draws_other_cases(self):
        assert len({tuple(held_out([""] * 100, seed=seed)[1]) for seed in range(10)}) == 10

    def test_one_patient_alone_cannot_be_split(self):
        with pytest.raises(UsageError, match=r"^3 cases of 1 group: none can be held back.*--all"):
            held_out(["anna"] * 3)
        with pytest.raises(UsageError, match=r"^1 case of 1 group"):
            held_out([""])


class TestFolds:
    @given(GROUPS, st.integers(2, 7), st.integers(0, 3))
    def test_every_case_is_validated_once_and_no_group_is_split(self, groups, count, seed):
        if units(groups) < count:
            with pytest.raises(UsageError, match=f"^--folds {count} of {len(groups)} case"):
                folds(groups, count, seed=seed)
            return
        found = folds(groups, count, seed=seed)
        assert len(found) == count
        assert sorted(n for _, validation in found for n in validation) == list(range(len(groups)))
        for split in found:
            assert sorted(split[0] + split[1]) == list(range(len(groups)))
            assert split[0]
            assert split[1]
            assert not set.intersection(*sides(groups, split))
        sizes = [len(validation) for _, validation in found]
        assert max(sizes) - min(sizes) <= largest_unit(groups)
        assert folds(groups, count, seed=seed) == found

    def test_single_cases_are_shared_out_evenly(self):
        assert sorted(len(validation) for _, validation in folds([""] * 263, 5)) == [52, 52, 53, 53, 53]

    def test_large_groups_are_given_out_first(self):
        groups = [*"abcdef", *["g"] * 6, *["h"] * 3, *["i"] * 3]
        assert sorted(len(validation) for _, validation in folds(groups, 3)) == [6, 6, 6]

    def test_another_seed_gives_other_folds(self):
        assert folds([""] * 50, 5, seed=0) != folds([""] * 50, 5, seed=1)

    def test_the_draw_does_not_follow_the_order_of_the_cases(self):
        first = folds([""] * 100, 2)[0][1]
        assert 30 < np.mean(first) < 70
        assert first != list(range(0, 100, 2))

    def test_fewer_than_two_folds_are_none(self):
        for count in (1, 0, -3):
            with pytest.raises(UsageError, match=f"--folds {count}; give 2 or more"):
                folds([""] * 9, count)


def line(*voxels, labels=(FRONT, BACK)):
    """Return a label map of one row of voxels that is three slices thick, so that it is no slice."""
    array = np.zeros((len(voxels), 3, 3), np.uint8)
    array[:, 1, 1] = voxels
    return LabelMap(array, Geometry(np.eye(4), array.shape), labels)


class TestLargestPieces:
    def test_effects_by_hand(self):
        reference = line(1, 1, 0, 0, 0, 2, 2, 0)
        prediction = line(1, 1, 0, 1, 0, 2, 0, 0)
        assert effects_of_largest(prediction, reference) == [
            Effect("front", "front", 4 / 5, 1.0),
            Effect("back", "back", 2 / 3, 2 / 3),
        ]

    def test_a_true_part_that_is_cut_off_lowers_dice(self):
        reference = prediction = line(1, 1, 0, 1, 0, 0)
        front, back = effects_of_largest(prediction, reference)
        assert front == Effect("front", "front", 1.0, 4 / 5)
        assert (back.label, math.isnan(back.before), math.isnan(back.after)) == ("back", True, True)

    def test_labels_that_share_atoms_are_cleaned_one_at_a_time(self):
        whole, core = Label(value=1, name="whole", atoms=(1, 2)), Label(value=2, name="core")
        labels = (whole, core, Label(value=3, name="apart"))
        reference = line(1, 1, 1, 2, 0, 2, 0, 0, 3, 0, labels=labels)
        prediction = line(1, 1, 1, 2, 0, 2, 0, 0, 3, 3, labels=labels)
        found = {(effect.cleaned, effect.label): (effect.before, effect.after) for effect in
                 effects_of_largest(prediction, reference)}  # fmt: skip
        assert found == {
            ("apart", "apart"): (2 / 3, 2 / 3),
            ("whole", "whole"): (1, pytest.approx(8 / 9)),
            ("whole", "core"): (1, pytest.approx(2 / 3)),
            ("core", "core"): (1, pytest.approx(2 / 3)),
            ("core", "whole"): (1, pytest.approx(8 / 9)),
        }

    @pytest.mark.parametrize("order", ORDERS[::7])
    def test_effects_do_not_depend_on_how_the_reference_is_stored(self, order):
        rng = np.random.default_rng(3)
        geometry = Geometry(np.diag([1, 2, 3, 1.0]), (7, 6, 5))
        one, other = (LabelMap(rng.integers(0, 3, geometry.shape, np.uint8), geometry, (FRONT, BACK)) for _ in range(2))
        stored = LabelMap(np.ascontiguousarray(order.apply(other.array)), geometry.reordered(order), other.labels)
        assert effects_of_largest(one, stored) == effects_of_largest(one, other)

    def test_the_effects_are_those_of_the_cleaned_map(self):
        rng = np.random.default_rng(0)
        geometry = Geometry(np.eye(4), (9, 9, 9))
        prediction, reference = (
            LabelMap((rng.random(geometry.shape) > 0.8).astype(np.uint8) * rng.integers(1, 3, geometry.shape, np.uint8),
                     geometry, (FRONT, BACK)) for _ in range(2)
        )  # fmt: skip
        cleaned, _ = keep_largest(prediction, ["front", "back"])
        for effect in effects_of_largest(prediction, reference):
            a, b = cleaned.mask(effect.label), reference.mask(effect.label)
            assert effect.after == 2 * (a & b).sum() / (a.sum() + b.sum())

    def test_a_label_that_gains_in_most_cases_is_chosen_in_the_order_of_the_plan(self):
        effects = [Effect(name, name, 0.8, 0.82) for name in ("back", "front") for _ in range(3)]
        assert largest_pieces_that_help(effects, THREE) == ("front", "back")
        assert largest_pieces_that_help(iter(effects[:3]), THREE) == ("back",)

    @pytest.mark.parametrize(
        ("changes", "chosen"),
        [
            ([], False),
            ([0, 0, 0], False),  # nothing was removed
            ([0.05, math.nan], False),  # one case shows nothing
            ([0.05, 0.05], True),
            ([1e-4, 1e-4, 1e-4], False),  # too little
            ([2e-4, 2e-4, 2e-4], True),
            ([0.05, 0.05, 0, 0, 0, 0, 0], True),  # nothing to remove in most
            ([0.09, 0.09, -0.01, -0.01], False),  # not in more cases than it falls
            ([0.09, 0.09, 0.09, -0.01, -0.01], True),
            ([0.01, 0.01, 0.01, -0.05], False),  # a lower mean
            ([0.09, 0.09, 0.09, 0.09, -0.11], False),  # a true part cut off
            ([0.09, 0.09, 0.09, 0.09, -0.099], True),
        ],
    )
    def test_the_rule(self, changes, chosen):
        effects = [Effect("front", "front", 0.5, 0.5 + change) for change in changes]
        assert largest_pieces_that_help(effects, THREE) == (("front",) if chosen else ())

    @pytest.mark.parametrize(("other", "chosen"), [((0, 0), True), ((0.1, -0.01), True), ((0.01, -0.02), False),
                                                   ((0.3, -0.11), False), ((math.nan, -0.01), False)])  # fmt: skip
    def test_a_label_that_shares_atoms_must_not_pay_for_it(self, other, chosen):
        effects = [Effect("front", "front", 0.5, 0.6)] * 2
        effects += [Effect("front", "back", 0.5, 0.5 + change) for change in other]
        assert largest_pieces_that_help(effects, THREE) == (("front",) if chosen else ())

    def test_a_network_of_slices_gets_none(self):
        effects = [Effect("front", "front", 0.5, 0.6)] * 5
        assert largest_pieces_that_help(effects, THREE) == ("front",)
        slices = THREE.model_copy(update={"axes": 2, "patch": (16, 16, 1)})
        assert largest_pieces_that_help(effects, slices) == ()

    def test_what_is_chosen_fits_into_the_plan(self):
        names = largest_pieces_that_help([Effect("back", "back", 0.5, 0.6)] * 2, THREE)
        assert Plan.parse({**PLAN, "largest_component": names}).largest_component == ("back",)


def case(name, *, front, back=(math.nan, math.nan), diagonal=100.0, physical=True):
    """Return a case with Dice and HD95 of two labels; Dice 0 is a miss."""

    def state(dice):
        return "undefined" if math.isnan(dice) else "ok" if dice else "missed"

    scores = (
        Score(name, value, label, state(dice), {"dice": dice, "hd95": hd95})
        for value, label, (dice, hd95) in ((1, "front", front), (2, "back", back))
    )
    return Case(name, tuple(scores), physical, diagonal)


class TestSummary:
    def test_means_by_hand_with_a_miss_as_the_worst(self):
        cases = [case("a", front=(0.9, 1.0)), case("b", front=(0.6, 4.0)), case("c", front=(0, math.inf))]
        found = summarise_validation(cases, "held back")
        dice, hd95 = found.scores[:2]
        assert (found.how, found.cases) == ("held back", 3)
        assert (dice.label, dice.metric, dice.n, dice.missed, dice.mean) == ("front", "dice", 3, 1, 0.5)
        assert (hd95.label, hd95.metric, hd95.n, hd95.missed, hd95.mean) == ("front", "hd95_mm", 3, 1, 35.0)
        assert 0 <= dice.low < 0.5 < dice.high <= 0.9
        assert 1 <= hd95.low < 35 < hd95.high <= 100

    def test_a_label_that_is_nowhere_has_no_numbers(self):
        scores = summarise_validation([case("a", front=(0.9, 1.0))], "held back").scores
        nothing = {"n": 0, "missed": 0, "mean": None, "low": None, "high": None}
        assert scores == (
            LabelScore(label="front", metric="dice", n=1, missed=0, mean=0.9, low=None, high=None),
            LabelScore(label="front", metric="hd95_mm", n=1, missed=0, mean=1, low=None, high=None),
            LabelScore(label="back", metric="dice", **nothing),
            LabelScore(label="back", metric="hd95_mm", **nothing),
        )

    def test_a_label_that_was_made_up_counts_as_a_miss(self):
        cases = [
            score_case("a", line(1, 1, 0, 0), line(1, 1, 0, 0)),
            score_case("b", line(1, 1, 0, 0), line(0, 0, 0, 0)),
        ]
        dice, hd95 = summarise_validation(cases, "held back").scores[:2]
        assert (dice.n, dice.missed, dice.mean) == (2, 1, 0.5)
        assert (hd95.n, hd95.missed) == (2, 1)
        assert hd95.mean == pytest.approx(math.sqrt(4**2 + 3**2 + 3**2) / 2)

    def test_the_five_worst_cases_are_named_with_their_worst_label(self):
        cases = [case(f"case {n}", front=(n / 10, 1.0), back=(0.55, 1.0)) for n in range(9)]
        cases.append(case("nothing", front=(math.nan, math.nan)))
        assert summarise_validation(cases, "held back").worst == (
            WorstCase(case="case 0", label="front", dice=0.0),
            WorstCase(case="case 1", label="front", dice=0.1),
            WorstCase(case="case 2", label="front", dice=0.2),
            WorstCase(case="case 3", label="front", dice=0.3),
            WorstCase(case="case 4", label="front", dice=0.4),
        )
        back = summarise_validation(cases[6:8], "held back").worst
        assert [(worst.case, worst.label, worst.dice) for worst in back] == [
            ("case 6", "back", 0.55),
            ("case 7", "back", 0.55),
        ]

    def test_distances_of_pictures_are_in_pixels(self):
        scores = summarise_validation([case("a", front=(0.9, 3.0), physical=False)], "held back").scores
        assert scores[1].metric == "hd95_px"

    def test_a_case_is_scored_by_dice_and_hd95(self):
        scored = score_case("a", line(1, 1, 0, 0, 2), line(1, 1, 1, 1, 0))
        values = [(score.name, score.state, dict(score.values)) for score in scored.scores]
        assert values[0] == ("front", "ok", {"dice": 4 / 6, "hd95": pytest.approx(1.85)})  # 0, 0, 1, 2 mm
        assert values[1] == ("back", "spurious", {"dice": 0, "hd95": math.inf})

    def test_oblique_voxel_axes_cost_hd95_and_no_more(self):
        affine = np.eye(4)
        affine[0, 1] = 0.2
        straight = line(1, 1, 0, 0)
        oblique = LabelMap(straight.array, Geometry(affine, straight.geometry.shape), straight.labels)
        cases = [score_case("a", oblique, oblique), score_case("b", straight, straight)]
        found = summarise_validation(cases, "held back")
        assert [(score.label, score.metric) for score in found.scores] == [("front", "dice"), ("back", "dice")]
        assert found.scores[0].mean == 1

    def test_grids_that_differ_are_refused(self):
        with pytest.raises(GeometryError, match="different grids"):
            score_case("a", line(1, 1, 0, 0), line(1, 1, 0))

    def test_the_record_travels_in_the_card(self, tmp_path):
        cases = [case("a", front=(0.9, 1.0)), case("b", front=(1 / 3, 4.0))]
        found = summarise_validation(cases, "2 of 20 cases held back")
        card = CARD.model_copy(update={"validation": found})
        path = tmp_path / "model.safetensors"
        tiny = random_bundle()
        Bundle.of(tiny.members, plan=tiny.plan, card=card).save(path)
        assert Bundle.load(path).card.validation == found
        assert Validation.parse(json.loads(canonical_json(found))) == found


class TestLines:
    def test_the_table_is_aligned(self):
        def scores(label, *metrics):
            return [LabelScore(label=label, metric=name, n=12, missed=missed, mean=mean, low=low, high=high)
                    for name, missed, mean, low, high in metrics]  # fmt: skip

        found = Validation(
            how="the fold's own cases",
            cases=12,
            scores=(
                *scores("front", ("dice", 0, 0.9, 0.88, 0.91), ("hd95_mm", 0, 1.25, 1.0, 12.5)),
                *scores("a long name", ("dice", 1, 0.5, None, None), ("hd95_mm", 1, None, None, None)),
            ),
            worst=(WorstCase(case="case 7", label="front", dice=0.12345), WorstCase(case="b", label="x", dice=0.5)),
        )
        assert lines(found) == [
            "12 cases, the fold's own cases",
            "mean [95 % interval]; a missed label counts as the worst there is",
            "label         n  missed                  Dice             HD95 mm",
            "front        12       0  0.900 [0.880, 0.910]  1.25 [1.00, 12.50]",
            "a long name  12       1                 0.500                   -",
            "lowest Dice",
            "case 7  front  0.123",
            "b           x  0.500",
        ]

    def test_one_case_without_anything_is_said_plainly(self):
        found = summarise_validation([case("a", front=(math.nan, math.nan), physical=False)], "held back")
        assert lines(found) == [
            "1 case, held back",
            "mean [95 % interval]; a missed label counts as the worst there is",
            "label  n  missed  Dice  HD95 px",
            "front  0       0     -        -",
            "back   0       0     -        -",
        ]
