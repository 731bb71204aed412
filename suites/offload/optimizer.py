"""One step of Adam, on the CPU, on the device, or split between them: which split is the quickest?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.params import Float, Int, Params, Value
from wattline.suites.offload.engine import engine_for
from wattline.suites.offload.rows import page_locked
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import accelerator, never
from wattline.suites.rowwise.common import distance
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.offload import best_split, split_step_s

if TYPE_CHECKING:
    from wattline.stats import TimeStats

RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
ALIGNED = 1024
"""Parameters at multiples of which a split lies."""
_ALONE = 3


def split_at(p: ParamValues) -> int:
    """How many parameters the CPU updates."""
    count, share = int(p["parameters"]), float(p["cpu_share"])
    return count if share >= 1 else min(count, round(count * share / ALIGNED) * ALIGNED)


class Adam:
    """Parameters, gradients and torch's fused Adam on one device.

    Args:
        value, gradient: fp32 ``[n]`` on that device.
    """

    def __init__(self, value: Any, gradient: Any) -> None:
        import torch

        self.value = value.requires_grad_(True)
        self.value.grad = gradient
        self._optimizer = torch.optim.Adam([self.value], lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, fused=True)

    def step(self) -> None:
        """Update all parameters once."""
        self._optimizer.step()


def reference(value: Any, gradient: Any, steps: int) -> Any:
    """So many steps of Adam (D. Kingma and J. Ba, ICLR 2015, algorithm 1) with one gradient, in double precision."""
    import torch

    value, gradient = value.double(), gradient.double()
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    for t in range(1, steps + 1):
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        value = value - RATE * (first / (1 - BETA1**t)) / ((second / (1 - BETA2**t)).sqrt() + EPSILON)
    return value


@workload(
    "offload.optimizer",
    impl="host",
    requires=(
        never(lambda p, m: m.kind != "cpu", "host_only", "it updates all parameters on the host: add --device cpu"),
        never(
            lambda p, m: float(p["cpu_share"]) < 1, "no_accelerator",
            "the rest of the parameters is a device's: cpu_share = 1, or an accelerator and the implementation split",
        ),
    ),
)  # fmt: skip
class Optimizer(Workload):
    """A step of torch's fused Adam on the CPU, parameters and states in host memory."""

    params = Params(
        parameters=Int(lo=ALIGNED, doc="fp32 parameters"),
        cpu_share=Float(1.0, lo=0.0, hi=1.0, doc="share of them that the CPU updates"),
    )
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        value, gradient = ctx.tensor((int(p["parameters"]),), "fp32"), ctx.tensor((int(p["parameters"]),), "fp32")
        start, adam, steps = value.clone(), Adam(value, gradient), [0]

        def call() -> Any:
            steps[0] += 1
            adam.step()
            return value

        return Kernel(call, {"start": start, "gradient": gradient, "steps": steps, "parts": {"cpu": adam.step}})

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: the change of the parameters, after as many steps in double precision."""
        start, gradient = kernel.inputs["start"].cpu(), kernel.inputs["gradient"].cpu()
        wanted = reference(start, gradient, kernel.inputs["steps"][0]) - start.double()
        change = result.detach().cpu().double() - start.double()
        # A change of a thousandth of parameters of about one, in single precision: 2^-24 / 1e-3, and the state's own.
        return distance(change, wanted), 1e-3, "full"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: parameters, gradients, two moments, and the copy for the check."""
        return 20.0 * int(p["parameters"])

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: the parts alone, and what they let expect of this split and of others."""
        facts: dict[str, Any] = {"parameters_per_s": int(p["parameters"]) / stats.median_s}
        parts = kernels[0].inputs["parts"]
        if "device" not in parts:
            return facts
        count, cpu = int(p["parameters"]), split_at(p)
        alone = {name: _seconds(part, parts["wait"]) for name, part in parts.items() if name != "wait"}
        facts |= {f"{name}_alone_s": spent for name, spent in alone.items()}
        if 0 < cpu < count:
            whole = {
                "cpu_s": alone["cpu"] * count / cpu,
                "link_s": alone["link"] * count / cpu,
                "device_s": alone["device"] * count / (count - cpu),
            }
            predicted = float(split_step_s(cpu / count, **whole))
            best = best_split(**whole)
            facts |= {
                "predicted_step_s": predicted,
                "predicted_error": predicted / stats.median_s - 1,
                "best_share": best,
                "best_step_s": float(split_step_s(best, **whole)),
            }
        return facts

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer parameters."""
        smaller = size * 8 * ALIGNED
        return None if int(p["parameters"]) <= smaller else {**p, "parameters": smaller}


def _seconds(part: Callable[[], Any], wait: Callable[[], None]) -> float:
    spent = []
    for _ in range(_ALONE):
        wait()
        begin = time.perf_counter()
        part()
        wait()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


@implementation("offload.optimizer", "split", requires=(accelerator(), page_locked()))
def _split(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The CPU updates its share while the device updates the rest; gradients come down and parameters go up."""
    import torch

    engine, count, cpu = engine_for(ctx), int(p["parameters"]), split_at(p)
    value, gradient = ctx.tensor((count,), "fp32"), ctx.tensor((count,), "fp32")
    start, steps, lane = value.clone(), [0], engine.stream()
    there = Adam(value[cpu:].clone(), gradient[cpu:].clone()) if cpu < count else None
    here: Adam | None = None
    low, low_gradient = value[:cpu].clone(), gradient[:cpu].clone()
    if cpu:
        kept, came = engine.host(4 * cpu, "pinned"), engine.host(4 * cpu, "pinned")
        ctx.defer(kept.close)
        ctx.defer(came.close)
        kept.host.view(torch.float32).copy_(low)
        here = Adam(kept.host.view(torch.float32), came.host.view(torch.float32))
    engine.synchronize()

    def down() -> None:
        if here is not None:
            engine.run(lane, lambda: here.value.grad.copy_(low_gradient, non_blocking=True))

    def up() -> None:
        if here is not None:
            engine.run(lane, lambda: low.copy_(here.value.detach(), non_blocking=True))

    def on_device() -> None:
        if there is not None:
            engine.run(engine.current(), there.step)

    def on_cpu() -> None:
        if here is not None:
            here.step()

    def link() -> None:
        down()
        up()

    def call() -> Any:
        steps[0] += 1
        engine.wait(lane, engine.current())
        down()
        on_device()
        engine.wait_for(lane)
        on_cpu()
        up()
        engine.wait(engine.current(), lane)
        return Parts(low, there, engine.synchronize)

    parts = {"cpu": on_cpu, "device": on_device, "link": link, "wait": engine.synchronize}
    inputs = {"start": start, "gradient": gradient, "steps": steps, "parts": parts}
    return Kernel(call, inputs, facts={"cpu_parameters": cpu})


class Parts:
    """The parameters of both sides as one tensor, when it is asked for: after the device has been waited for."""

    def __init__(self, low: Any, rest: Adam | None, wait: Callable[[], None]) -> None:
        self._low, self._rest, self._wait = low, rest, wait

    def detach(self) -> Any:
        """All parameters on the device, in order."""
        import torch

        self._wait()
        return self._low if self._rest is None else torch.cat([self._low, self._rest.value.detach()])
