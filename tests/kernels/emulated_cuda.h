// As much of CUDA as our kernels need, on a CPU: a thread for each thread of a block, blocks one after the other. What
// single instructions do is written from the PTX manual; bf16 only.
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(threads)
#define __cluster_dims__(x, y, z)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
struct Index { int x, y, z; };
static thread_local Index threadIdx, blockIdx;
static Index gridDim;

// Blocks of a cluster run at once, each with its own barriers and shared memory: `dynamic_shared` only, then.
#if CLUSTER
#define BLOCKS SPLITS
#else
#define BLOCKS 1
#endif
struct Block {
    unsigned char shared[227 * 1024] __attribute__((aligned(128)));
    pthread_barrier_t barrier;
};
static Block blocks[BLOCKS];
static pthread_barrier_t warp_barriers[BLOCKS * WARPS];
static thread_local int rank;  // of this thread's block
#define dynamic_shared blocks[rank].shared

static inline int warp_of_all() { return rank * WARPS + threadIdx.x / 32; }

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a < b ? b : a; }
static inline void __syncthreads() { pthread_barrier_wait(&blocks[rank].barrier); }
static inline void __syncwarp() { pthread_barrier_wait(&warp_barriers[warp_of_all()]); }
static inline float rsqrtf(float v) { return 1 / sqrtf(v); }
static inline float __uint_as_float(unsigned bits) { float v; memcpy(&v, &bits, 4); return v; }

// Who has come to a cluster's barrier is counted; a thread waits until all have, as often as itself.
static long arrived;
static thread_local long waited;

// Threads of one block, or of a cluster's: `run` is called with which one it is.
static void block_of_threads(void* (*run)(void*)) {
    const int count = 32 * WARPS;
    arrived = 0;
    for (Block& one : blocks) {
        memset(one.shared, 0xFF, sizeof one.shared);  // no numbers
        pthread_barrier_init(&one.barrier, 0, count);
    }
    for (pthread_barrier_t& one : warp_barriers) pthread_barrier_init(&one, 0, 32);
    pthread_t threads[BLOCKS * count];
    for (long i = 0; i < BLOCKS * count; i++) pthread_create(&threads[i], 0, run, (void*)i);
    for (pthread_t one : threads) pthread_join(one, 0);
}

//@ what stands for the instructions
static u32 first_operand[BLOCKS * WARPS][32][4], second_operand[BLOCKS * WARPS][32][2];

static float from_bf16(u32 bits) { return __uint_as_float((bits & 0xFFFF) << 16); }

static u16 narrow(float v) {
    u32 bits;
    memcpy(&bits, &v, 4);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// Shows a warp's operands to all its lanes; they may be changed when all have met again.
static void show_operands(u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const int lane = threadIdx.x % 32, warp = warp_of_all();
    const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    memcpy(first_operand[warp][lane], a, sizeof a);
    memcpy(second_operand[warp][lane], b, sizeof b);
    pthread_barrier_wait(&warp_barriers[warp]);
}

// m16n8k16: row r and column k of the first operand are in lane 4 (r % 8) + (k % 8) / 2, register r / 8 + 2 (k / 8), half
// k % 2; those of the second, k and n, in lane 4 n + (k % 8) / 2, register k / 8.
static void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const int lane = threadIdx.x % 32, warp = warp_of_all();
    show_operands(a0, a1, a2, a3, b0, b1);
    for (int i = 0; i < 4; i++) {
        const int r = lane / 4 + 8 * (i / 2), n = lane % 4 * 2 + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; k++) {
            const u32 one = first_operand[warp][4 * (r % 8) + k % 8 / 2][r / 8 + 2 * (k / 8)] >> 16 * (k % 2);
            const u32 other = second_operand[warp][4 * n + k % 8 / 2][k / 8] >> 16 * (k % 2);
            sum += (double)from_bf16(one) * from_bf16(other);
        }
        c[i] = sum;
    }
    pthread_barrier_wait(&warp_barriers[warp]);
}

