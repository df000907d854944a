from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
import torch

from labkit.errors import UsageError
from labkit.lessons.pictures import draw_graph
from labkit.lessons.pictures.graph import lay_out


def cubic(x: torch.Tensor) -> torch.Tensor:
    return x**3 + 2 * x**2 - 5 * x + 3


def leaf(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, requires_grad=True)


def parse_svg(picture: object) -> ElementTree.Element:
    root = ElementTree.fromstring(picture.html)
    svg = root.find("{http://www.w3.org/2000/svg}svg")
    assert svg is not None
    return svg


def find_all(svg: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return svg.findall(f"{{http://www.w3.org/2000/svg}}{tag}")


def test_text_lists_every_node_and_where_its_gradient_goes():
    x = leaf(1)
    y = cubic(x)
    assert repr(draw_graph(y, {"x": x, "y": y})).splitlines() == [
        "the graph behind y (1,): 7 operations, 1 leaf",
        "   1  AddBackward0 (1,)  -> 2",
        "   2  SubBackward0 (1,)  -> 3, 4",
        "   3  AddBackward0 (1,)  -> 5, 6",
        "   4  MulBackward0 (1,)  -> 8",
        "   5  PowBackward0 (1,)  -> 8",
        "   6  MulBackward0 (1,)  -> 7",
        "   7  PowBackward0 (1,)  -> 8",
        "   8  x.grad (1,)",
    ]


def test_shared_node_is_drawn_once_with_an_arrow_for_each_use():
    h = leaf(2) + 1
    picture = draw_graph(h * h, {"h": h})
    assert repr(picture).splitlines()[1:] == [
        "   1  MulBackward0 (2,)     -> 2, 2",
        "   2  h: AddBackward0 (2,)  -> 3",
        "   3  leaf1.grad (2,)",
    ]
    svg = parse_svg(picture)
    assert len(find_all(svg, "rect")) == 4
    assert len(find_all(svg, "path")) == 2 * 4  # result, two uses, leaf: a line and a head each


def test_two_edges_between_the_same_nodes_do_not_lie_on_each_other():
    x = leaf(1)
    lines = [path.get("d") for path in find_all(parse_svg(draw_graph(x * x)), "path")]
    assert len(lines) == len(set(lines)) == 6


def test_the_pictures_text_says_what_connects_to_what():
    x = leaf(2)
    h = x + 1
    label = parse_svg(draw_graph(h * h + h.sin(), {"x": x, "h": h})).get("aria-label")
    assert "The gradient goes from result (2,) to AddBackward0 (2,)" in label
    assert "from AddBackward0 (2,) to MulBackward0 (2,) and SinBackward0 (2,)" in label
    assert "from MulBackward0 (2,) to h: AddBackward0 (2,) (2 times)" in label
    assert label.endswith("from h: AddBackward0 (2,) to x.grad (2,).")
    pair = parse_svg(draw_graph(h.sin().sin(), {"h": h})).get("aria-label")
    assert "from SinBackward0 (2,) no. 1 to SinBackward0 (2,) no. 2;" in pair


def test_shapes_of_a_small_model():
    weight, bias = leaf(4, 3), leaf(4)
    loss = (torch.ones(5, 3) @ weight.t() + bias).relu().mean()
    text = repr(draw_graph(loss, {"weight": weight, "bias": bias, "loss": loss}))
    assert text.splitlines() == [
        "the graph behind loss (): 5 operations, 2 leaves",
        "   1  MeanBackward0 ()      -> 2",
        "   2  ReluBackward0 (5, 4)  -> 3",
        "   3  AddBackward0 (5, 4)   -> 4, 5",
        "   4  MmBackward0 (5, 4)    -> 6",
        "   5  bias.grad (4,)",
        "   6  TBackward0 (3, 4)     -> 7",
        "   7  weight.grad (4, 3)",
    ]


def test_unnamed_leaves_are_numbered():
    text = repr(draw_graph(leaf(1) * leaf(1)))
    assert "leaf1.grad (1,)" in text
    assert "leaf2.grad (1,)" in text


def test_node_with_several_outputs_shows_each_shape():
    first, second = leaf(3, 2).split([1, 2])
    text = repr(draw_graph(first.sum() + second.sum()))
    assert re.search(r"SplitWithSizesBackward0 \(1, 2\) \(2, 2\)", text)


def test_function_of_ones_own_is_shown_under_its_name():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 2

    assert "DoubleBackward (3,)" in repr(draw_graph(Double.apply(leaf(3))))


def test_leaf_leads_to_its_own_gradient():
    x = leaf(2)
    assert repr(draw_graph(x, {"x": x})).splitlines() == [
        "the graph behind x (2,): 0 operations, 1 leaf",
        "   1  x.grad (2,)",
    ]


def test_two_names_for_one_tensor_are_both_shown():
    x = leaf(1)
    assert "x, same.grad (1,)" in repr(draw_graph(x + 1, {"x": x, "same": x}))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: x.detach(), id="detached"),
        pytest.param(torch.no_grad()(cubic), id="no_grad"),
        pytest.param(torch.inference_mode()(cubic), id="inference_mode"),
        pytest.param(lambda x: torch.tensor([1]), id="integer"),
    ],
)
def test_tensor_without_a_graph_says_so(make):
    picture = draw_graph(make(leaf(1)))
    assert repr(picture) == "result (1,) has no graph: nothing was recorded for it"
    assert "<svg" not in picture.html


