/* Truth and sensors: a waveform of true power, and how the simulated board reads it. */
#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static State *state;
static int state_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* The file "state" beside this library, mapped once per process. */
State *sim_state(void) {
    pthread_mutex_lock(&mutex);
    if (!state) {
        Dl_info info;
        char path[PATH_MAX];
        if (dladdr((void *)&sim_state, &info) && info.dli_fname) {
            const char *slash = strrchr(info.dli_fname, '/');
            int length = slash ? (int)(slash - info.dli_fname) : 1;
            snprintf(path, sizeof path, "%.*s/state", length, slash ? info.dli_fname : ".");
            state_fd = open(path, O_RDWR | O_CLOEXEC);
        }
        if (state_fd >= 0) {
            void *mapped = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, state_fd, 0);
            if (mapped != MAP_FAILED && ((State *)mapped)->magic == SIM_MAGIC) state = mapped;
        }
    }
    pthread_mutex_unlock(&mutex);
    return state;
}

int64_t sim_layout(int what) {
    return what == 0 ? (int64_t)sizeof(State) : what == 1 ? (int64_t)sizeof(Device) : (int64_t)sizeof(Rule);
}

double sim_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The error that a test asked of a function; "nvmlDeviceGetCount" stands for its later versions too. */
int sim_rule(const char *function, int64_t device) {
    const State *s = sim_state();
    int64_t count = __atomic_load_n(&s->rule_count, __ATOMIC_ACQUIRE);
    double now = count ? sim_now() : 0.0;
    for (int64_t k = 0; k < count; k++) {
        const Rule *r = &s->rules[k];
        if ((r->device >= 0 && r->device != device) || now < r->from_s || now >= r->until_s) continue;
        size_t n = strlen(r->function);
        int all = !strcmp(r->function, "*") && device >= 0;
        int same = !strncmp(r->function, function, n) && (!function[n] || !strncmp(function + n, "_v", 2));
        if (all || same) return (int)r->code;
    }
    return OK;
}

/* Number of the last step at or before that time. */
static int64_t step_at(const Device *d, double time_s) {
    int64_t low = 0, high = __atomic_load_n(&d->step_count, __ATOMIC_ACQUIRE);
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (d->steps[middle].time_s <= time_s) low = middle; else high = middle;
    }
    return low;
}

double sim_power(const Device *d, double time_s) { return d->steps[step_at(d, time_s)].watts; }

static double total(const Device *d, double time_s) {
    const Step *s = &d->steps[step_at(d, time_s)];
    return s->joules + s->watts * (time_s - s->time_s);
}

double sim_integral(const Device *d, double from_s, double until_s) { return total(d, until_s) - total(d, from_s); }

/* For tests, by number of the device. */
double sim_energy(int device, double from_s, double until_s) {
    return sim_integral(&sim_state()->devices[device], from_s, until_s);
}

/* splitmix64, then Box and Muller: one normal number per renewal, however often it is read. */
static double normal(uint64_t seed, int64_t k, uint64_t stream) {
    double u[2];
    for (int j = 0; j < 2; j++) {
        uint64_t z = seed * 0x9e3779b97f4a7c15ULL + (uint64_t)k * 0xbf58476d1ce4e5b9ULL + (2 * stream + (uint64_t)j);
        z += 0x9e3779b97f4a7c15ULL;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        u[j] = ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
    }
    return sqrt(-2.0 * log(u[0])) * cos(2.0 * M_PI * u[1]);
}

static int64_t renewal(const Device *d, double time_s, double period_s, double phase_s, double *at_s) {
    int64_t k = (int64_t)floor((time_s - d->origin_s - phase_s) / period_s);
    *at_s = d->origin_s + phase_s + (double)k * period_s;
    return k;
}

double sim_read_power(const Device *d, double time_s, double window_s, int scope) {
    double end;
    int64_t k = renewal(d, time_s, d->period_s, d->phase_s, &end);
    end -= d->lag_s;
    double watts = window_s > 0 ? sim_integral(d, end - window_s, end) / window_s : sim_power(d, end);
    if (scope == SCOPE_MODULE) watts += d->module_extra_w;
    watts = d->gain * watts + d->offset_w;
    if (d->noise_w > 0) watts += d->noise_w * normal((uint64_t)d->seed, k, 1);
    return watts > 0 ? watts : 0;
}

