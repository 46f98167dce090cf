"""The last stage of a classifier, found from its graph: what lies between there and the head.

`torch.fx` traces the model into a graph of its modules and operations. A value of this graph is a
*cut* when every path from the images to the features passes through it. The model can be split at a
cut into a lower part, from images to the value, and an upper part, from the value to the features.

Where the last stage begins is a cut too:

- a network of feature maps (ResNet, DenseNet, ConvNeXt, EfficientNet, MobileNet, Swin): the last
  cut before the resolution falls for the last time, the input of the last group of blocks;
- a network of tokens (ViT): the last cut with a layer of weights behind it, which is what enters
  the last block's MLP. Where the class token alone is read from there on, the others are left out;
- a network of vectors (MLP): the images themselves.

Shapes: N images, C channels, H height, W width, D features, T tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from expunge.core.blocks import is_channels_last
from expunge.core.heads import find_head_name
from expunge.core.modes import evaluation_mode

# What enters a stage: feature maps, tokens, or vectors (flattened images too).
Family = Literal["maps", "tokens", "vectors"]
Shapes = Mapping[str, tuple[int, ...]]  # of one image's value, by node
# The layers that hold a stage's weights. A depthwise convolution is one, though replay leaves it.
WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)

# A block that widens inside has three times the channels there at least, as MobileNet's and
# EfficientNet's; from one to the next at the same resolution they grow by a factor of two at most.
WIDENED = 2.5


@dataclass(frozen=True)
class Cut:
    """A place where a model can be split: a node of its graph, and the shape of one image's value.

    `layers` counts the layers of weights behind it, up to the features.
    """

    name: str
    module: str  # the module whose output it is, "" for an operation between modules
    shape: tuple[int, ...]
    layers: int

    @property
    def size(self) -> int:
        """How many numbers an image has here."""
        return prod(self.shape)


@dataclass(frozen=True)
class Stage:
    """A model split at a cut. Both parts share their parameters, and the names of these, with it.

    `first_token_only` is True where the value is a sequence N x T x H of which no more is read:
    then `enter` returns N x 1 x H.
    """

    cut: Cut
    lower: fx.GraphModule
    upper: fx.GraphModule
    first_token_only: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what enters it, for one image."""
        return (1, *self.cut.shape[1:]) if self.first_token_only else self.cut.shape

    def enter(self, images_NCHW: Tensor) -> Tensor:
        """Return what enters the stage for these images."""
        entering: Tensor = self.lower(images_NCHW)
        return entering[:, :1] if self.first_token_only else entering

    def enter_all(self, batches: Iterable[Tensor]) -> Tensor:
        """Return the same for all batches of images_NCHW, without a graph."""
        with torch.no_grad():
            return torch.cat([self.enter(images_NCHW) for images_NCHW in batches])


class UntraceableError(ValueError):
    """The model has no stage that could be found; the message says why."""


def list_cuts(model: nn.Module, example_NCHW: Tensor, num_classes: int) -> list[Cut]:
    """Return every cut of a model from its images to its features, in order.

    The arguments are those of `find_stage`.

    Raises:
        UntraceableError: `torch.fx` cannot trace the model, or it has no linear head.
    """
    return _list_cuts(model, *_trace(model, num_classes, example_NCHW))


def find_stage(
    model: nn.Module,
    example_NCHW: Tensor,
    num_classes: int,
    *,
    name: str = "",
    fits: Callable[[tuple[int, ...]], bool] = lambda shape: True,
) -> Stage:
    """Split a model where its last stage begins.

    Args:
        model: a classifier with a linear head.
        example_NCHW: a few images, two at least, by which the shapes are found.
        num_classes: the number of outputs of the head.
        name: of the module that the stage begins with, such as "layer4"; "" to find it.
        fits: whether what enters the stage may have this shape. Where it may not, a later cut is
            taken.

    Raises:
        UntraceableError: there is no such stage.
    """
    graph, features, shapes = _trace(model, num_classes, example_NCHW)
    cuts = _list_cuts(model, graph, features, shapes)
    usable = [cut for cut in cuts if cut.layers]
    if not usable:
        raise UntraceableError("no layer of weights lies between the images and the head")
    if name:
        first = _find_named(graph, usable, name)
    else:
        first = _choose_cut(usable, _find_last_output(model, graph, features, shapes))
    later = [] if name else usable[usable.index(first) + 1 :]
    for cut in [first, *_drop_repeats(later)]:
        stage = _split(model, graph, features, cut, example_NCHW)
        if fits(stage.shape):
            return stage
    raise UntraceableError(
        f"what enters its last layers ({' x '.join(map(str, first.shape))} numbers an image and "
        "more) is more than there is room for"
    )


