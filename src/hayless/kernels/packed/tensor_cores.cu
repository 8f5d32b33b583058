// y = Wx for 1 to 64 tokens and weights of 2, 4 or 8 bits, in tensor cores. Compiled at run time with ../instructions.cu,
// codes.cu and these definitions, which tensor_cores.py makes, before it:
//   SPAN      columns that the four lanes of a row read side by side, in 4, 8 or 16 bytes each
//   MIX       groups that a span holds, 1, 2 or 4 (see below)
//   BANDS, TILES, DEPTH           16 rows each, 8 / MIX tokens each, steps of a warp, which share columns, on their way
//   RUN       times 16 bytes of a row that a lane reads in a step
//   TOGETHER  1: the scales of a step are read at once, since every row has whole times as many
//   STAGED    1: a warp copies the x of a step to shared memory, `STAGE` bytes; 0: lanes read it where it lies
//   SHARED, DYNAMIC               bytes of shared memory; 1: asked for at launch
//   NORM      1: x is normalized first: x gain / rms(x)
//   GATED     1: of two matrices silu(y of the first) · y of the second is written; bands are halves of each
//   DIVISOR   a whole number, of which scales are too many times too large
//   SPLITS    parts of the columns among blocks
//   CLUSTER   1: those blocks are one cluster and add up there (sm_90); 0: each writes its sums in float32
//
// W is the first operand of mma.m16n8k16 and x the second. Which column stands at which k is free as long as both agree,
// so each lane takes the columns that lie side by side in memory: up to 16 bytes of a row, and no weight is moved.
//
// What such a load costs is its lines: lanes of eight rows touch eight, whether they take 16 bytes or fewer. So a span is
// as long as 16 bytes a lane make it even where groups are shorter. Lanes of one group must not be added to those of
// another then: the eight columns of the second operand are 8 / MIX tokens, once for each of the groups, with zeros for
// the lanes that have other groups. Each group's products are a column of their own, at no instruction more.

#define WORDS (SPAN * BITS / 128)  // that a lane reads of a row at a time

#define TABLE_BYTES (KIND == 1 ? 256 * 32 * 4 : 0)

struct Words { u32 w[WORDS]; };

// -- instructions
// What is read once: past the first cache, lines of 128 bytes in the second.
__device__ __forceinline__ Words stream(const u8* at) {
    Words r;
#if WORDS == 4
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(at));
#elif WORDS == 2
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(r.w[0]), "=r"(r.w[1]) : "l"(at));
#else
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(r.w[0]) : "l"(at));
#endif
    return r;
}

#if STAGED
// 16 bytes to shared memory while other instructions run; and until all of a warp's are there.
__device__ __forceinline__ void copy(u8* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
}
#endif
// -- end of instructions

// Codes as mantissas are too large by 2^7 and their zero point. In bf16 that can be taken off the sums instead, as so many
// times the sum of x, which one product by a constant gives for all rows of a span.
#define SHIFTED (KIND == 0 && BF16 && BITS < 8 && GROUP && !ZERO && TILES == 1)
#define TOO_MUCH (0x43004300 | (1 << (BITS - 1)) * 0x00010001)  // in bf16, below 2^8 a unit is a whole number

#define COLUMNS (RUN * 512 / BITS)  // of a step
#define PARTS (COLUMNS / SPAN)
#define ROWS (16 * BANDS)
#define WRITTEN (GATED ? ROWS / 2 : ROWS)
#define TOKENS (8 / MIX)  // of a tile
#define PITCH (ROWS + 4)  // four lanes of a row, 2 columns apart, then write to different banks

// Where the 16 bytes `chunk` of a token's x lie: so that what eight lanes read at once is in different banks.
#define CHUNKS (COLUMNS / 8)
#if BITS == 2
#define CHUNK_AT(token, chunk) ((token) * CHUNKS + ((chunk) ^ ((chunk) >> 3 & 3 | ((token) & 1) << 2)))
#elif BITS == 4
#define CHUNK_AT(token, chunk) ((token) * CHUNKS + ((chunk) ^ ((chunk) >> 3 & 1 | ((token) & 1) << 1)))
#else
#define CHUNK_AT(token, chunk) ((token) * CHUNKS + ((chunk) ^ (token) & 1))
#endif

#if CLUSTER
#define ONE_CLUSTER __cluster_dims__(1, SPLITS, 1)
#else
#define ONE_CLUSTER
#endif

// Scales and zero points of a step, as they lie side by side or one by one.
#if TOGETHER
#define AT_ONCE (COLUMNS / GROUP)
#else
#define AT_ONCE 1
#endif
#define LOADS (TOGETHER || !GROUP ? 1 : PARTS)
#define WORDS_OF(type) ((AT_ONCE * (int)sizeof(type) + 3) / 4)

