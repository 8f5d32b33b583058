// As much of CUDA as tensor_cores.cu needs, on a CPU: a thread for each thread of a block, blocks one after the other. What
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
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Index { int x, y, z; };
static thread_local Index threadIdx, blockIdx;
static pthread_barrier_t block_barrier, warp_barriers[WARPS];

static inline int min(int a, int b) { return a < b ? a : b; }
static inline void __syncthreads() { pthread_barrier_wait(&block_barrier); }
static inline void __syncwarp() { pthread_barrier_wait(&warp_barriers[threadIdx.x / 32]); }
static inline float rsqrtf(float v) { return 1 / sqrtf(v); }
static inline float __uint_as_float(unsigned bits) { float v; memcpy(&v, &bits, 4); return v; }

//@ what stands for the kernel's instructions
static u32 first_operand[WARPS][32][4], second_operand[WARPS][32][2];

static float from_bf16(u32 bits) { return __uint_as_float((bits & 0xFFFF) << 16); }

static u16 narrow(float v) {
    u32 bits;
    memcpy(&bits, &v, 4);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// m16n8k16: row r and column k of the first operand are in lane 4 (r % 8) + (k % 8) / 2, register r / 8 + 2 (k / 8), half
// k % 2; those of the second, k and n, in lane 4 n + (k % 8) / 2, register k / 8.
static void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    memcpy(first_operand[warp][lane], a, sizeof a);
    memcpy(second_operand[warp][lane], b, sizeof b);
    pthread_barrier_wait(&warp_barriers[warp]);
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

static bool in_codes(const u8* at, int size);

static void read(const void* at, int size, u32* to) {
    if ((uintptr_t)at % size) abort();
    *to = 0;
    memcpy(to, at, size);
}

static Words stream(const u8* at) {
    Words r;
    if (!in_codes(at, sizeof r) || (uintptr_t)at % sizeof r) {
        fprintf(stderr, "codes are read where there are none\n");
        abort();
    }
    memcpy(&r, at, sizeof r);
    return r;
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

static float sum_of_warp(float v) {
    static float all[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    all[warp][lane] = v;
    pthread_barrier_wait(&warp_barriers[warp]);
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += all[warp][i];
    pthread_barrier_wait(&warp_barriers[warp]);
    return sum;
}

static void copy(u8* to, const void* from) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) abort();
    memcpy(to, from, 16);
}

static void wait_for_copies() { __syncwarp(); }

static float half_to_float(u16) { abort(); }
//@ the launch
struct Launch {
    u16 *x, *gain;
    Matrices* matrices;
    float epsilon;
    int m, width, groups, add, blocks, splits;
};

static const Launch* launch;
static Index current_block;

static bool in_codes(const u8* at, int size) {
    for (const Matrix& w : launch->matrices->at)
        if (at >= w.codes && at + size <= w.codes + (long)w.n * launch->width * BITS / 8) return true;
    return false;
}

static void* thread_of_block(void* index) {
    const Launch& l = *launch;
    threadIdx.x = (long)index;
    blockIdx = current_block;
    packed_linear(l.x, l.gain, l.epsilon, *l.matrices, l.m, l.width, l.groups, l.add);
    return 0;
}

extern "C" void run(const Launch* l) {
    launch = l;
    pthread_barrier_init(&block_barrier, 0, 32 * WARPS);
    for (int w = 0; w < WARPS; w++) pthread_barrier_init(&warp_barriers[w], 0, 32);
    pthread_t threads[32 * WARPS];
    for (current_block.y = 0; current_block.y < l->splits; current_block.y++)
        for (current_block.x = 0; current_block.x < l->blocks; current_block.x++) {
            for (long i = 0; i < 32 * WARPS; i++) pthread_create(&threads[i], 0, thread_of_block, (void*)i);
            for (int i = 0; i < 32 * WARPS; i++) pthread_join(threads[i], 0);
        }
}