def open_stage(model: nn.Module, name: str, num_classes: int, example_NCHW: Tensor) -> Stage:
    """Split a model at the cut of this name, as `Stage.cut` has it.

    Raises:
        UntraceableError: there is none.
    """
    graph, features, shapes = _trace(model, num_classes, example_NCHW)
    for cut in _list_cuts(model, graph, features, shapes):
        if cut.name == name:
            return _split(model, graph, features, cut, example_NCHW)
    raise UntraceableError(f"it has no cut {name!r}")


def _trace(
    model: nn.Module, num_classes: int, example_NCHW: Tensor
) -> tuple[fx.Graph, fx.Node, Shapes]:
    """Return the model's graph, the node of its features, and the shapes of its values."""
    try:
        head = find_head_name(model, num_classes)
    except ValueError as error:
        raise UntraceableError(str(error)) from error
    with evaluation_mode(model):
        try:
            graph = fx.Tracer().trace(model)
        # whatever a forward does without a value
        except Exception as error:
            raise UntraceableError(f"torch.fx cannot trace it: {error}") from error
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == head]
    if len(calls) != 1 or not isinstance(calls[0].args[0], fx.Node):
        raise UntraceableError(f"its head {head!r} is called {len(calls)} times; once was expected")
    return graph, calls[0].args[0], _measure_shapes(model, graph, example_NCHW)


def _list_ancestors(features: fx.Node) -> set[fx.Node]:
    """Return the nodes that the features depend on, themselves among them."""
    found, waiting = set(), [features]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _list_cuts(model: nn.Module, graph: fx.Graph, features: fx.Node, shapes: Shapes) -> list[Cut]:
    taking_part = _list_ancestors(features)
    # Parameters that are read as such are there on both sides.
    nodes = [node for node in graph.nodes if node in taking_part and node.op != "get_attr"]
    position = {node: i for i, node in enumerate(nodes)}
    last_use = {
        node: max((position[user] for user in node.users if user in position), default=len(nodes))
        for node in nodes
    }
    behind = _count_layers_behind(model, nodes)
    cuts, alive_until = [], -1
    for i, node in enumerate(nodes[:-1]):
        # Nothing older may still be needed behind this node.
        older_is_done = alive_until <= i
        alive_until = max(alive_until, last_use[node])
        shape = shapes.get(node.name)
        if older_is_done and shape is not None:
            module = str(node.target) if node.op == "call_module" else ""
            cuts.append(Cut(node.name, module, shape, behind[i]))
    return cuts


def _is_weighted(model: nn.Module, node: fx.Node) -> bool:
    """Return whether a node calls a module that is, or holds, a layer of weights."""
    if node.op != "call_module":
        return False
    return any(
        isinstance(m, WEIGHT_LAYERS) for m in model.get_submodule(str(node.target)).modules()
    )


