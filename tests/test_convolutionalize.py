"""A classifier made convolutional: the same scores on its own size, a map of them on a larger one."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from medseg.errors import PlanError
from medseg.networks import convolutionalize


class LeNet(nn.Module):
    """LeNet-5 with a `forward` of its own, flattened by `view`."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.norm, self.fc2, self.fc3 = (
            nn.Linear(400, 120),
            nn.BatchNorm1d(120),
            nn.Linear(120, 84),
            nn.Linear(84, 10),
        )
        self.norm.running_mean.normal_()

    def features(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        return functional.max_pool2d(functional.relu(self.conv2(x)), 2)

    def forward(self, x):
        x = self.features(x).view(-1, 400)
        x = functional.dropout(functional.relu(self.norm(self.fc1(x))), training=self.training)
        return functional.log_softmax(self.fc3(torch.tanh(self.fc2(x))), dim=-1)


class Branches(nn.Module):
    """Two branches that join before the flattening, and a residual step after it."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv3d(2, 3, 3, padding=1), nn.Conv3d(2, 3, 1)
        self.pool, self.fc1, self.fc2 = nn.AvgPool3d(2), nn.Linear(6 * 4 * 5 * 3, 8, bias=False), nn.Linear(8, 8)

    def forward(self, x):
        x = self.pool(torch.cat([self.left(x), self.right(x)], dim=1))
        x = self.fc1(x.reshape(x.shape[0], -1))
        return x + torch.relu(self.fc2(x))


def vgg(axes):
    conv, pool, norm = (
        (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.MaxPool3d, nn.BatchNorm3d)
    )
    cells = 7 * 9 * (5 if axes == 3 else 1)
    return nn.Sequential(
        nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.ReLU(inplace=True), pool(2)),
        nn.Sequential(conv(8, 16, 3, padding=1), nn.LeakyReLU(), pool(2)),
        nn.Flatten(),
        nn.Sequential(nn.Linear(16 * cells, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 5), nn.Softmax(-1)),
    )


CASES = {
    "VGG in 2D": (lambda: vgg(2), 3, (28, 36)),
    "VGG in 3D": (lambda: vgg(3), 3, (28, 36, 20)),
    "LeNet": (LeNet, 1, (28, 28)),
    "branches in 3D": (Branches, 2, (8, 10, 6)),
    "linear layers only": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(2 * 5 * 7, 9), nn.ReLU(), nn.Linear(9, 4)),
        2,
        (5, 7),
    ),
    "a valid convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(1), nn.Linear(4 * 9 * 11, 2)),
        1,
        (11, 13),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    torch.manual_seed(0)
    make, channels, size = request.param
    classifier = make().eval()
    return classifier, convolutionalize(classifier, input_size=size), channels, size


def test_on_its_own_size_it_gives_the_scores_of_the_classifier(case):
    classifier, network, channels, size = case
    x = torch.randn(3, channels, *size)
    found = network(x)
    assert found.shape[2:] == (1,) * len(size)
    assert torch.allclose(found.flatten(1), classifier(x), atol=1e-5)


def test_on_a_larger_size_it_gives_a_map(case):
    _, network, channels, size = case
    found = network(torch.randn(1, channels, *(n + 16 for n in size)))
    assert min(found.shape[2:]) > 1


def test_it_is_a_copy_that_leaves_the_classifier_as_it_was(case):
    classifier, network, channels, size = case
    before = classifier(x := torch.ones(1, channels, *size))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(classifier(x), before)
    assert not network.training
    assert convolutionalize(classifier.train(), input_size=size).training


@pytest.mark.parametrize("axes", [2, 3])
def test_without_padding_each_place_of_the_map_is_the_score_of_its_window(axes):
    torch.manual_seed(0)
    conv, pool = (nn.Conv2d, nn.AvgPool2d) if axes == 2 else (nn.Conv3d, nn.AvgPool3d)
    classifier = nn.Sequential(conv(1, 4, 3), nn.ReLU(), pool(2), nn.Flatten(), nn.Linear(4 * 4**axes, 3)).eval()
    network = convolutionalize(classifier, input_size=(10,) * axes)
    x = torch.randn(1, 1, *[16] * axes)
    scores = network(x)
    assert scores.shape == (1, 3, *[4] * axes)
    for place in ((0,) * axes, (3,) * axes, (1, 3, 2)[:axes]):
        window = x[(..., *(slice(2 * at, 2 * at + 10) for at in place))]
        assert torch.allclose(classifier(window)[0], scores[(0, slice(None), *place)], atol=1e-5)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


class Choosy(Mean):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Scaled(Mean):
    def __init__(self):
        super().__init__()
        self.scale, self.fc = nn.Parameter(torch.ones(4)), nn.Linear(4 * 324, 4)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1)) * self.scale


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 9 * 18, 2)

    def forward(self, x):
        x = self.conv(x)
        halves = functional.avg_pool2d(x, (2, 1)), functional.avg_pool2d(x, (1, 2))
        return self.fc(halves[0].flatten(1) + halves[1].flatten(1))


def small(*tail):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *tail)


FOUR = 4 * 18 * 18
REFUSED = {
    "adaptive pooling": (
        small(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 2)),
        "AdaptiveAvgPool2d.*fixed size",
    ),
    "another size": (
        small(nn.Flatten(), nn.Linear(99, 2)),
        r"takes 99 features, and input size \(20, 20\) gives 4 x 18 x 18",
    ),
    "another size in a view": (LeNet(), r"view.*does not take input size \(20, 20\)"),
    "a size that is too small": (
        small(nn.MaxPool2d(19), nn.Flatten(), nn.Linear(4, 2)),
        "MaxPool2d.*does not take input size",
    ),
    "no flattening": (small(), "no flattening"),
    "a mean over space": (Mean(), "mean.*without a flattening"),
    "a partial flattening": (small(nn.Flatten(2), nn.Linear(324, 2)), "Flatten.*without a flattening"),
    "a linear layer in space": (small(nn.Linear(18, 2)), "Linear.*without a flattening"),
    "a norm of places": (small(nn.Flatten(), nn.LayerNorm(FOUR), nn.Linear(FOUR, 2)), "LayerNorm.*no counterpart"),
    "a choice by the data": (Choosy(), "decides by the data"),
    "3D for 2D": (nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(9, 2)), r"Conv3d.*input size \(20, 20\)"),
    "a scale of features": (Scaled(), "scale.*without a flattening"),
    "a sum of flattened maps of two shapes": (Crossed(), "the result cannot run on score maps"),
    "no layers": (nn.ReLU(), "neither convolutions nor linear layers"),
}


@pytest.mark.parametrize(("classifier", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_turned_is_refused_in_one_line_with_the_reason(classifier, message):
    with pytest.raises(PlanError, match=message) as caught:
        convolutionalize(classifier, input_size=(20, 20))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(28,), (0, 28), (4, 4, 4, 4)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(PlanError, match="2 or 3 positive sizes"):
        convolutionalize(LeNet(), input_size=size)