// One of what `read` has read at once: that of a part and, within a span, of a group.
template <typename T>
__device__ __forceinline__ T one_of(const u32* words, int part, int mix) {
    if (!TOGETHER) return *(const T*)words;
    const int span = MIX * (int)sizeof(T), first = part * span / 4;
    u32 word = words[first];
#pragma unroll
    for (int k = 1; k < span / 4; k++)
        if (mix * (int)sizeof(T) / 4 == k) word = words[first + k];
    word >>= 8 * ((part * MIX + mix) * (int)sizeof(T) % 4);
    return *(const T*)&word;
}

#if STAGED
// As many numbers of x as a word has codes, from the `first` of a step.
__device__ __forceinline__ void staged(const u8* stage, u32 token, u32 first, u32* to) {
#if PER == 4
    *(uint2*)to = *(const uint2*)(stage + 16 * CHUNK_AT(token, first / 8) + 2 * (first % 8));
#else
#pragma unroll
    for (int k = 0; k < PER / 8; k++) ((uint4*)to)[k] = *(const uint4*)(stage + 16 * CHUNK_AT(token, first / 8 + k));
#endif
}
#endif

// As many 16-bit numbers as a word has codes.
__device__ __forceinline__ void columns_of(const u16* __restrict__ numbers, u32 first, u32* to) {
#if PER == 4
    *(uint2*)to = *(const uint2*)(numbers + first);
#else
#pragma unroll
    for (int k = 0; k < PER / 8; k++) ((uint4*)to)[k] = ((const uint4*)(numbers + first))[k];
#endif
}

extern "C" __global__ void ONE_CLUSTER __launch_bounds__(WARPS * 32) packed_linear(
    const u16* __restrict__ x, const u16* __restrict__ gain, float epsilon, const Matrices matrices, int m, int width,
    int groups, int add) {
    int which = 0;
#pragma unroll
    for (int i = 1; i < MATRICES; i++) which += !GATED && blockIdx.x >= matrices.at[i].first;
    const auto of = [&](int band) -> const Matrix& { return matrices.at[GATED ? band / (BANDS / 2) : which]; };
    const Matrix& w = of(0);
    const int n = w.n;
    // The table of byte → two values, once for each bank, and each warp's x; later the sums of the warps.
#if DYNAMIC
    extern __shared__ __align__(16) u8 shared[];
#else
    __shared__ __align__(16) u8 shared[SHARED];
#endif
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int first_row = (blockIdx.x - (GATED ? 0 : w.first)) * WRITTEN;
    // Which of a span's groups this lane's columns, and its sums, are of, and the group that its x is for.
    const int mix = t / (4 / MIX);
    const bool mine = mix == g / TOKENS;

#if SCALE == 3
    __shared__ float seconds[MATRICES][256];
#endif
#if NORM
    __shared__ float squares[WARPS][TILES * TOKENS];
#endif

    float total[BANDS][TILES][4] = {};
    const int steps = (width + COLUMNS - 1) / COLUMNS, each = (steps + SPLITS - 1) / SPLITS;
    const int last = min(steps, (int)(blockIdx.y + 1) * each);
    // Offsets from the first byte, scale and token, in 32 bits, which the device adds to an address as it loads.
    u32 codes_at[BANDS][2], scales_at[BANDS][2], x_at[TILES];
#pragma unroll
    for (int b = 0; b < BANDS; b++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 row = min(first_row + 16 * b % WRITTEN + 8 * h + g, n - 1);
            codes_at[b][h] = row * (u32)(width * BITS / 8) + t * (SPAN / 4) * BITS / 8;
            scales_at[b][h] = row * (u32)groups;
        }
#pragma unroll
    for (int j = 0; j < TILES; j++) x_at[j] = min(TOKENS * j + g % TOKENS, m - 1) * (u32)width + t * (SPAN / 4);

    Words words[DEPTH][PARTS][BANDS][2];
    u32 scales[DEPTH][LOADS][BANDS][2][WORDS_OF(scale_t)];
#if ZERO
    u32 zeros[DEPTH][LOADS][BANDS][2][WORDS_OF(u8)];
#endif
    const auto load_scales = [&](int d, int l, int column) {
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 at = scales_at[b][h] + GROUP_OF(column) + (TOGETHER ? 0 : mix);
                read(of(b).scale + at, AT_ONCE * sizeof(scale_t), scales[d][l][b][h]);
#if ZERO
                read(of(b).zero + at, AT_ONCE, zeros[d][l][b][h]);
#endif
            }
    };