def _count_layers_behind(model: nn.Module, nodes: list[fx.Node]) -> list[int]:
    counts, total = [], 0
    for node in reversed(nodes):
        counts.append(total)
        total += _is_weighted(model, node)
    return counts[::-1]


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and keeps the shapes of values with a row an image."""

    def __init__(self, module: fx.GraphModule, count: int) -> None:
        super().__init__(module)
        self.count, self.shapes = count, dict[str, tuple[int, ...]]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.dim() > 1 and len(value) == self.count:
            self.shapes[n.name] = tuple(value.shape[1:])
        return value


def _measure_shapes(model: nn.Module, graph: fx.Graph, example_NCHW: Tensor) -> Shapes:
    recorder = _ShapeRecorder(fx.GraphModule(model, graph), len(example_NCHW))
    with evaluation_mode(model), torch.no_grad():
        recorder.run(example_NCHW)
    return recorder.shapes


def _find_last_output(
    model: nn.Module, graph: fx.Graph, features: fx.Node, shapes: Shapes
) -> tuple[int, ...]:
    """Return the shape that the last layer of weights before the head gives an image."""
    taking_part = _list_ancestors(features)
    weighted = [node for node in graph.nodes if node in taking_part and _is_weighted(model, node)]
    return shapes[weighted[-1].name]


def measure_resolution(shape: tuple[int, ...]) -> int:
    """Return the positions of a feature map, C x H x W or H x W x C; 1 of a vector."""
    if len(shape) != 3:
        return 1
    return prod(shape[:2] if is_channels_last(shape) else shape[1:])


def _choose_cut(cuts: list[Cut], last_output: tuple[int, ...]) -> Cut:
    """Return where the last stage begins, by the rule of the module."""
    if len(last_output) == 2:  # tokens
        return cuts[-1]
    final = measure_resolution(last_output)
    finer = [cut for cut in cuts if measure_resolution(cut.shape) > final]
    if not finer:
        return cuts[-1]
    before = measure_resolution(finer[-1].shape)
    group = [cut for cut in finer if measure_resolution(cut.shape) == before]
    smallest = min(cut.size for cut in group)
    return [cut for cut in group if cut.size <= WIDENED * smallest][-1]


def _drop_repeats(cuts: list[Cut]) -> list[Cut]:
    """Return the last of those with nothing but an activation or a norm between."""
    return [
        cut
        for cut, after in zip_longest(cuts, cuts[1:])
        if after is None or (cut.shape, cut.layers) != (after.shape, after.layers)
    ]


def _find_named(graph: fx.Graph, cuts: list[Cut], name: str) -> Cut:
    """Return the cut at which the module of this name begins."""
    by_name = {cut.name: cut for cut in cuts}
    for node in graph.nodes:
        target = str(node.target) if node.op == "call_module" else ""
        if target == name or target.startswith(f"{name}."):
            entering = [n.name for n in node.all_input_nodes if n.name in by_name]
            if entering:
                return by_name[entering[0]]
            break
    known = sorted({cut.module for cut in cuts if cut.module})
    raise UntraceableError(
        f"no stage begins with {name!r}; expected a module of the body that takes all that comes "
        f"before it, such as one after {', '.join(known[-3:]) or 'the images'}"
    )


def _split(
    model: nn.Module, graph: fx.Graph, features: fx.Node, cut: Cut, example_NCHW: Tensor
) -> Stage:
    """Return the model split at the cut."""
    lower, upper = fx.Graph(), fx.Graph()
    below: dict[fx.Node, fx.Node] = {}
    above: dict[fx.Node, fx.Node] = {}
    taking_part = _list_ancestors(features)
    passed = False
    for node in graph.nodes:
        if node not in taking_part:
            continue
        if node.op == "get_attr" or not passed:
            below[node] = lower.node_copy(node, below.__getitem__)
        if node.op == "get_attr" or passed:
            above[node] = upper.node_copy(node, above.__getitem__)
        if node.name == cut.name:
            lower.output(below[node])
            above[node] = upper.placeholder("entering")
            passed = True
    upper.output(above[features])
    stage = Stage(cut, _compile(model, lower), _compile(model, upper))
    with evaluation_mode(model):
        return _narrow(stage, example_NCHW)


def _compile(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a part of the model that runs this graph; it shares the model's modules."""
    part = fx.GraphModule(model, graph)
    # Parameters that only the other part reads were copied too, into the graph and the module.
    part.graph.eliminate_dead_code()
    return fx.GraphModule(model, part.graph)


def _narrow(stage: Stage, example_NCHW: Tensor) -> Stage:
    """Leave out all tokens but the first where the features depend on no other."""
    with torch.no_grad():
        entering = stage.lower(example_NCHW)
        if entering.dim() != 3 or entering.shape[1] < 2:
            return stage
        try:
            alone = stage.upper(entering[:, :1])
        except (RuntimeError, IndexError):
            return stage
        same = torch.allclose(alone, stage.upper(entering), rtol=1e-4, atol=1e-5)
    return Stage(stage.cut, stage.lower, stage.upper, first_token_only=True) if same else stage


def name_family(stage: Stage) -> Family:
    """Return what kind of values enter the stage."""
    if any(isinstance(m, nn.Conv2d) for m in stage.upper.modules()):
        return "maps"
    return (
        "tokens" if any(isinstance(m, nn.LayerNorm) for m in stage.upper.modules()) else "vectors"
    )


def iterate_layers(stage: Stage) -> Iterator[tuple[str, nn.Module]]:
    """Yield the stage's layers that are called once: linear ones and ungrouped convolutions."""
    counts: dict[str, int] = {}
    for node in stage.upper.graph.nodes:
        if node.op == "call_module":
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    for name, count in counts.items():
        module = stage.upper.get_submodule(name)
        is_open = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        )
        if count == 1 and is_open:
            yield name, module
