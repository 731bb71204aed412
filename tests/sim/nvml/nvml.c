/* The functions of libnvidia-ml.so.1 that measuring needs, over the simulated state. */
#include "sim.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef void *Handle;
typedef union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; } Value;
typedef struct { unsigned long long time_us; Value value; } Sample;
typedef struct {
    uint32_t field, scope;
    int64_t time_us, latency_us;
    uint32_t type, code;
    Value value;
} FieldValue;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } ProcessInfo;
typedef struct { char legacy[16]; unsigned int domain, bus, device, id, sub_id; char bus_id[32]; } Pci;

#define DEVICE_BASE 0x100000u
#define MIG_BASE 0x200000u
#define NONE 0xffffffffu

static int references;

static int64_t index_of(const Device *d) { return d - sim_state()->devices; }

static int64_t realtime_us(double monotonic_s) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double ago = sim_now() - monotonic_s;
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000 - (int64_t)llround(1e6 * ago);
}

/* What every call does first: the delay of a driver's call, counting, the handle, errors asked for. */
static int enter(const char *function, Handle handle, int mig_too, Device **device) {
    if (references <= 0) return UNINITIALIZED;
    State *s = sim_state();
    if (s->read_delay_s > 0) {
        double until = sim_now() + s->read_delay_s;
        while (sim_now() < until) {}
    }
    uintptr_t value = (uintptr_t)handle;
    int64_t index = -1;
    if (value >= DEVICE_BASE && value < DEVICE_BASE + (uintptr_t)s->device_count) index = (int64_t)(value - DEVICE_BASE);
    int is_mig = value >= MIG_BASE && value < MIG_BASE + 16 * (uintptr_t)s->device_count;
    if (is_mig) index = (int64_t)((value - MIG_BASE) / 16);
    if (index < 0) return INVALID_ARGUMENT;
    *device = &s->devices[index];
    __atomic_add_fetch(&(*device)->calls, 1, __ATOMIC_RELAXED);
    int code = sim_rule(function, index);
    return code ? code : is_mig && !mig_too ? NOT_SUPPORTED : OK;
}

#define ENTER Device *d; { int code_ = enter(__func__, handle, 0, &d); if (code_) return code_; }
#define ENTER_MIG Device *d; { int code_ = enter(__func__, handle, 1, &d); if (code_) return code_; }
#define SYSTEM do { if (references <= 0) return UNINITIALIZED; \
    int code_ = sim_rule(__func__, -1); if (code_) return code_; } while (0)

