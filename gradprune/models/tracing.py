"""A model as a graph of steps (torch.fx), to run it again and recompute only what depends on a changed step."""

import operator
from typing import Any

from torch import Tensor, fx, nn

Values = dict[fx.Node, Any]


class _Tracer(fx.Tracer):
    """Treats a convolution or its norm as one step, including a library's own classes, whose code fx would enter."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (isinstance(m, nn.Conv2d | nn.BatchNorm2d) or module_qualified_name in self.whole
                or super().is_leaf_module(m, module_qualified_name))


def trace(model: nn.Module, whole: set[str]) -> fx.GraphModule:
    """The model as a graph in which each module in `whole` is one step; raises if there is no such graph."""
    graph = fx.GraphModule(model, _Tracer(whole).trace(model))
    steps = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    if not steps.issuperset(whole):
        raise ValueError("a layer's weights are used without calling it")
    return graph


def all_values(graph: fx.GraphModule, images: Tensor) -> tuple[Any, Values]:
    """Run the graph on float images (N, C, H, W): its output, and the value of every step."""
    values: Values = {}
    for node in graph.graph.nodes:
        values[node] = images if node.op == "placeholder" else _value(graph, node, values)
    return values[node], values


def output_without(graph: fx.GraphModule, values: Values, steps: set[str], channel: int) -> Any:
    """The output if one channel is zero in the results of these steps; only steps that depend on it are run again.

    values: as from `all_values`; they are not changed.
    """
    changed: Values = {}
    for node in graph.graph.nodes:
        if any(source in changed for source in node.all_input_nodes):
            changed[node] = _value(graph, node, values | changed)
        if node.op == "call_module" and node.target in steps:
            result = changed[node] = (changed[node] if node in changed else values[node]).clone()
            result[:, channel] = 0
    return changed.get(node, values[node])


def _value(graph: fx.GraphModule, node: fx.Node, values: Values) -> Any:
    """Run one node of the graph; inputs that the operation would overwrite are copied first."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    if node.op == "output":
        return args[0]
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(graph)
    if _overwrites(graph, node):
        args = fx.node.map_aggregate(args, lambda value: value.clone() if isinstance(value, Tensor) else value)
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _overwrites(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation writes into its input: nn.ReLU(inplace=True), x += y, x.add_(y), F.relu_(x)."""
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return name in ("iadd", "isub", "imul") or name.endswith("_") or bool(node.kwargs.get("inplace"))
