// What kernels of packed weights share: how codes become operands of tensor cores, and what x is multiplied by. Behind
// ../instructions.cu, with these definitions before it:
//   KIND      0: integers with a scale (and zero point) a group; 1: sixteen values times a scale a block
//   BITS      2, 4 or 8; tables have 4
//   BF16      1: x and y are bf16; 0: fp16
//   GROUP     columns that share a scale; 0: a row
//   SCALE     dtype of scales: 0 fp32, 1 fp16, 2 bf16, 3 codes of double quantization
//   ZERO, TWOS                    zero points; two's complement
//   WARPS     of a block
//   MATRICES  that are multiplied by the same x, one after the other in the grid

#define PER (32 / BITS)  // columns of a word
#if BITS == 2
#define HIGHEST_BITS 0xAAAAAAAA
#elif BITS == 4
#define HIGHEST_BITS 0x88888888
#else
#define HIGHEST_BITS 0x80808080
#endif

#if GROUP
#define GROUP_OF(column) ((column) / GROUP)
#else
#define GROUP_OF(column) 0
#endif

#if SCALE == 3
typedef u8 scale_t;
#elif SCALE == 0
typedef float scale_t;
#else
typedef u16 scale_t;
#endif

// What x is multiplied by, and what comes of it: rows, elements between tokens of `out`, and the first block.
struct Matrix {
    const u8* codes;
    const scale_t* scale;
    const u8* zero;
    const float *table, *second_table, *second_scale, *offset;
    const u16* bias;
    void* out;
    int n, stride, first;
};
struct Matrices { Matrix at[MATRICES]; };

// Two codes less their zero point: as mantissas they are too large by 2^7 or 2^10, which `base` takes off with the zero
// point. Where bf16 has no room for a code's highest bit, that says whether 2^7 or 2^8 is too much, which leaves code - 128,
// and `base` is 128 less the zero point.
__device__ __forceinline__ u32 centred(u32 w, u32 base) {
#if BF16 && BITS == 8
    const u32 around_zero = plus(mantissas(w), by_highest_bit(w));
    return ZERO ? plus(around_zero, base) : around_zero;
#else
    return plus(mantissas(w), base);
#endif
}

__device__ __forceinline__ u32 base_of(u32 zero) {
#if BF16 && BITS == 8
    return narrow(128.0f - (float)zero) * 0x00010001;
#else
    return ((BF16 ? 0xC300 : 0xE400) | zero) * 0x00010001;
#endif
}

__device__ __forceinline__ float as_float(scale_t s) {
#if SCALE == 1
    return half_to_float(s);
#elif SCALE == 2
    return brain_to_float(s);
#else
    return s;
#endif
}

#if KIND == 1
// Fill the table of byte → two values, once for each bank, `apart` words apart; a byte's high half is its first element.
__device__ __forceinline__ void fill(u32* pairs, const float* __restrict__ table, int apart) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u16 low[16];
#pragma unroll
    for (int i = 0; i < 16; i++) low[i] = narrow(table[i]);
#pragma unroll
    for (int h = 0; h < 16 / WARPS; h++) {
        const int high = warp * (16 / WARPS) + h;
        const u16 opening = narrow(table[high]);
#pragma unroll
        for (int i = 0; i < 16; i++) pairs[(high * 16 + i) * apart + lane] = opening | (u32)low[i] << 16;
    }
}

// The eight values of a word, as the table has them.
__device__ __forceinline__ void values_of(const u8* table, u32 w, u32* to) {
    const int lane = threadIdx.x % 32;
    to[0] = *(const u32*)(table + (w << 7 & 0x7F80 | 4 * lane));
    to[1] = *(const u32*)(table + (w >> 1 & 0x7F80 | 4 * lane));
    to[2] = *(const u32*)(table + (w >> 9 & 0x7F80 | 4 * lane));
    to[3] = *(const u32*)(table + (w >> 17 & 0x7F80 | 4 * lane));
}
#endif