#if STAGED
    u8* const stage = shared + TABLE_BYTES + warp * STAGE;
    const auto copy_x = [&](int step) {
        __syncwarp();  // all have read the last step's
        if (step >= last) return;
#pragma unroll
        for (u32 k = 0; k < TILES * TOKENS * CHUNKS / 32; k++) {
            // Without a sign, for powers of 2 are shifts then.
            const u32 i = lane + 32 * k, token = i / CHUNKS, chunk = i % CHUNKS, column = step * COLUMNS + 8 * chunk;
            if (column < width)
                copy(stage + 16 * CHUNK_AT(token, chunk), x + (min((int)token, m - 1) * (u32)width + column));
        }
    };
#endif
    const auto load = [&](int d, int step) {
#if STAGED
        copy_x(step);
#endif
        if (TOGETHER && step < last) load_scales(d, 0, step * COLUMNS);
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int column = step * COLUMNS + p * SPAN;
            if (step >= last || column >= width) continue;
#pragma unroll
            for (int b = 0; b < BANDS; b++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    words[d][p][b][h] = stream(of(b).codes + (codes_at[b][h] + (u32)column * BITS / 8));
            if (GROUP && !TOGETHER) load_scales(d, p % LOADS, column);
        }
    };
    const auto factor = [&](int d, int l, int b, int h, int p, int column) -> float {
        const scale_t s = one_of<scale_t>(scales[d][l][b][h], p, mix);
#if SCALE < 3
        return as_float(s);
#else
        const u32 block = scales_at[b][h] + GROUP_OF(column) + mix;
        return seconds[GATED ? b / (BANDS / 2) : 0][s] * of(b).second_scale[block / 256] + of(b).offset[0];
#endif
    };
    const auto multiply = [&](int d, int step) {
#if STAGED
        wait_for_copies();
#endif
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int column = step * COLUMNS + p * SPAN;
            if (step >= last || column >= width) continue;
            const int l = p % LOADS, of = GROUP ? d : 0;
#if GROUP
            float sums[BANDS][TILES][4] = {};
#else
            auto& sums = total;
#endif
#if SHIFTED
            float too_much[TILES][4] = {};
#endif
            u32 base[BANDS][2];
#pragma unroll
            for (int b = 0; b < BANDS; b++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
#if SHIFTED
                    base[b][h] = 0;
#elif ZERO
                    base[b][h] = base_of(one_of<u8>(zeros[of][l][b][h], p, mix));
#else
                    base[b][h] = base_of(1 << (BITS - 1));
#endif
                }
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                u32 q[TILES][PER / 2];
#pragma unroll
                for (int j = 0; j < TILES; j++) {
                    u32 v[PER / 2] = {};
                    if (mine) {
#if STAGED
                        const u32 token = TOKENS * j + (u32)g % TOKENS, first = p * SPAN + t * (SPAN / 4) + PER * i;
                        staged(stage, token, first, v);
#else
                        columns_of(x, x_at[j] + column + PER * i, v);
#endif
#if NORM
                        u32 by[PER / 2];
                        columns_of(gain, t * (SPAN / 4) + column + PER * i, by);
#pragma unroll
                        for (int k = 0; k < PER / 2; k++) v[k] = times(v[k], by[k]);
#endif
                    }
#pragma unroll
                    for (int k = 0; k < PER / 2; k++)
#if KIND == 1
                        q[j][k] = v[k];
#else
                        q[j][k] = bytes(v[k / 2], v[k / 2 + PER / 4], k % 2 ? 0x7632 : 0x5410);
#endif
                }
#if SHIFTED
#pragma unroll
                for (int j = 0; j < TILES; j++)
#pragma unroll
                    for (int k = 0; k < PER / 2; k += 2)
                        mma(too_much[j], TOO_MUCH, TOO_MUCH, TOO_MUCH, TOO_MUCH, q[j][k], q[j][k + 1]);
#endif
#pragma unroll
                for (int b = 0; b < BANDS; b++) {
                    u32 a[2][PER / 2];
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        u32 w = words[d][p][b][h].w[i];
#if KIND == 1
                        values_of(shared, w, a[h]);
#else
#if TWOS
                        w ^= HIGHEST_BITS;
#endif
#pragma unroll
                        for (int k = 0; k < PER / 2; k++)
                            a[h][k] = SHIFTED ? mantissas(w >> BITS * k) : centred(w >> BITS * k, base[b][h]);
#endif
                    }
#pragma unroll
                    for (int j = 0; j < TILES; j++)
#pragma unroll
                        for (int k = 0; k < PER / 2; k += 2)
                            mma(sums[b][j], a[0][k], a[1][k], a[0][k + 1], a[1][k + 1], q[j][k], q[j][k + 1]);
                }
            }