static void read(const void* at, int size, u32* to) {
    if ((uintptr_t)at % size) abort();
    *to = 0;
    memcpy(to, at, size);
}

static u32 bytes(u32 a, u32 b, u32 chosen) {
    const uint64_t both = a | (uint64_t)b << 32;
    u32 r = 0;
    for (int i = 0; i < 4; i++) r |= (u32)(both >> 8 * (chosen >> 4 * i & 7) & 255) << 8 * i;
    return r;
}

static u32 mantissas(u32 w) {
    const u32 mask = BITS == 8 ? 0x7F : (1 << BITS) - 1;
    return (w & mask * 0x00010001) | 0x43004300;
}

static u32 by_highest_bit(u32 w) { return (w & 0x00800080) ^ 0xC380C380; }

static u32 plus(u32 a, u32 b) {
    return narrow(from_bf16(a) + from_bf16(b)) | (u32)narrow(from_bf16(a >> 16) + from_bf16(b >> 16)) << 16;
}

static u32 times(u32 a, u32 b) {
    return narrow(from_bf16(a) * from_bf16(b)) | (u32)narrow(from_bf16(a >> 16) * from_bf16(b >> 16)) << 16;
}

static void let_next_start() {}
static void wait_for_previous() {}

static float at_lane(float v, int lane_of_it) {
    static float all[BLOCKS * WARPS][32];
    const int lane = threadIdx.x % 32, warp = warp_of_all();
    all[warp][lane] = v;
    pthread_barrier_wait(&warp_barriers[warp]);
    v = all[warp][lane_of_it];
    pthread_barrier_wait(&warp_barriers[warp]);
    return v;
}

static float of_lane(float v, int differing) { return at_lane(v, threadIdx.x % 32 ^ differing); }

static float sum_of_warp(float v) {
    static float all[BLOCKS * WARPS][32];
    const int lane = threadIdx.x % 32, warp = warp_of_all();
    all[warp][lane] = v;
    pthread_barrier_wait(&warp_barriers[warp]);
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += all[warp][i];
    pthread_barrier_wait(&warp_barriers[warp]);
    return sum;
}

static float half_to_float(u16) { abort(); }

#if CLUSTER
static pthread_mutex_t cluster_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cluster_changed = PTHREAD_COND_INITIALIZER;

static void arrive_in_cluster() {
    pthread_mutex_lock(&cluster_lock);
    arrived++;
    pthread_cond_broadcast(&cluster_changed);
    pthread_mutex_unlock(&cluster_lock);
}

static void wait_for_cluster() {
    waited++;
    pthread_mutex_lock(&cluster_lock);
    while (arrived < waited * BLOCKS * 32 * WARPS) pthread_cond_wait(&cluster_changed, &cluster_lock);
    pthread_mutex_unlock(&cluster_lock);
}

static float* in_block(const float* at, int block) {
    return (float*)(blocks[block].shared + ((const unsigned char*)at - blocks[rank].shared));
}

static float of_block(const float* at, u32 block) { return *in_block(at, block); }
static void to_block(float* at, u32 block, float v) { *in_block(at, block) = v; }
#endif

// Lane by lane, in one order.
template <typename Fold>
static float of_rows(float v, Fold fold) {
    static float all[BLOCKS * WARPS][32];
    const int lane = threadIdx.x % 32, warp = warp_of_all();
    all[warp][lane] = v;
    pthread_barrier_wait(&warp_barriers[warp]);
    v = all[warp][lane % 4];
    for (int i = 1; i < 8; i++) v = fold(v, all[warp][4 * i + lane % 4]);
    pthread_barrier_wait(&warp_barriers[warp]);
    return v;
}

static float largest_of_rows(float v) { return of_rows(v, [](float a, float b) { return fmaxf(a, b); }); }
static float sum_of_rows(float v) { return of_rows(v, [](float a, float b) { return a + b; }); }