static int text(const char *from, char *to, unsigned int length) {
    if (strlen(from) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return OK;
}

/* ---- system ---- */

static int start(const char *function) {
    if (!sim_state()) return UNKNOWN;
    int code = sim_rule(function, -1);
    if (!code) references++;
    return code;
}
int nvmlInit_v2(void) { return start("nvmlInit"); }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return start("nvmlInit"); }
int nvmlShutdown(void) {
    if (references <= 0) return UNINITIALIZED;
    references--;
    return OK;
}
const char *nvmlErrorString(int code) {
    switch (code) {
    case OK: return "The operation was successful";
    case UNINITIALIZED: return "NVML was not first initialized";
    case INVALID_ARGUMENT: return "A supplied argument is invalid";
    case NOT_SUPPORTED: return "The requested operation is not available on the target device";
    case NO_PERMISSION: return "The current user does not have permission for the operation";
    case NOT_FOUND: return "A query to find an object was unsuccessful";
    case FUNCTION_NOT_FOUND: return "Local version of NVML does not implement this function";
    case GPU_IS_LOST: return "The GPU has fallen off the bus or has otherwise become inaccessible";
    default: return "An internal driver error occurred";
    }
}
int nvmlSystemGetDriverVersion(char *to, unsigned int n) { SYSTEM; return text(sim_state()->driver, to, n); }
int nvmlSystemGetNVMLVersion(char *to, unsigned int n) { SYSTEM; return text(sim_state()->nvml, to, n); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { SYSTEM; *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned int *n) { SYSTEM; *n = (unsigned int)sim_state()->device_count; return OK; }

/* ---- handles and names ---- */

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Handle *handle) {
    SYSTEM;
    if (index >= sim_state()->device_count) return INVALID_ARGUMENT;
    *handle = (Handle)(uintptr_t)(DEVICE_BASE + index);
    return sim_rule(__func__, index);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle) {
    SYSTEM;
    for (unsigned int k = 0; k < sim_state()->device_count; k++)
        if (!strcmp(uuid, sim_state()->devices[k].uuid)) return nvmlDeviceGetHandleByIndex_v2(k, handle);
    return NOT_FOUND;
}
static void bus_id(const Device *d, char *to) { sprintf(to, "00000000:%02X:00.0", 0x10 + (int)index_of(d)); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, Handle *handle) {
    SYSTEM;
    char own[32];
    for (unsigned int k = 0; k < sim_state()->device_count; k++) {
        bus_id(&sim_state()->devices[k], own);
        if (!strcmp(bus, own) || !strcmp(bus, own + 4)) return nvmlDeviceGetHandleByIndex_v2(k, handle);
    }
    return NOT_FOUND;
}
int nvmlDeviceGetPciInfo_v3(Handle handle, Pci *pci) {
    ENTER;
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x10u + (unsigned int)index_of(d);
    bus_id(d, pci->bus_id);
    strcpy(pci->legacy, pci->bus_id + 4);
    return OK;
}
int nvmlDeviceGetName(Handle handle, char *to, unsigned int n) { ENTER_MIG; return text(d->name, to, n); }
int nvmlDeviceGetUUID(Handle handle, char *to, unsigned int n) {
    ENTER_MIG;
    if ((uintptr_t)handle < MIG_BASE) return text(d->uuid, to, n);
    char uuid[128];
    snprintf(uuid, sizeof uuid, "MIG-%s-%d", d->uuid, (int)((uintptr_t)handle % 16));
    return text(uuid, to, n);
}
int nvmlDeviceGetVbiosVersion(Handle handle, char *to, unsigned int n) { ENTER; return text(d->vbios, to, n); }
int nvmlDeviceGetSerial(Handle handle, char *to, unsigned int n) { ENTER; return text(d->serial, to, n); }
int nvmlDeviceGetIndex(Handle handle, unsigned int *n) { ENTER; *n = (unsigned int)index_of(d); return OK; }
int nvmlDeviceGetMinorNumber(Handle handle, unsigned int *n) { ENTER; *n = (unsigned int)index_of(d); return OK; }
int nvmlDeviceGetArchitecture(Handle handle, unsigned int *a) { ENTER; *a = (unsigned int)d->architecture; return OK; }
int nvmlDeviceGetCudaComputeCapability(Handle handle, int *major, int *minor) {
    ENTER;
    *major = (int)d->major;
    *minor = (int)d->minor;
    return OK;
}
int nvmlDeviceGetMemoryInfo(Handle handle, unsigned long long *m) { /* total, free, used */
    ENTER_MIG;
    m[0] = (unsigned long long)d->memory_bytes;
    m[2] = (unsigned long long)d->memory_used_bytes;
    m[1] = m[0] - m[2];
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(Handle handle, unsigned long long *m) { /* version, total, reserved, free, used */
    ENTER_MIG;
    m[1] = (unsigned long long)d->memory_bytes;
    m[2] = 0;
    m[4] = (unsigned long long)d->memory_used_bytes;
    m[3] = m[1] - m[4];
    return OK;
}

/* ---- MIG ---- */

int nvmlDeviceGetMigMode(Handle handle, unsigned int *current, unsigned int *pending) {
    ENTER;
    if (d->major < 8) return NOT_SUPPORTED;
    *current = *pending = (unsigned int)d->mig;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Handle handle, unsigned int *n) {
    ENTER;
    *n = d->mig ? SIM_MIG_SLICES : 0;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Handle handle, unsigned int index, Handle *mig) {
    ENTER;
    if (!d->mig || index >= (unsigned int)d->mig_slices) return NOT_FOUND;
    *mig = (Handle)(uintptr_t)(MIG_BASE + 16 * (unsigned int)index_of(d) + index);
    return OK;
}
int nvmlDeviceIsMigDeviceHandle(Handle handle, unsigned int *is) {
    ENTER_MIG;
    (void)d;
    *is = (uintptr_t)handle >= MIG_BASE;
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle mig, Handle *handle) {
    if ((uintptr_t)mig < MIG_BASE) return INVALID_ARGUMENT;
    return nvmlDeviceGetHandleByIndex_v2((unsigned int)(((uintptr_t)mig - MIG_BASE) / 16), handle);
}

/* ---- power and energy ---- */

static unsigned int milliwatts(double watts) { return (unsigned int)llround(1e3 * watts); }

static double usage_window(const Device *d) { return d->usage_is_average ? d->average_window_s : d->window_s; }

int nvmlDeviceGetPowerUsage(Handle handle, unsigned int *mw) {
    ENTER;
    *mw = milliwatts(sim_read_power(d, sim_now(), usage_window(d), SCOPE_GPU));
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(Handle handle, unsigned long long *mj) {
    ENTER;
    *mj = (unsigned long long)floor(1e3 * sim_read_counter(d, sim_now()));
    return OK;
}
int nvmlDeviceGetSamples(
    Handle handle, int kind, unsigned long long since_us, unsigned int *type, unsigned int *count, Sample *samples
) {
    ENTER;
    if (kind != 0 || d->sample_count <= 0) return NOT_SUPPORTED; /* total power only */
    *type = TYPE_UINT;
    if (!samples) { *count = (unsigned int)d->sample_count; return OK; }
    double now = sim_now();
    int64_t last = (int64_t)floor((now - d->origin_s - d->phase_s) / d->sample_period_s);
    unsigned int filled = 0, room = *count;
    for (int64_t k = last - d->sample_count + 1; k <= last && filled < room; k++) {
        double at = d->origin_s + d->phase_s + (double)k * d->sample_period_s;
        int64_t us = realtime_us(at);
        if (us <= (int64_t)since_us) continue;
        samples[filled].time_us = (unsigned long long)us;
        samples[filled].value.ull = 0;
        samples[filled++].value.ui = milliwatts(sim_read_power(d, at, d->window_s, SCOPE_GPU));
    }
    *count = filled;
    return filled ? OK : NOT_FOUND;
}
static void field(Device *d, FieldValue *v) {
    char name[32];
    double now = sim_now();
    snprintf(name, sizeof name, "field:%u", v->field);
    v->time_us = realtime_us(now);
    v->latency_us = 0;
    v->value.ull = 0;
    v->type = TYPE_UINT;
    v->code = (uint32_t)sim_rule(name, index_of(d));
    if (v->code) return;
    if (v->scope > SCOPE_MODULE || (v->scope == SCOPE_MODULE && d->module_extra_w <= 0)) { v->code = NOT_SUPPORTED; return; }
    switch (v->field) {
    case 83: v->type = TYPE_ULL; v->value.ull = (unsigned long long)floor(1e3 * sim_read_counter(d, now)); return;
    case 185: v->value.ui = milliwatts(sim_read_power(d, now, d->average_window_s, (int)v->scope)); return;
    case 186: v->value.ui = milliwatts(sim_read_power(d, now, d->window_s, (int)v->scope)); return;
    case 74: v->type = TYPE_ULL; v->value.ull = (unsigned long long)sim_violation_ns(d, POLICY_POWER); return;
    case 75: v->type = TYPE_ULL; v->value.ull = (unsigned long long)sim_violation_ns(d, POLICY_THERMAL); return;
    case 187: v->value.ui = (unsigned int)d->min_limit_mw; return;
    case 188: v->value.ui = (unsigned int)d->max_limit_mw; return;
    case 189: v->value.ui = (unsigned int)d->default_limit_mw; return;
    case 190: case 192: v->value.ui = (unsigned int)d->limit_mw; return;
    default: v->code = NOT_SUPPORTED;
    }
}
int nvmlDeviceGetFieldValues(Handle handle, int count, FieldValue *values) {
    ENTER;
    for (int k = 0; k < count; k++) field(d, &values[k]);
    return OK;
}

/* ---- processes ---- */

int nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned int *count, ProcessInfo *infos) {
    ENTER_MIG;
    unsigned int room = *count, n = (unsigned int)d->process_count;
    *count = n;
    if (n > room || (n && !infos)) return INSUFFICIENT_SIZE;
    for (unsigned int k = 0; k < n; k++)
        infos[k] = (ProcessInfo){(unsigned int)d->processes[k].pid, (unsigned long long)d->processes[k].memory_bytes, NONE, NONE};
    return OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned int *count, ProcessInfo *infos) {
    ENTER_MIG;
    (void)d;
    (void)infos;
    *count = 0;
    return OK;
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle handle, unsigned int *count, ProcessInfo *infos) {
    return nvmlDeviceGetGraphicsRunningProcesses_v3(handle, count, infos);
}

/* ---- telemetry, limits and clocks: the state's figures as they are ---- */
#include "nvml_telemetry.inc"