def test_names_out_of_reach_are_said():
    x, other = leaf(1), leaf(1)
    cut = x.detach()
    y = x * cut
    text = repr(draw_graph(y, {"x": x, "y": y, "cut": cut, "other": other}))
    assert text.splitlines()[-1] == "  Not in this graph: cut, other"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_drawing_where_nothing_is_recorded_finds_the_same_leaf(mode):
    x = leaf(1)
    y = x + 1
    with mode():
        assert "x.grad (1,)" in repr(draw_graph(y, {"x": x}))


def test_large_graph_keeps_the_nearest_and_says_how_many_more():
    x = leaf(1)
    y = x
    for _ in range(100):
        y = y + 1
    picture = draw_graph(y, {"x": x})
    lines = repr(picture).splitlines()
    assert lines[0] == "the graph behind result (1,): 60 operations, 0 leaves"
    assert lines[-1] == "  41 more nodes farther from the result not drawn"
    assert "41 more nodes farther from the result not drawn" in picture.html
    assert len(find_all(parse_svg(picture), "rect")) == 61


def test_very_deep_graph_is_walked_without_recursion():
    y = leaf(1)
    for _ in range(5000):
        y = y + 1
    assert "4,941 more nodes" in repr(draw_graph(y))


def test_name_used_at_every_step_does_not_make_the_picture_wide():
    x = leaf(1)
    y = x
    for _ in range(50):
        y = y * x
    assert float(parse_svg(draw_graph(y)).get("width")) < 400


def test_boxes_of_a_wide_graph_do_not_overlap():
    y = torch.stack([leaf(1) * leaf(2) for _ in range(8)]).sum()
    rects = [
        tuple(float(rect.get(key)) for key in ("x", "y", "width", "height"))
        for rect in find_all(parse_svg(draw_graph(y)), "rect")
    ]
    for (x1, y1, width1, _), (x2, y2, width2, _) in combinations(rects, 2):
        assert y1 != y2 or x1 + width1 <= x2 or x2 + width2 <= x1


def test_drawing_changes_nothing_and_unpacks_no_saved_tensor():
    unpacked = []
    x = leaf(3)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda saved: saved, lambda saved: unpacked.append(saved) or saved
    )
    with hooks:
        y = x.exp().sum()
    picture = draw_graph(y, {"x": x})
    assert (repr(picture), picture.html) == (repr(picture), draw_graph(y, {"x": x}).html)
    assert unpacked == []
    assert x.grad is None
    y.backward()
    assert torch.equal(x.grad, x.detach().exp())


def test_graph_can_be_drawn_after_its_saved_tensors_are_gone():
    y = leaf(3).exp().sum()
    y.backward()
    assert "ExpBackward0 (3,)" in repr(draw_graph(y))


def test_names_are_escaped():
    x = leaf(1)
    picture = draw_graph(x * 2, {"<script>": x})
    assert "&lt;script&gt;.grad" in picture.html
    assert "<script>" not in picture.html


def test_notebook_gets_html_and_text():
    picture = draw_graph(leaf(1) * 2)
    bundle = picture._repr_mimebundle_()
    assert bundle == {"text/html": picture.html, "text/plain": repr(picture)}
    assert "--jp-content-font-color1, currentColor" in picture.html


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ([1.0],),
            "draw_graph needs a torch.Tensor, but the first argument is a list",
        ),
        (
            (torch.ones(1), {"x": 2.0}),
            "draw_graph needs a torch.Tensor, but x is a float",
        ),
    ],
    ids=["first argument", "a name"],
)
def test_what_is_no_tensor_is_refused(arguments, text):
    with pytest.raises(UsageError) as caught:
        draw_graph(*arguments)
    assert caught.value.what == text


def test_layers_follow_the_longest_way():
    layout = lay_out([10, 10, 10, 10], [(0, 1), (0, 3), (1, 2), (2, 3)])
    assert layout.layers == (0, 1, 2, 3)
    assert [len(edge.passes_x) for edge in layout.edges] == [0, 2, 0, 0]


def test_edge_that_passes_a_layer_keeps_clear_of_its_boxes():
    layout = lay_out([60, 60, 60, 60], [(0, 1), (0, 3), (1, 2), (2, 3)])
    passing = layout.edges[1]
    for x, box in zip(passing.passes_x, layout.xs[1:3], strict=True):
        assert abs(x - box) >= 30


def test_children_come_in_the_order_of_their_parents():
    # 1, 2, 3 under 0; their children are given in the reverse order.
    edges = [(0, 1), (0, 2), (0, 3), (3, 4), (2, 5), (1, 6)]
    xs = lay_out([40] * 7, edges).xs
    assert [left < right for left, right in pairwise((xs[6], xs[5], xs[4]))] == (
        [left < right for left, right in pairwise(xs[1:4])]
    )
