// Instructions that kernels for tensor cores share, for codes of BITS bits and numbers in bf16 (BF16) or fp16.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

// -- instructions
#if BF16
#define NARROW "bf16"
#else
#define NARROW "f16"
#endif

__device__ __forceinline__ void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." NARROW "." NARROW ".f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 bytes(u32 a, u32 b, u32 chosen) {
    u32 r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(chosen));
    return r;
}

// Two codes, from bit 0 and 16 on, in the mantissas of 2^7 (bf16, which has room for 7 bits) or 2^10 (fp16).
#if BITS == 2
#define MASK "0x00030003"
#elif BITS == 4
#define MASK "0x000F000F"
#elif BF16
#define MASK "0x007F007F"
#else
#define MASK "0x00FF00FF"
#endif
__device__ __forceinline__ u32 mantissas(u32 w) {
    u32 r;
#if BF16
    asm("lop3.b32 %0, %1, " MASK ", 0x43004300, 0xEA;" : "=r"(r) : "r"(w));
#else
    asm("lop3.b32 %0, %1, " MASK ", 0x64006400, 0xEA;" : "=r"(r) : "r"(w));
#endif
    return r;
}

// -2^8 in bf16 where bit 7 (and 23) is 0, -2^7 where it is 1.
__device__ __forceinline__ u32 by_highest_bit(u32 w) {
    u32 r;
    asm("lop3.b32 %0, %1, 0x00800080, 0xC380C380, 0x6A;" : "=r"(r) : "r"(w));
    return r;
}

// Two products of 16-bit floats.
__device__ __forceinline__ u32 times(u32 a, u32 b) {
    u32 r;
#if BF16
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000));
#else
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
    return r;
}

// The kernel behind this one may start now; what the one before wrote is there.
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ __forceinline__ float of_lane(float v, int differing) { return __shfl_xor_sync(0xFFFFFFFF, v, differing); }

__device__ __forceinline__ float at_lane(float v, int lane) { return __shfl_sync(0xFFFFFFFF, v, lane); }

__device__ __forceinline__ float sum_of_warp(float v) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(0xFFFFFFFF, v, lanes);
    return v;
}

// Two sums of 16-bit floats.
__device__ __forceinline__ u32 plus(u32 a, u32 b) {
    u32 r;
#if BF16
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3F803F80), "r"(b));
#else
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
    return r;
}

// 2, 4, 8 or 16 bytes of what no kernel writes, as words.
__device__ __forceinline__ void read(const void* at, int size, u32* to) {
    if (size == 16)
        asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(at));
    else if (size == 8)
        asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(at));
    else if (size == 4)
        asm("ld.global.nc.u32 %0, [%1];" : "=r"(to[0]) : "l"(at));
    else if (size == 2)
        asm("{.reg .u16 half;\n\tld.global.nc.u16 half, [%1];\n\tcvt.u32.u16 %0, half;}" : "=r"(to[0]) : "l"(at));
    else
        asm("ld.global.nc.u8 %0, [%1];" : "=r"(to[0]) : "l"(at));
}

__device__ __forceinline__ u16 narrow(float v) {
    u16 r;
    asm("cvt.rn." NARROW ".f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

__device__ __forceinline__ float half_to_float(u16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}

#if CLUSTER
// Blocks of a cluster say that they are here, and wait until all have said so; what they wrote to shared memory is seen then.
__device__ __forceinline__ void arrive_in_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// What stands at `at` in the shared memory of another block of the cluster, and to put a number there.
__device__ __forceinline__ float of_block(const float* at, u32 block) {
    float r;
    asm volatile("{.reg .u32 there;\n\tmapa.shared::cluster.u32 there, %1, %2;\n\tld.shared::cluster.f32 %0, [there];}"
                 : "=f"(r) : "r"((u32)__cvta_generic_to_shared(at)), "r"(block) : "memory");
    return r;
}

__device__ __forceinline__ void to_block(float* at, u32 block, float v) {
    asm volatile("{.reg .u32 there;\n\tmapa.shared::cluster.u32 there, %0, %1;\n\tst.shared::cluster.f32 [there], %2;}"
                 ::"r"((u32)__cvta_generic_to_shared(at)), "r"(block), "f"(v) : "memory");
}
#endif

// The largest, and the sum, of lanes that have the same place in a row of four.
__device__ __forceinline__ float largest_of_rows(float v) {
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFF, v, lanes));
    return v;
}

__device__ __forceinline__ float sum_of_rows(float v) {
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) v += __shfl_xor_sync(0xFFFFFFFF, v, lanes);
    return v;
}
// -- end of instructions

// All threads of the cluster, or of the block where that is alone, wait for each other.
__device__ __forceinline__ void wait_for_all() {
#if CLUSTER
    arrive_in_cluster();
    wait_for_cluster();
#else
    __syncthreads();
#endif
}

__device__ __forceinline__ float brain_to_float(u16 v) { return __uint_as_float((u32)v << 16); }

__device__ __forceinline__ float widened(u16 v) {
#if BF16
    return brain_to_float(v);
#else
    return half_to_float(v);
#endif
}

__device__ __forceinline__ float square(float v) { return v * v; }
