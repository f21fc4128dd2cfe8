"""Fully connected layers as convolutions: a classifier of one input size becomes a scorer of any larger one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from medseg.errors import PlanError
from medseg.networks.layers import BATCH_NORM, CONV

_FLATTEN = {"Flatten", "flatten", "view", "reshape"}
_SOFTMAX = {"Softmax", "LogSoftmax", "softmax", "log_softmax"}
_VOXELWISE = {  # layers, functions and methods that treat the features of a voxel as they treat a vector
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish", "Sigmoid", "Tanh"),
    *("Softplus", "Hardtanh", "Identity", "Dropout", "AlphaDropout", "relu", "relu_", "relu6", "leaky_relu", "elu"),
    *("selu", "gelu", "silu", "sigmoid", "tanh", "softplus", "dropout", "add", "iadd", "sub", "mul", "imul", "truediv"),
}
_TOLERANCE = 1e-4  # of the largest score


def convolutionalize(classifier: nn.Module, *, input_size: Sequence[int]) -> nn.Module:
    """Return a classifier as a fully convolutional network: (B, C, *S) to scores (B, classes, *T), S >= input_size.

    The first linear layer after the flattening becomes a convolution whose kernel is the size of what was flattened,
    each further one a convolution of kernel 1 (Long, Shelhamer and Darrell 2015, section 3.1). On `input_size` itself
    T is 1 along every axis and the scores are the classifier's, which is checked; on a larger input there is one
    score for each place that the kernel finds. Where the classifier pads its convolutions, a place inside a large
    input sees its neighbours where the classifier saw zeros.

    Parameters
    ----------
    classifier : nn.Module
        Convolutions, poolings and the like, one flattening (`nn.Flatten`, `flatten`, `view` or `reshape`), then linear
        layers, activations, dropout, batch norm and softmax. A `forward` of its own may join branches, but must not
        decide by the data. It is copied, not changed.
    input_size : two or three ints
        Spatial size that the classifier takes.

    Raises
    ------
    PlanError
        If the classifier cannot be turned; with the layer and the reason.

    Examples
    --------
    >>> classifier = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 13 * 17, 10))
    >>> network = convolutionalize(classifier, input_size=(28, 36))
    >>> network(torch.zeros(1, 1, 28, 36)).shape, network(torch.zeros(1, 1, 64, 64)).shape
    (torch.Size([1, 10, 1, 1]), torch.Size([1, 10, 19, 15]))
    """
    size = tuple(input_size)
    if len(size) not in CONV or min(size) < 1:
        raise PlanError(f"input size {size} is not that of a picture or a volume", hint="give 2 or 3 positive sizes")
    copy = deepcopy(classifier).eval()
    try:
        graph = fx.Tracer().trace(copy)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise _refusal("its forward", f"decides by the data ({error})") from error
    turner = _Turner(fx.GraphModule(copy, graph), size)
    example = _example(copy, size)
    with torch.no_grad():
        scores = turner.run(example)
        network = turner.turned()
        try:
            answer = network(example)
        except RuntimeError as error:
            raise _refusal("the result", f"cannot run on score maps ({error})") from error
    apart = (answer - scores.reshape(answer.shape)).abs().max() if answer.numel() == scores.numel() else torch.inf
    if apart > _TOLERANCE * max(1.0, float(scores.abs().max())):
        raise _refusal("the result", "does not give the scores of the classifier on its own input size")
    return network.train(classifier.training)


class _Turner(fx.Interpreter):
    """Runs a classifier node by node on an example, and notes how to turn what follows the flattening."""

    def __init__(self, module: fx.GraphModule, size: tuple[int, ...]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # a refusal is one line
        self.size, self.axes = size, len(size)
        self.vectors: dict[fx.Node, tuple[int, ...]] = {}  # flattened features: (channels, *size) of what they were
        self.flattenings: list[fx.Node] = []
        self.softmaxes: list[fx.Node] = []
        self.layers: dict[str, nn.Module] = {}  # what takes the place of a layer

    def turned(self) -> fx.GraphModule:
        """Return the network with convolutions in place of linear layers, and without the flattening."""
        if not self.flattenings:
            raise _refusal("it", "has no flattening (nn.Flatten, flatten, view or reshape) before a linear layer")
        for node in self.flattenings:
            node.replace_all_uses_with(node.all_input_nodes[0])
        for node in self.softmaxes:
            node.kwargs = {"dim": 1}
        for name, layer in self.layers.items():
            self.module.set_submodule(name, layer)
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, self.graph)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and note what it will have to be."""
        name = self._name(n)
        before = [self.vectors[source] for source in n.all_input_nodes if source in self.vectors]
        if "adaptive" in name.lower():
            raise _refusal(_place(n, name), "pools to a fixed size, so the linear layers see no fixed place")
        if before and name == "Linear":
            self._turn_linear(n, before[0])
        if n.op != "output" and before and name not in _FLATTEN | {"Linear"}:
            self._keep(n, name, before)
        try:
            result = super().run_node(n)
        except (RuntimeError, TypeError, ValueError) as error:
            raise _refusal(_place(n, name), f"does not take input size {self.size}: {error}") from error
        if not before and isinstance(result, Tensor):
            self._look_for_flattening(n, name, result)
        elif name in _FLATTEN and isinstance(result, Tensor):
            if result.ndim != 2:
                raise _refusal(_place(n, name), f"brings features into shape {tuple(result.shape)}")
            self.flattenings.append(n)
            self.vectors[n] = before[0]
        return result

    def _look_for_flattening(self, node: fx.Node, name: str, result: Tensor) -> None:
        """Note a flattening; refuse whatever else takes the spatial axes away."""
        if result.ndim == self.axes + 2 and name != "Linear":
            return
        sources = [source for source in node.all_input_nodes if isinstance(self.env[source], Tensor)]
        if name not in _FLATTEN or len(sources) != 1 or result.ndim != 2:
            raise _refusal(_place(node, name), f"gives shape {tuple(result.shape)} without a flattening")
        shape = tuple(self.env[sources[0]].shape[1:])
        if result.shape[1] != prod(shape):
            raise self._misfit(node, name, result.shape[1], shape)
        self.vectors[node] = shape
        self.flattenings.append(node)

    def _turn_linear(self, node: fx.Node, shape: tuple[int, ...]) -> None:
        linear = self.fetch_attr(str(node.target))
        if linear.in_features != prod(shape):
            raise self._misfit(node, "Linear", linear.in_features, shape)
        channels, *kernel = shape
        conv = CONV[self.axes](channels, linear.out_features, tuple(kernel), bias=linear.bias is not None)
        conv.weight = nn.Parameter(linear.weight.detach().reshape(len(linear.weight), *shape).clone())
        if linear.bias is not None:
            conv.bias = nn.Parameter(linear.bias.detach().clone())
        self._replace(node, conv)
        self.vectors[node] = (linear.out_features, *[1] * self.axes)

    def _keep(self, node: fx.Node, name: str, before: list[tuple[int, ...]]) -> None:
        """Note a layer that stays as it is, or nearly; refuse one that cannot."""
        one_voxel = all(set(shape[1:]) == {1} for shape in before)
        if name == "BatchNorm1d" and one_voxel:
            norm = self.fetch_attr(str(node.target))
            twin = BATCH_NORM[self.axes](norm.num_features, norm.eps, norm.momentum, norm.affine)
            twin.load_state_dict(norm.state_dict())
            self._replace(node, twin.eval())
        elif name in _SOFTMAX and one_voxel:
            if node.op == "call_module":
                self._replace(node, getattr(nn, name)(dim=1))
            else:
                node.args = node.args[:1]
                self.softmaxes.append(node)
        elif name not in _VOXELWISE and name not in ("size", "getattr"):
            raise _refusal(_place(node, name), "has no counterpart on a score map")
        if name not in ("size", "getattr"):
            self.vectors[node] = before[0]

    def _replace(self, node: fx.Node, layer: nn.Module) -> None:
        if str(node.target) in self.layers:
            raise _refusal(node.name, "is used twice")
        self.layers[str(node.target)] = layer

    def _name(self, node: fx.Node) -> str:
        """Return the class of a layer, or the name of a function or method."""
        if node.op == "call_module":
            return type(self.fetch_attr(str(node.target))).__name__
        return str(getattr(node.target, "__name__", node.target))

    def _misfit(self, node: fx.Node, name: str, takes: int, shape: tuple[int, ...]) -> PlanError:
        product = " x ".join(map(str, shape))
        return _refusal(
            _place(node, name),
            f"takes {takes} features, and input size {self.size} gives {product} = {prod(shape)}",
            hint="give the input size that the classifier was made for",
        )


def _example(classifier: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Return two random inputs of the size, with the channels that the first layer takes."""
    channels = None
    for layer in classifier.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            channels = layer.in_channels
        elif isinstance(layer, nn.Linear):
            channels = max(1, layer.in_features // prod(size))
        if channels:
            break
    else:
        raise _refusal("it", "has neither convolutions nor linear layers")
    weight = next(classifier.parameters())
    noise = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)


def _place(node: fx.Node, name: str) -> str:
    return f"{node.target if node.op == 'call_module' else node.name} ({name})"


def _refusal(what: str, why: str, *, hint: str | None = None) -> PlanError:
    return PlanError(
        f"the classifier cannot be made convolutional: {what} {' '.join(why.split())}",
        hint=hint or "use convolutions and poolings of fixed kernel, one flattening, then linear layers",
    )
