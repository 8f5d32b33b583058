// Weights on their way to kernels that keep memory at work (streamed*.cu): each warp copies what it will
// multiply next into a ring of its own in shared memory. Behind codes.cu and tiles.cu, with these definitions before it:
//   WIDTH     columns
//   MIX       sums of a part, of columns that share a scale
//   RUN       parts of a row, side by side, that a warp multiplies in a step
//   STAGES    steps of each warp that are on their way
//   SCALES    bytes of a row's scales that come with a step

#define SPAN (512 / BITS)      // columns of a part, of which each of the four lanes of a row copies 16 bytes
#define UNIT (SPAN / MIX)
#define STEPS (WIDTH / (SPAN * RUN))
#define LANES_ROWS ((ROWS + 31) / 32)  // that each lane copies the scales of
#define PART_BYTES (BANDS * 1024)
#define STAGE (RUN * PART_BYTES + ROWS * SCALES)
#define GROUPS (GROUP ? WIDTH / GROUP : 1)
// Which of a step's scales is that of a sum.
#if GROUP
#define SCALE_AT(part, mix) (GROUP < RUN * SPAN ? ((part) * SPAN + (mix) * UNIT) / GROUP : 0)
#endif

// -- instructions
// 4, 8 or 16 bytes to shared memory while other instructions run; lines of 128 bytes in the second cache.
template <int SIZE>
__device__ __forceinline__ void copy(u8* to, const void* from) {
    const u32 there = (u32)__cvta_generic_to_shared(to);
    if (SIZE == 16) asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(there), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(there), "l"(from), "n"(SIZE) : "memory");
}

// The copies since the last mark; and until all but those of the last STAGES - 1 marks are there.
__device__ __forceinline__ void mark() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_oldest() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory"); }

// c += codes, which have no sign, times digits, which have one.
__device__ __forceinline__ void mma_of_codes(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ int rounded(float v) { return __float2int_rn(v); }
// -- end of instructions

struct Ring {
    const Matrices& matrices;
    const int tiles, apart;         // in all, and from one to the next of this warp
    const int first, end, stride;   // steps of a row that warps share, of which each takes every so many
    const int place;                // where a lane's 16 bytes go, of 512
    const int own;                  // the warp's first step
    int tile, step;                 // that are copied next
    const u8 *codes[BANDS][2], *scales[LANES_ROWS];

    __device__ __forceinline__ void aim() {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const Matrix& w = matrix_of(matrices, tile, 16 * b + 8 * h);
                const int row = min(row_of(w, tile, 16 * b + 8 * h + g), w.n - 1);
                codes[b][h] = w.codes + (size_t)row * (WIDTH * BITS / 8) + 16 * t;
            }
#if GROUP
#pragma unroll
        for (int i = 0; i < LANES_ROWS; i++) {
            const int r = (lane + 32 * i) % ROWS;
            const Matrix& w = matrix_of(matrices, tile, r);
            scales[i] = (const u8*)(w.scale + (size_t)min(row_of(w, tile, r), w.n - 1) * GROUPS);
        }
#endif
    }

    __device__ __forceinline__ void copy_next(u8* stage) {
        const int lane = threadIdx.x % 32;
        if (tile < tiles) {
            if (step < end) {
#pragma unroll
                for (int b = 0; b < BANDS; b++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const u8* const from = codes[b][h] + step * (RUN * 64);
#pragma unroll
                        for (int u = 0; u < RUN; u++)
                            copy<16>(stage + u * PART_BYTES + (2 * b + h) * 512 + place, from + 64 * u);
                    }
#if GROUP
                const int at = GROUP_OF(step * (RUN * SPAN)) * (int)sizeof(scale_t) & ~3;
#pragma unroll
                for (int i = 0; i < LANES_ROWS; i++) {
                    const int r = lane + 32 * i;
                    if (r < ROWS) copy<SCALES>(stage + RUN * PART_BYTES + SCALES * r, scales[i] + at);
                }
#endif
            }
            if ((step += stride) >= first + each()) {
                step = own;
                tile += apart;
                if (tile < tiles) aim();
            }
        }
        mark();
    }

    // Steps of a row that warps take in turn: as many for each, of which some may be beyond the end.
    __device__ __forceinline__ int each() const { return (end - first + stride - 1) / stride * stride; }

    __device__ __forceinline__ void fill(u8* stages) {
        if (tile < tiles) aim();
        for (int s = 0; s < STAGES; s++) copy_next(stages + s * STAGE);
    }
};

#if SCALE == 3
// What scales' codes stand for, of each matrix.
__device__ __forceinline__ void fill(float (*seconds)[256], const Matrices& matrices) {
    for (int i = threadIdx.x; i < 256 * MATRICES; i += WARPS * 32)
        seconds[i / 256][i % 256] = matrices.at[i / 256].second_table[i % 256];
}
#endif

// The scale of a sum of a step's part, of a row of a tile: `stage` has what was copied, `group` is the first of the step.
__device__ __forceinline__ float scale_of(
    const u8* stage, int row, int part, int mix, int group, const Matrices& matrices, int tile, const float (*seconds)[256]) {
#if GROUP
    const int shift = SCALE_AT(RUN, 0) * (int)sizeof(scale_t) < 4 ? group * (int)sizeof(scale_t) & 3 : 0;
    const scale_t s = ((const scale_t*)(stage + RUN * PART_BYTES + SCALES * row + shift))[SCALE_AT(part, mix)];
#if SCALE == 3
    const Matrix& w = matrix_of(matrices, tile, row);
    const u32 block = (u32)min(row_of(w, tile, row), w.n - 1) * GROUPS + group + SCALE_AT(part, mix);
    return seconds[&w - matrices.at][s] * w.second_scale[block / 256] + w.offset[0];
#else
    return as_float(s);
#endif
#else
    return 1;
#endif
}
