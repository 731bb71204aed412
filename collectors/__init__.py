"""Instruments: clocks, power and energy sensors, telemetry, the environment, and what a machine offers.

Nothing is imported here, so that asking for one instrument loads only that one:

- :mod:`wattline.collectors.device`: the CPU and accelerators behind one interface.
- :mod:`wattline.collectors.timers`: their clocks.
- :mod:`wattline.collectors.telemetry`: clocks, load and throttling beside a measurement.
- :mod:`wattline.collectors.energy`: the interface of energy sensors, and why there may be none.
- :mod:`wattline.collectors.environment`: the snapshot that a run keeps of its conditions.
- :mod:`wattline.collectors.doctor`: what this machine has, lacks, and how to get it.
- :mod:`wattline.collectors.host`: reading `/proc`, `/sys` and control groups; shared by the above.
- :mod:`wattline.collectors.counters`: the kernel's counters of load, quota, heat and clocks.
- :mod:`wattline.collectors.energy.nvml_probe`: whether NVIDIA's management library answers; shared by the above.
"""
