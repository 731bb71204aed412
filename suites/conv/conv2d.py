"""Convolutions of images: torch's own, compiled, and written out as a matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.suites.compiled import compiled, compiler
from wattline.suites.gemm.shapes import ShapeSet
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.conv import out_size

FORMATS = ("fp64", "fp32", "bf16", "fp16")
_NAMES = ("n", "c", "h", "w", "k", "r", "s", "stride", "padding", "dilation", "groups")
RULES = (
    Constraint("groups divides c and k", lambda p: int(p["c"]) % int(p["groups"]) == 0
               and int(p["k"]) % int(p["groups"]) == 0),
    Constraint(
        "the dilated filter fits the padded image",
        lambda p: all(
            int(p["dilation"]) * (int(p[f]) - 1) + 1 <= int(p[size]) + 2 * int(p["padding"])
            for f, size in (("r", "h"), ("s", "w"))
        ),
    ),
)  # fmt: skip
CHECKED = 3e8
"""FLOPs up to which all images are compared; of larger cases the first and the last are."""

NETWORKS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    # c, h = w, k, r = s, stride, padding, groups: each different layer once, at 224 x 224.
    "resnet-50": (
        "He et al., arXiv:1512.03385, table 1; stride in the 3 x 3 as torchvision has it",
        (
            (3, 224, 64, 7, 2, 3, 1), (64, 56, 64, 1, 1, 0, 1), (64, 56, 64, 3, 1, 1, 1), (64, 56, 256, 1, 1, 0, 1),
            (256, 56, 128, 1, 1, 0, 1), (128, 56, 128, 3, 2, 1, 1), (128, 28, 512, 1, 1, 0, 1),
            (512, 28, 128, 1, 1, 0, 1), (128, 28, 128, 3, 1, 1, 1), (256, 14, 256, 3, 1, 1, 1),
            (1024, 14, 256, 1, 1, 0, 1), (512, 7, 512, 3, 1, 1, 1), (512, 7, 2048, 1, 1, 0, 1),
        ),
    ),
    "mobilenet-v2": (
        "Sandler et al., arXiv:1801.04381, table 2",
        (
            (3, 224, 32, 3, 2, 1, 1), (32, 112, 32, 3, 1, 1, 32), (32, 112, 16, 1, 1, 0, 1), (16, 112, 96, 1, 1, 0, 1),
            (96, 112, 96, 3, 2, 1, 96), (144, 56, 144, 3, 1, 1, 144), (192, 28, 192, 3, 1, 1, 192),
            (384, 14, 384, 3, 1, 1, 384), (384, 14, 64, 1, 1, 0, 1), (960, 7, 960, 3, 1, 1, 960),
            (320, 7, 1280, 1, 1, 0, 1),
        ),
    ),
}  # fmt: skip
"""Layers of public networks, with the source."""


def networks(names: Sequence[str] | str = ("resnet-50",), n: int = 1, largest: int = 224) -> Iterator[ShapeSet]:
    """The layers of public networks.

    Args:
        names: keys of :data:`NETWORKS`.
        n: images at a time.
        largest: layers of larger images are left out.

    Raises:
        UnknownNameError: no such network.
    """
    from wattline.errors import unknown_name

    for name in (names,) if isinstance(names, str) else names:
        if name not in NETWORKS:
            raise unknown_name("network", name, NETWORKS)
        for c, size, k, r, stride, padding, groups in NETWORKS[name][1]:
            if size <= largest:
                yield {
                    "n": n, "c": c, "h": size, "w": size, "k": k, "r": r, "s": r, "stride": stride,
                    "padding": padding, "groups": groups,
                }  # fmt: skip


def random(
    count: int = 16, *, seed: int = 0, max_n: int = 4, lo: int = 8, hi: int = 128, max_size: int = 56,
    max_flops: float = 1e9,
) -> Iterator[ShapeSet]:  # fmt: skip
    """Points spread log-uniformly over images, channels and filters, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        max_n: most images.
        lo, hi: least and most channels in and out.
        max_size: largest image.
        max_flops: larger points are passed over.
    """
    found = 0
    for u in points(6, 1000 * count, seed=seed):
        size, side = round(log_uniform(u[3], 7, max_size)), (1, 3, 5)[int(3 * u[4])]
        groups = (1, 1, 4)[int(3 * u[5])]
        c, k = (-(-round(log_uniform(part, lo, hi)) // groups) * groups for part in u[1:3])
        n = round(log_uniform(u[0], 1, max_n))
        if 2.0 * n * k * size**2 * c / groups * side**2 > max_flops:
            continue
        shape = {"n": n, "c": c, "h": size, "w": size, "k": k, "r": side, "s": side}
        yield {**shape, "padding": side // 2, "groups": groups}
        found += 1
        if found == count:
            return


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {"networks": networks, "random": random}


def parts(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Images ``[n, c, h, w]`` and filters ``[k, c / groups, r, s]`` in the memory format asked for."""
    import torch

    set_precision(str(p["dtype"]))
    n, c, h, w, k, r, s, *_, groups = (int(p[name]) for name in _NAMES)
    order = torch.channels_last if p["memory"] == "channels_last" else torch.contiguous_format
    x = ctx.tensor((n, c, h, w), str(p["dtype"])).contiguous(memory_format=order)
    return {"x": x, "filters": ctx.tensor((k, c // groups, r, s), str(p["dtype"])).contiguous(memory_format=order)}


def _options(p: ParamValues) -> dict[str, int]:
    return {name: int(p[name]) for name in ("stride", "padding", "dilation", "groups")}


@workload("conv.2d")
class Conv2d(Workload):
    """A batch of images with a bank of filters, as networks have it."""

    params = Params(
        *RULES,
        n=Int(1, doc="images"),
        c=Int(doc="channels of an image"),
        h=Int(doc="rows of an image"),
        w=Int(doc="columns of an image"),
        k=Int(doc="filters"),
        r=Int(3, doc="rows of a filter"),
        s=Int(3, doc="columns of a filter"),
        stride=Int(1, doc="steps of a filter"),
        padding=Int(0, lo=0, doc="zeros around an image"),
        dilation=Int(1, doc="distance of a filter's taps"),
        groups=Int(1, doc="groups of channels that do not mix; c: depthwise"),
        dtype=DType(*FORMATS, doc="number format"),
        memory=Choice("channels_last", "contiguous", doc="order of elements: channels innermost, or columns"),
    )
    shape_sources = SOURCES
    tracks_memory = True

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: cuDNN, MIOpen or oneDNN underneath."""
        from torch.nn.functional import conv2d

        inputs, options = parts(p, ctx), _options(p)
        x, filters = inputs.values()
        return Kernel(lambda: conv2d(x, filters, **options), inputs)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        import torch
        from torch.nn.functional import conv2d

        x, filters = kernel.inputs["x"], kernel.inputs["filters"]
        n = x.shape[0]
        size = [out_size(int(p[a]), int(p[b]), *(int(p[o]) for o in ("stride", "padding", "dilation")))
                for a, b in (("h", "r"), ("w", "s"))]  # fmt: skip
        if tuple(result.shape) != (n, int(p["k"]), *size):
            return nan, 0.0, f"shape {tuple(result.shape)}"
        chosen = list(range(n)) if self.work(p).total_flops <= CHECKED else sorted({0, n - 1})
        # On the host: double-precision convolutions are rare on accelerators.
        ref = conv2d(x[chosen].double().cpu(), filters.double().cpu(), **_options(p))
        out = result[chosen].double().cpu()
        whole = float(torch.linalg.vector_norm(ref))
        apart = float(torch.linalg.vector_norm(out - ref))
        allowed = 2.0 * number_format(str(p["dtype"])).tolerance
        return apart / whole if whole else apart, allowed, "full" if len(chosen) == n else f"{len(chosen)} images"

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: one image of fewer channels."""
        groups = int(p["groups"])
        c, k = (max(1, min(int(p[name]), size // 2) // groups) * groups for name in ("c", "k"))
        small = {**p, "n": 1, "c": c, "k": k}
        return None if all(small[name] == p[name] for name in ("n", "c", "k")) else small


@implementation("conv.2d", "compile", requires=(compiler(),))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's convolution through torch.compile."""
    inputs, options = parts(p, ctx), _options(p)
    x, filters = inputs.values()
    arguments = tuple(options.values())
    ready, seconds = compiled(_conv2d, x, filters, arguments)
    return Kernel(lambda: ready(x, filters, arguments), inputs, facts={"compile_s": seconds})


def _conv2d(x: Any, filters: Any, options: tuple[int, int, int, int]) -> Any:
    from torch.nn.functional import conv2d

    stride, padding, dilation, groups = options
    return conv2d(x, filters, None, stride, padding, dilation, groups)


@implementation("conv.2d", "im2col")
def im2col(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Every patch copied into a column, then one matrix product for each group."""
    import torch
    from torch.nn.functional import unfold

    inputs, options = parts(p, ctx), _options(p)
    x, filters = inputs.values()
    n, groups, k = x.shape[0], options["groups"], int(p["k"])
    flat = filters.contiguous().view(groups, k // groups, -1)
    size = (int(p["r"]), int(p["s"]))
    steps = (options["dilation"], options["padding"], options["stride"])
    rows = out_size(int(p["h"]), size[0], options["stride"], options["padding"], options["dilation"])

    def call() -> Any:
        columns = unfold(x, size, *steps).view(n, groups, flat.shape[2], -1)
        return torch.matmul(flat, columns).view(n, k, rows, -1)

    return Kernel(call, inputs)