#if GROUP
#pragma unroll
            for (int b = 0; b < BANDS; b++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float f = factor(d, l, b, h, p, column);
#pragma unroll
                    for (int j = 0; j < TILES; j++)
#pragma unroll
                        for (int c = 2 * h; c < 2 * h + 2; c++)
#if SHIFTED
                            total[b][j][c] += (sums[b][j][c] - too_much[j][c]) * f;
#else
                            total[b][j][c] += sums[b][j][c] * f;
#endif
                }
#endif
        }
    };

    // A warp's steps, each loaded DEPTH - 1 steps before it is multiplied.
    const int first = blockIdx.y * each + warp;
    if (!GROUP) load_scales(0, 0, 0);
#pragma unroll
    for (int d = 0; d < DEPTH - 1; d++) load(d, first + d * WARPS);
    // While those are on their way, the tables.
#if KIND == 1
    fill((u32*)shared, w.table, 32);
#if SCALE == 3
    for (int i = threadIdx.x; i < 256 * (GATED ? 2 : 1); i += WARPS * 32)
        seconds[i / 256][i % 256] = (GATED ? matrices.at[i / 256] : w).second_table[i % 256];
#endif
    __syncthreads();
#endif
#if NORM
    for (int token = 0; token < m; token++) {
        float sum = 0;
        for (int i = 8 * threadIdx.x; i < width; i += 8 * WARPS * 32) {
            u32 v[4];
            *(uint4*)v = *(const uint4*)(x + token * (u32)width + i);
#pragma unroll
            for (int k = 0; k < 4; k++) sum += square(widened(v[k] & 0xFFFF)) + square(widened(v[k] >> 16));
        }
        sum = sum_of_warp(sum);
        if (lane == 0) squares[warp][token] = sum;
    }
#endif
    for (int step = first; step < last; step += WARPS * DEPTH)
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            load((d + DEPTH - 1) % DEPTH, step + (d + DEPTH - 1) * WARPS);
            multiply(d, step + d * WARPS);
        }

    const auto store = [&](float y, int token, int row) {
        u16* at = (u16*)w.out + (size_t)token * w.stride + row;
        if (add) y += widened(*at);
        *at = narrow(y);
    };
    // The warps' sums, in their order, and of each those of the groups.
    float* all = (float*)shared;
    __syncthreads();
#pragma unroll
    for (int b = 0; b < BANDS; b++)
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float y = total[b][j][c];
#if !GROUP
                y *= factor(0, 0, b, c / 2, 0, 0);
#endif
                all[((warp * TILES + j) * 8 + 2 * t + c % 2) * PITCH + 16 * b + 8 * (c / 2) + g] = y;
            }
    __syncthreads();
    const auto sum_at = [&](int token, int row) { return all + (token / TOKENS * 8 + token % TOKENS) * PITCH + row; };
    for (int i = threadIdx.x; i < ROWS * TILES * TOKENS; i += WARPS * 32) {
        const int token = i / ROWS, row = first_row + i % ROWS % WRITTEN;
        if (token >= m || row >= n) continue;
        float* sum = sum_at(token, i % ROWS);
        float y = 0;
#pragma unroll
        for (int v = 0; v < WARPS; v++)
#pragma unroll
            for (int k = 0; k < MIX; k++) y += sum[(v * TILES * 8 + k * TOKENS) * PITCH];
        y *= 1.0f / DIVISOR;
#if NORM
        float all_squares = 0;
#pragma unroll
        for (int v = 0; v < WARPS; v++) all_squares += squares[v][token];
        y *= rsqrtf(all_squares / width + epsilon);
#endif
#if SPLITS > 1 && !CLUSTER
        ((float*)w.out)[((size_t)blockIdx.y * m + token) * n + row] = y;
#else
        *sum = y;
#endif
    }
    wait_for_all();
#if CLUSTER || SPLITS == 1
    // Of a cluster, the blocks' sums in their order, each block a part of them.
    const auto result = [&](int token, int row) {
        float* const at = sum_at(token, row);
#if CLUSTER
        float y = 0;
#pragma unroll
        for (int s = 0; s < SPLITS; s++) y += of_block(at, s);
#else
        float y = *at;
#endif
        const u16* const bias = of(row / 16).bias;
        return bias ? y + widened(bias[first_row + row % WRITTEN]) : y;
    };
    for (int i = threadIdx.x + blockIdx.y * WARPS * 32; i < WRITTEN * TILES * TOKENS; i += SPLITS * WARPS * 32) {
        const int token = i / WRITTEN, row = first_row + i % WRITTEN;
        if (token >= m || row >= n) continue;
        float y = result(token, i % WRITTEN);
#if GATED
        y = y / (1 + expf(-y)) * result(token, WRITTEN + i % WRITTEN);
#endif
        store(y, token, row);
    }
#endif
#if CLUSTER
    wait_for_all();  // a block's shared memory goes with it
#endif
}
