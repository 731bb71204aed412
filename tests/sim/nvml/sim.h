/* A simulated libnvidia-ml.so.1: the state that tests write, and what the two C files share.
 *
 * The state is the file "state" beside the library, mapped by every process that loads it and by the test itself.
 * Every field is 8 bytes wide or an array of characters whose length is a multiple of 8, so that the mirror in
 * tests/sim/nvml_library.py needs no knowledge of padding; sim_layout() lets it check. */
#ifndef SIM_H
#define SIM_H

#include <stdint.h>

#define SIM_MAGIC 0x4e564d4c53494d31LL
#define SIM_DEVICES 8
#define SIM_STEPS 16384
#define SIM_RULES 64
#define SIM_PROCESSES 16
#define SIM_POLICIES 12
#define SIM_MIG_SLICES 7

/* Numbers of the public interface (NVML API reference). */
enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, OUT_OF_MEMORY = 20, VERSION_MISMATCH = 25,
    UNKNOWN = 999
};
enum { REASON_IDLE = 0x1, REASON_SETTING = 0x2, REASON_POWER_CAP = 0x4 };
enum { POLICY_POWER = 0, POLICY_THERMAL = 1 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { TYPE_UINT = 1, TYPE_ULL = 3 };

typedef struct { double time_s, watts, joules; } Step;

/* From one time to another (CLOCK_MONOTONIC) a function gives an error: "*" is every function of a device, and
 * "field:186" one field of nvmlDeviceGetFieldValues. Device -1 is any. */
typedef struct { char function[64]; int64_t device, code; double from_s, until_s; } Rule;

typedef struct { int64_t pid, memory_bytes; } Process;

typedef struct {
    char name[96], uuid[96], vbios[32], serial[32];
    int64_t architecture, major, minor, seed;
    /* truth */
    double origin_s, idle_w, demand_w;
    /* power readings */
    double period_s, window_s, average_window_s, lag_s, phase_s, gain, offset_w, noise_w, module_extra_w;
    int64_t usage_is_average;
    /* energy counter, sample buffer */
    double counter_period_s, counter_phase_s, counter_start_j, counter_wrap_j, counter_gain;
    double reset_s, stall_from_s, stall_until_s, sample_period_s;
    int64_t sample_count;
    /* limits and clocks: milliwatts and MHz, as the interface has them */
    int64_t may_set, limit_mw, default_limit_mw, min_limit_mw, max_limit_mw;
    int64_t max_sm_mhz, min_sm_mhz, memory_mhz, locked_low_mhz, locked_high_mhz, sm_override_mhz;
    /* other telemetry; -1 in utilisation: follows the load */
    int64_t reasons, temperature_c, utilisation, memory_utilisation, pcie_tx_kbs, pcie_rx_kbs;
    int64_t violation_ns[SIM_POLICIES];
    double violation_since_s[SIM_POLICIES];
    int64_t mig, mig_slices, memory_bytes, memory_used_bytes, process_count;
    Process processes[SIM_PROCESSES];
    int64_t calls;
    int64_t step_count;
    Step steps[SIM_STEPS];
} Device;

typedef struct {
    int64_t magic, device_count, rule_count;
    double read_delay_s;
    char driver[80], nvml[80];
    Rule rules[SIM_RULES];
    Device devices[SIM_DEVICES];
} State;

/* signal.c */
State *sim_state(void);
double sim_now(void);
int sim_rule(const char *function, int64_t device);
double sim_power(const Device *d, double time_s);
double sim_integral(const Device *d, double from_s, double until_s);
double sim_read_power(const Device *d, double time_s, double window_s, int scope);
double sim_read_counter(const Device *d, double time_s);
double sim_clock_mhz(const Device *d);
int sim_apply(Device *d);
int64_t sim_violation_ns(const Device *d, int policy);

#endif
