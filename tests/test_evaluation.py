"""Evaluation: grids, labels, states, means with misses, intervals, pairs of files, two sets."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import ORDERS, rotation
from scipy import ndimage, stats

import medseg
from medseg.errors import GeometryError, UsageError
from medseg.evaluation import (
    METRICS,
    Case,
    Evaluation,
    Pair,
    Score,
    Settings,
    Wanted,
    choose_metrics,
    compare,
    complete,
    evaluate,
    pair_files,
    summarise,
)
from medseg.evaluation.differences import differences
from medseg.evaluation.result import as_csv, as_record, rows
from medseg.evaluation.summary import bootstrap
from medseg.geometry import Geometry
from medseg.plan import Label
from medseg.volume import LabelMap

LIVER, SPLEEN = Label(value=1, name="liver"), Label(value=2, name="spleen")


def grid(shape=(12, 10, 8), spacing=(1.0, 1.5, 2.0), seed=0):
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * spacing
    affine[:3, 3] = (-20, 31, 5)
    return Geometry(affine, shape)


def blobs(seed=0, geometry=None, labels=()):
    geometry = geometry or grid()
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=geometry.shape), 2)
    return LabelMap(np.digitize(noise, np.quantile(noise, [0.5, 0.8])).astype(np.uint8), geometry, labels)


def values(case):
    return {score.name: score.values for score in case.scores}


class TestGrids:
    @pytest.mark.parametrize("order", ORDERS[::5])
    def test_a_grid_stored_in_another_order_is_the_same_grid(self, order):
        reference = blobs(0)
        prediction = blobs(1)
        stored = replace(
            prediction,
            array=np.ascontiguousarray(order.apply(prediction.array)),
            geometry=prediction.geometry.reordered(order),
        )
        found, wanted = evaluate(stored, reference), evaluate(prediction, reference)
        assert values(found) == values(wanted)
        assert not found.resampled

    def test_a_shifted_grid_is_refused_with_how_far(self):
        reference = blobs(0)
        shifted = reference.geometry.cropped((1, 0, 0), (13, 10, 8))
        with pytest.raises(GeometryError, match=r"corners are up to 1 mm apart; .*--resample"):
            evaluate(replace(reference, geometry=shifted), reference)

    def test_grids_of_other_shape_and_spacing_are_refused_with_both(self):
        reference = blobs(0)
        coarse = reference.geometry.respaced((2, 3, 4))
        with pytest.raises(GeometryError, match=r"6 x 5 x 4 voxels of 2 x 3 x 4 mm.* and reference \(12 x 10 x 8"):
            evaluate(blobs(0, coarse), reference)

    def test_resampling_takes_the_nearest_voxel_and_is_said(self):
        reference = blobs(0)
        bigger = reference.geometry.cropped((-2, -3, -1), (14, 13, 9))
        padded = replace(reference, array=np.pad(reference.array, ((2, 2), (3, 3), (1, 1))), geometry=bigger)
        found = evaluate(padded, reference, Settings(resample=True))
        assert found.resampled
        assert values(found) == values(evaluate(reference, reference))
        part = reference.geometry.cropped((0, 0, 0), (6, 10, 8))
        found = evaluate(
            replace(reference, array=reference.array[:6], geometry=part), reference, Settings(resample=True)
        )
        assert values(found)["1"]["sensitivity"] == (reference.array[:6] == 1).sum() / (reference.array == 1).sum()

    def test_grids_without_a_common_point_are_refused_even_then(self):
        reference = blobs(0)
        elsewhere = reference.geometry.cropped((50, 0, 0), (62, 10, 8))
        with pytest.raises(GeometryError, match="no point in common"):
            evaluate(replace(reference, geometry=elsewhere), reference, Settings(resample=True))

    def test_header_rounding_is_no_other_grid(self):
        reference = blobs(0)
        affine = reference.geometry.affine + 1e-5
        affine[3] = (0, 0, 0, 1)
        assert not evaluate(replace(reference, geometry=Geometry(affine, (12, 10, 8))), reference).resampled

    def test_a_picture_and_a_scan_are_not_compared(self):
        picture = Geometry(np.eye(4), (12, 10, 8), physical=False)
        with pytest.raises(GeometryError, match="the prediction has no physical size"):
            evaluate(replace(blobs(0), geometry=picture), blobs(0), Settings(resample=True))
        small = Geometry(np.eye(4), (12, 10, 1), physical=False)
        with pytest.raises(GeometryError, match="12 x 10 x 1 pixels, the reference 12 x 10 x 8"):
            evaluate(LabelMap(np.zeros((12, 10, 1), np.uint8), small), replace(blobs(0), geometry=picture))

    def test_oblique_voxel_axes_are_refused_for_distances_only(self):
        affine = np.eye(4)
        affine[0, 1] = 0.1
        sheared = replace(blobs(0), geometry=Geometry(affine, (12, 10, 8)))
        with pytest.raises(GeometryError, match="off the right angle"):
            evaluate(sheared, sheared)
        assert values(evaluate(sheared, sheared, Settings(choose_metrics(["dice"]))))["1"] == {"dice": 1}


class TestLabels:
    def test_by_number_without_names(self):
        assert [(score.label, score.name) for score in evaluate(blobs(0), blobs(1)).scores] == [(1, "1"), (2, "2")]

    def test_names_of_either_file_are_used(self):
        named, bare = blobs(0, labels=(LIVER, SPLEEN)), blobs(1)
        assert list(values(evaluate(named, bare))) == list(values(evaluate(bare, named))) == ["liver", "spleen"]
        third = replace(bare, array=np.where(bare.array == 2, 7, bare.array))
        assert [score.name for score in evaluate(named, third).scores] == ["liver", "spleen", "7"]

    def test_two_tables_are_matched_by_name_not_by_number(self):
        one = blobs(0, labels=(LIVER, SPLEEN))
        other = replace(
            one,
            array=np.array([0, 2, 1])[one.array].astype(np.uint8),
            labels=(Label(value=2, name="liver"), Label(value=1, name="spleen")),
        )
        assert {name: scores["dice"] for name, scores in values(evaluate(other, one)).items()} == {
            "liver": 1,
            "spleen": 1,
        }

    def test_tables_without_a_common_name_are_refused(self):
        other = blobs(0, labels=(Label(value=1, name="heart"),))
        with pytest.raises(UsageError, match=r"labels heart, the reference liver, spleen; .*--labels"):
            evaluate(other, blobs(0, labels=(LIVER, SPLEEN)))

    def test_what_the_user_asks_for(self):
        one, two = blobs(0), blobs(1)
        settings = Settings(labels=tuple(map(Wanted.parse, ["organ=1+2", "2", "core=2"])))
        found = values(evaluate(one, two, settings))
        assert list(found) == ["organ", "2", "core"]
        done = complete([evaluate(one, two, settings), evaluate(two, one, settings)], settings.metrics)
        assert [score.name for score in done[1].scores] == ["organ", "2", "core"]
        assert (
            found["organ"]["dice"]
            == medseg.evaluation.evaluate(
                replace(one, array=(one.array > 0).astype(np.uint8)),
                replace(two, array=(two.array > 0).astype(np.uint8)),
            )
            .scores[0]
            .values["dice"]
        )
        assert found["2"] == found["core"] == values(evaluate(one, two))["2"]

    def test_a_name_that_no_file_has_is_refused_with_those_there_are(self):
        with pytest.raises(UsageError, match="no label named 'heart'; the files have: liver, spleen"):
            evaluate(blobs(0, labels=(LIVER, SPLEEN)), blobs(1), Settings(labels=(Wanted("heart"),)))

    @pytest.mark.parametrize("text", ["liver=", "=3", "liver=x", "0", "liver=1+", "liver=70000"])
    def test_words_that_mean_no_label(self, text):
        with pytest.raises(UsageError, match="label"):
            Wanted.parse(text)

    def test_numbers_mean_labels_where_a_file_has_them(self, tmp_path):
        """In a .seg.nrrd of overlapping segments the voxels hold combinations, not the numbers of the labels."""
        whole, core = Label(value=1, name="whole", atoms=(1, 2)), Label(value=2, name="core", atoms=(2,))
        bare = blobs(0, grid(seed=3))
        medseg.write(replace(bare, labels=(whole, core)), tmp_path / "layers.seg.nrrd")
        layered = medseg.read_labels(tmp_path / "layers.seg.nrrd")
        with pytest.raises(UsageError, match=r"whole, core overlap, and the other file has numbers only; .*--labels"):
            evaluate(layered, bare)
        wanted = tuple(map(Wanted.parse, ["whole=1+2", "core=2"]))
        for found in (
            evaluate(layered, bare, Settings(labels=wanted)),
            evaluate(bare, layered, Settings(labels=wanted)),
        ):
            assert {score.name: score.values["dice"] for score in found.scores} == {"whole": 1, "core": 1}

    def test_a_label_asked_for_twice_is_refused(self):
        for words in (["liver=1", "liver=2"], ["1", "1"], ["1", "liver"]):
            with pytest.raises(UsageError, match="more than once"):
                evaluate(blobs(0, labels=(LIVER, SPLEEN)), blobs(1), Settings(labels=tuple(map(Wanted.parse, words))))

    def test_a_name_that_is_a_number_hides_no_other_label(self):
        odd = (Label(value=2, name="1"),)
        found = evaluate(blobs(0, labels=odd), blobs(0))
        assert [(score.label, score.name, score.state) for score in found.scores] == [
            (1, "number 1", "missed"),  # the prediction's table does not have it
            (2, "1", "ok"),
        ]

    def test_a_number_that_stands_for_two_labels_is_refused(self):
        two = (Label(value=1, name="liver", atoms=(1,)), Label(value=1, name="tumour", atoms=(2,)))
        with pytest.raises(UsageError, match="the number 1 stands for liver and tumour; ask for labels by name"):
            evaluate(blobs(0, labels=two), blobs(1), Settings(labels=(Wanted("1", (1,)),)))

    def test_overlapping_regions_of_a_table(self):
        whole, core = Label(value=1, name="whole", atoms=(1, 2)), Label(value=2, name="core", atoms=(2,))
        one, two = blobs(0, labels=(whole, core)), blobs(1, labels=(whole, core))
        found = evaluate(one, two)
        for score in found.scores:
            masks = one.mask(score.name), two.mask(score.name)
            assert score.values["dice"] == medseg.metrics.dice(*masks)
            assert score.values["hd95"] == medseg.metrics.hausdorff_distance(*masks, grid().spacing, percentile=95)

    @pytest.mark.parametrize("swap", [False, True])
    def test_regions_that_overlap_in_one_file_only(self, swap):
        whole, core = Label(value=1, name="whole", atoms=(1, 2)), Label(value=2, name="core", atoms=(2,))
        flat = blobs(1, labels=(Label(value=1, name="whole"), Label(value=2, name="core")))
        pair = [blobs(0, labels=(whole, core)), flat]
        one, two = pair[::-1] if swap else pair
        for score in evaluate(one, two).scores:
            assert score.values["dice"] == medseg.metrics.dice(one.mask(score.name), two.mask(score.name))


def test_every_metric_of_the_table_is_that_of_the_function():
    prediction, reference = blobs(0), blobs(1)
    found = values(evaluate(prediction, reference, Settings(tuple(METRICS.values()), tolerance=1.7)))["2"]
    a, b, spacing = prediction.array == 2, reference.array == 2, grid().spacing
    wanted = {
        "dice": medseg.metrics.dice(a, b),
        "iou": medseg.metrics.iou(a, b),
        "hd": medseg.metrics.hausdorff_distance(a, b, spacing),
        "hd95": medseg.metrics.hausdorff_distance(a, b, spacing, percentile=95),
        "assd": medseg.metrics.average_surface_distance(a, b, spacing),
        "nsd": medseg.metrics.surface_dice(a, b, spacing, 1.7),
        "volume": medseg.metrics.volume(a, spacing),
        "reference": medseg.metrics.volume(b, spacing),
        "sensitivity": medseg.metrics.sensitivity(a, b),
        "precision": medseg.metrics.precision(a, b),
        "specificity": medseg.metrics.specificity(a, b),
        "rmsd": medseg.metrics.rms_surface_distance(a, b, spacing),
        "volume_error": medseg.metrics.absolute_volume_error(a, b, spacing),
        "relative_volume_error": medseg.metrics.relative_volume_error(a, b),
        "boundary_iou": medseg.metrics.boundary_iou(a, b, spacing, 1.7),
        "cldice": medseg.metrics.centreline_dice(a, b),
        "lesion_f1": medseg.metrics.detection_f1(a, b),
        "lesion_dice": medseg.metrics.lesion_dice(a, b),
        "panoptic_quality": medseg.metrics.panoptic_quality(a, b),
    }
    assert list(found) == list(METRICS) == list(wanted)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(UsageError, match="unknown metric 'hd59'; choose of: all, default, dice"):
        choose_metrics(["dice", "hd59"])
    assert [metric.name for metric in choose_metrics(["nsd", "dice"])] == ["dice", "nsd"]
    assert len(choose_metrics(["all"])) == len(METRICS) > len(choose_metrics(["default"]))


class TestStates:
    def maps(self, predicted, true):
        geometry = Geometry(np.diag([1, 1, 2, 1.0]), (6, 6, 6))
        arrays = []
        for present in (predicted, true):
            array = np.zeros((6, 6, 6), np.uint8)
            for label in present:
                array[label : label + 2, 1:3, 1:3] = label
            arrays.append(LabelMap(array, geometry))
        return arrays

    @pytest.mark.parametrize("metrics", ["default", "all"])
    def test_each_state_and_its_values(self, metrics):
        settings = Settings(choose_metrics([metrics]), labels=tuple(map(Wanted.parse, "1234")))
        case = evaluate(*self.maps([1, 3], [1, 4]), settings)
        assert [score.state for score in case.scores] == ["ok", "undefined", "spurious", "missed"]
        assert case.scores[0].values["dice"] == 1
        undefined, spurious, missed = (score.values for score in case.scores[1:])
        for values_of_one in (spurious, missed):
            assert values_of_one["dice"] == values_of_one["iou"] == values_of_one["nsd"] == 0
            for name in ("hd", "hd95", "assd", "rmsd"):
                assert values_of_one[name] == math.inf
        assert missed["relative_volume_error"] == -1
        assert spurious["relative_volume_error"] == math.inf
        for name in ("dice", "iou", "hd95", "assd", "nsd", "sensitivity", "relative_volume_error"):
            assert math.isnan(undefined[name])
        assert undefined["volume"] == undefined["volume_error"] == 0

    def test_a_label_that_only_other_cases_have_is_undefined_here(self):
        cases = [evaluate(*self.maps([1], [1]), case="a"), evaluate(*self.maps([1], [1, 2]), case="b")]
        done = complete(cases, Settings().metrics)
        assert [score.state for case in done for score in case.scores] == ["ok", "undefined", "ok", "missed"]
        asked = evaluate(*self.maps([1], [1]), Settings(labels=(Wanted("2", (2,)),))).scores[0]
        assert done[0].scores[1].values == pytest.approx(asked.values, nan_ok=True)

    def test_a_label_is_one_by_its_name_however_its_number_varies(self):
        cases = []
        for name, (liver, spleen) in {"a": (1, 2), "b": (2, 1)}.items():
            array = np.zeros((6, 6, 6), np.uint8)
            array[:2], array[4:] = liver, spleen
            table = (Label(value=liver, name="liver"), Label(value=spleen, name="spleen"))
            labels = LabelMap(array, Geometry(np.eye(4), (6, 6, 6)), table)
            cases.append(evaluate(labels, labels, case=name))
        summaries = summarise(complete(cases, Settings().metrics), Settings().metrics)
        assert [(found.name, found.label, found.n, found.ok) for found in summaries] == [
            ("liver", 1, 2, 2),
            ("spleen", 2, 2, 2),
        ]

    def test_nothing_that_is_no_json_reaches_a_file(self):
        cases = complete([evaluate(*self.maps([1, 3], [1, 4]))], Settings().metrics)
        evaluation = Evaluation("p", "r", Settings(), tuple(cases), tuple(summarise(cases, Settings().metrics)))
        text = json.dumps(as_record(evaluation), allow_nan=False)
        assert "Infinity" not in text
        found = {row["label"]: row for row in rows(evaluation)}
        assert found[4]["state"] == "missed"
        assert found[4]["hd95_mm"] is None
        assert found[4]["dice"] == 0
        header, *lines = as_csv(evaluation).decode().splitlines()
        assert header.startswith("case,label,name,state,dice,iou,hd_mm,hd95_mm,assd_mm,nsd,volume_ml,reference_ml,")
        assert lines[2].startswith("case,4,4,missed,0.0,0.0,,,,0.0,0.0,0.016,")


def case(name, dice, hd95, state="ok", diagonal=100.0):
    return Case(name, (Score(name, 1, "liver", state, {"dice": dice, "hd95": hd95}),), physical=True, diagonal=diagonal)


METRICS_OF_TWO = choose_metrics(["dice", "hd95"])


class TestSummary:
    cases = (
        case("a", 0.9, 2.0),
        case("b", 0.7, 4.0),
        case("c", 0.0, math.inf, "missed", 80.0),
        case("d", 0.0, math.inf, "spurious", 60.0),
        case("e", math.nan, math.nan, "undefined"),
    )

    def test_misses_are_in_one_mean_and_beside_the_other(self):
        found = summarise(self.cases, METRICS_OF_TWO)[0]
        assert (found.n, found.ok, found.missed, found.spurious, found.undefined) == (5, 2, 1, 1, 1)
        distance = found.metrics["hd95"]
        assert (distance.defined.n, distance.defined.mean) == (2, 3.0)
        assert (distance.with_misses.n, distance.with_misses.mean) == (4, (2 + 4 + 80 + 60) / 4)
        overlap = found.metrics["dice"]
        assert (overlap.defined.n, overlap.defined.mean) == (4, pytest.approx(0.4))
        assert overlap.with_misses == overlap.defined
        assert (distance.least, distance.quartiles, distance.most) == (2, (2.5, 3, 3.5), 4)

    def test_missing_a_structure_never_makes_the_mean_with_misses_better(self):
        full = summarise([case("a", 0.9, 2.0), case("b", 0.2, 50.0)], METRICS_OF_TWO)[0].metrics["hd95"]
        less = summarise([case("a", 0.9, 2.0), case("b", 0.0, math.inf, "missed")], METRICS_OF_TWO)[0].metrics["hd95"]
        assert less.defined.mean < full.defined.mean  # the trap
        assert less.with_misses.mean > full.with_misses.mean

    def test_the_interval_is_that_of_scipy(self):
        sample = np.random.default_rng(1).normal(5, 2, 40)
        found = bootstrap(sample)
        theirs = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
        assert found.mean == pytest.approx(sample.mean())
        assert found.low == pytest.approx(theirs.low, abs=0.06)
        assert found.high == pytest.approx(theirs.high, abs=0.06)
        assert bootstrap(sample) == found

    def test_one_case_has_no_interval_and_no_case_no_mean(self):
        assert summarise([], METRICS_OF_TWO) == []
        one = bootstrap(np.array([3.0, np.nan]))
        assert (one.n, one.mean) == (1, 3.0)
        assert math.isnan(one.low)
        assert math.isnan(bootstrap(np.array([np.inf])).mean)


class TestTwoSets:
    def test_differences_are_paired_by_name_and_misses_count(self):
        first = [case("a", 0.9, 2.0), case("b", 0.8, 3.0), case("c", 0.0, math.inf, "missed", 90.0)]
        second = [case("c", 0.5, 10.0), case("a", 0.95, 1.0), case("z", 0.1, 99.0)]
        found = {difference.metric: difference for difference in compare(first, second, METRICS_OF_TWO)}
        assert found["dice"].difference.n == 2
        assert found["dice"].difference.mean == pytest.approx((0.05 + 0.5) / 2)
        assert found["hd95"].difference.mean == pytest.approx((-1 - 80) / 2)
        assert (found["hd95"].first, found["hd95"].second) == (46.0, 5.5)
        assert (found["hd95"].higher, found["hd95"].lower) == (0, 2)

    def test_p_is_wilcoxons(self):
        rng = np.random.default_rng(0)
        one, two = rng.random((2, 30))
        sides = [[case(str(n), value, 1.0) for n, value in enumerate(side)] for side in (one, two)]
        found = compare(*sides, METRICS_OF_TWO)
        assert found[0].p == pytest.approx(stats.wilcoxon(two - one).pvalue)
        assert found[1].p == 1  # no case differs
        assert compare([], [], METRICS_OF_TWO) == []


class TestPairs:
    def files(self, folder, *names):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"")
        return folder

    def test_names_pair_without_suffix_and_seg(self, tmp_path):
        predictions = self.files(
            tmp_path / "p", "a_seg.nii.gz", "a_seg.png", "a_seg.json", "a.nii.gz", "b.mha", "x.nii"
        )
        references = self.files(tmp_path / "r", "a.nii.gz", "b_seg.nrrd", "c.nii.gz", ".hidden.nii.gz")
        found = pair_files(predictions, references)
        assert found.pairs == (
            Pair("a", predictions / "a_seg.nii.gz", references / "a.nii.gz"),
            Pair("b", predictions / "b.mha", references / "b_seg.nrrd"),
        )
        assert found.only_predictions == (predictions / "x.nii",)
        assert found.only_references == (references / "c.nii.gz",)

    def test_two_files_of_one_case_are_not_chosen_from(self, tmp_path):
        predictions = self.files(tmp_path / "p", "a.nii.gz", "a.mha", "b.nii.gz")
        references = self.files(tmp_path / "r", "a.nii.gz", "b.nii.gz")
        found = pair_files(predictions, references)
        assert [pair.case for pair in found.pairs] == ["b"]
        assert found.ambiguous == (("a", "a.mha and a.nii.gz are label maps of one case; keep one"),)

    def test_pictures_pair_too(self, tmp_path):
        found = pair_files(self.files(tmp_path / "p", "a.png"), self.files(tmp_path / "r", "a.gif"))
        assert [pair.case for pair in found.pairs] == ["a"]

    def test_what_cannot_be_paired_is_refused(self, tmp_path):
        predictions, references = self.files(tmp_path / "p", "a.nii.gz"), self.files(tmp_path / "r", "b.nii.gz")
        with pytest.raises(UsageError, match=r"no two files have one name; .*_seg at the end"):
            pair_files(predictions, references)
        with pytest.raises(UsageError, match="one is a folder, the other a file"):
            pair_files(predictions, references / "b.nii.gz")
        with pytest.raises(UsageError, match="there is no such file"):
            pair_files(tmp_path / "nothing", references)


def test_differences_are_named_and_cut_to_the_labels():
    reference = np.zeros((30, 30, 30), np.uint8)
    prediction = reference.copy()
    reference[10:14, 10:14, 10:14], prediction[11:15, 10:14, 10:14] = 1, 1
    prediction[12, 12, 12] = 2
    geometry = grid((30, 30, 30))
    found = differences(LabelMap(prediction, geometry), LabelMap(reference, geometry), Settings())
    assert found.counts() == {
        "in both": 47, "only in the prediction": 16, "only in the reference": 16, "another label": 1
    }  # fmt: skip
    assert found.array.shape == (9, 8, 8)
    assert found.geometry.to_world((0, 0, 0)) == pytest.approx(geometry.to_world((8, 8, 8)))
    nothing = differences(LabelMap(reference * 0, geometry), LabelMap(reference * 0, geometry), Settings())
    assert nothing.array.shape == (30, 30, 30)