double sim_read_counter(const Device *d, double time_s) {
    double at, from = d->origin_s, base = d->counter_start_j;
    renewal(d, time_s, d->counter_period_s, d->counter_phase_s, &at);
    if (d->stall_until_s > d->stall_from_s && at >= d->stall_from_s && at < d->stall_until_s)
        renewal(d, d->stall_from_s, d->counter_period_s, d->counter_phase_s, &at);
    if (d->reset_s > 0 && at >= d->reset_s) { from = d->reset_s; base = 0.0; }
    double joules = base + d->counter_gain * sim_integral(d, from, at);
    return d->counter_wrap_j > 0 ? fmod(joules, d->counter_wrap_j) : joules;
}

/* Locked clocks lower the dynamic power with their square; a cap lowers the clock until the power fits. */
static double scale(const Device *d) {
    int64_t high = d->locked_high_mhz ? d->locked_high_mhz : d->max_sm_mhz;
    return (double)(high < d->max_sm_mhz ? high : d->max_sm_mhz) / (double)d->max_sm_mhz;
}

static double wanted(const Device *d) {
    double dynamic = d->demand_w - d->idle_w;
    return dynamic > 0 ? d->idle_w + dynamic * scale(d) * scale(d) : d->demand_w;
}

double sim_clock_mhz(const Device *d) {
    if (d->sm_override_mhz) return (double)d->sm_override_mhz;
    double dynamic = d->demand_w - d->idle_w, cap = 1e-3 * (double)d->limit_mw;
    if (dynamic <= 0) return (double)(d->locked_low_mhz ? d->locked_low_mhz : d->min_sm_mhz);
    double mhz = scale(d) * (double)d->max_sm_mhz;
    if (wanted(d) > cap) mhz = (double)d->max_sm_mhz * sqrt(fmax(cap - d->idle_w, 0.0) / dynamic);
    return fmax(mhz, (double)d->min_sm_mhz);
}

int64_t sim_violation_ns(const Device *d, int policy) {
    double since = d->violation_since_s[policy];
    return d->violation_ns[policy] + (since > 0 ? (int64_t)(1e9 * (sim_now() - since)) : 0);
}

static void violate(Device *d, int policy, int on) {
    int is = d->violation_since_s[policy] > 0;
    if (on == is) return;
    d->violation_ns[policy] = sim_violation_ns(d, policy);
    d->violation_since_s[policy] = on ? sim_now() : 0.0;
}

/* One writer at a time, in this process and in others: the test and the program under test both write. */
static void lock(int on) {
    if (on) pthread_mutex_lock(&mutex);
    flock(state_fd, on ? LOCK_EX : LOCK_UN);
    if (!on) pthread_mutex_unlock(&mutex);
}

static int append(Device *d, double time_s, double watts) {
    int64_t n = d->step_count;
    if (n >= SIM_STEPS) return OUT_OF_MEMORY;
    const Step *last = n ? &d->steps[n - 1] : NULL;
    if (last && time_s < last->time_s) return INVALID_ARGUMENT;
    d->steps[n] = (Step){time_s, watts, last ? last->joules + last->watts * (time_s - last->time_s) : 0.0};
    __atomic_store_n(&d->step_count, n + 1, __ATOMIC_RELEASE);
    return OK;
}

/* Bring true power, throttle reason and violation time in line with demand, limit and clocks. */
int sim_apply(Device *d) {
    lock(1);
    double want = wanted(d), cap = 1e-3 * (double)d->limit_mw, watts = want < cap ? want : cap;
    violate(d, POLICY_POWER, want > cap);
    int code = d->step_count && d->steps[d->step_count - 1].watts == watts ? OK : append(d, sim_now(), watts);
    lock(0);
    return code;
}

/* For tests: the load wants so many watts from now on. */
int sim_demand(int device, double watts) {
    Device *d = &sim_state()->devices[device];
    d->demand_w = watts;
    return sim_apply(d);
}

/* For tests: a step at any time not before the last one, the future included; limits do not apply to it. */
int sim_step(int device, double time_s, double watts) {
    Device *d = &sim_state()->devices[device]; /* takes the same mutex, so before the lock */
    lock(1);
    int code = append(d, time_s, watts);
    lock(0);
    return code;
}

/* For tests: throttled for another cause, with the violation time of a policy running meanwhile. */
void sim_throttle(int device, int64_t reasons, int policy, int on) {
    Device *d = &sim_state()->devices[device];
    lock(1);
    d->reasons = on ? (d->reasons | reasons) : (d->reasons & ~reasons);
    if (policy >= 0) violate(d, policy, on);
    lock(0);
}
