// y = Wx for 9 to 16 tokens and weights of 4 or 8 bits, in tensor cores, with W always on its way. Compiled at run time with
// ../instructions.cu, codes.cu, tiles.cu, ring.cu and these definitions, which streamed_rows.py makes, before it:
//   SPLITS    parts of the columns, each of a block
//   NORM      1: x is normalized: x gain here, and the squares of each part of x, for streamed_sums.cu
//   OVERLAP   1: it may be started while the kernel before still runs, which makes x (programmatic dependent launch)
//
// As streamed_few.cu, but for who has what: of 16 tokens and 4096 columns x is 128 kB, which leaves no room for weights on
// their way. Here blocks have a part of the columns, and warps have rows of their own, so that they have nothing to tell
// each other once x is there. What parts give is added up by the kernel behind this one (streamed_sums.cu).

#define TOKENS 16
#define TILES (TOKENS / 8)
#define CHUNKS (UNIT / 32)                          // times 8 columns of a unit that a lane multiplies
#define MOST_STEPS ((STEPS + SPLITS - 1) / SPLITS)  // of a block
#define X_PITCH (MOST_STEPS * SPAN * 2 + 16)        // bytes of a token; so that those of 8 are in different banks
#define TABLE_BYTES (KIND == 1 ? 256 * 32 * 4 : 0)

extern "C" __global__ void __launch_bounds__(WARPS * 32) packed_stream_rows(
    const u16* x, const u16* __restrict__ gain, const Matrices matrices, int tiles, int m, float* sums, float* squares) {
    extern __shared__ __align__(16) u8 shared[];
    u8* const ring = shared + TABLE_BYTES + threadIdx.x / 32 * (STAGES * STAGE);
    u8* const xs = shared + TABLE_BYTES + WARPS * STAGES * STAGE;
#if SCALE == 3
    __shared__ float seconds[MATRICES][256];
#else
    const float(*seconds)[256] = 0;
#endif
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int part = blockIdx.x % SPLITS, first = STEPS * part / SPLITS, end = STEPS * (part + 1) / SPLITS;
    // Of a part's blocks, each has a tile before any has a second one.
    const int block = blockIdx.x / SPLITS, blocks = gridDim.x / SPLITS, first_tile = block + blocks * warp;
#if OVERLAP
    let_next_start();
#endif
    // 32 bytes of a row that have one scale, 8 for each lane: rows of a unit lie one after the other.
    const int place = t / 2 * 256 + g * 32 + t % 2 * 16, here = g * 32 + t * 8;
    Ring next{matrices, tiles, blocks * WARPS, first, end, 1, place, first, first_tile, first};
    next.fill(ring);

    // While those are on their way, the tables, and x, as codes are taken out of a word: every (PER / 2)th column makes a pair.
#if KIND == 1
    fill((u32*)shared, matrices.at[0].table, 32);
#endif
#if SCALE == 3
    fill(seconds, matrices);
#endif
#if OVERLAP
    wait_for_previous();
#endif
    for (int token = warp; token < TOKENS; token += WARPS) {
        const u16* const row = x + (size_t)min(token, m - 1) * WIDTH + first * SPAN;
#if NORM
        float square_sum = 0;
#endif
#pragma unroll 4
        for (int chunk = lane; chunk < (end - first) * (SPAN / 8); chunk += 32) {
            const uint4 read = *(const uint4*)(row + 8 * chunk);
            u32 v[4] = {read.x, read.y, read.z, read.w}, q[4];
#if NORM
            const uint4 gains = *(const uint4*)(gain + first * SPAN + 8 * chunk);
            const u32 by[4] = {gains.x, gains.y, gains.z, gains.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                square_sum += square(widened(v[k] & 0xFFFF)) + square(widened(v[k] >> 16));
                v[k] = times(v[k], by[k]);
            }
#endif
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int word = k / (PER / 2) * (PER / 2), within = k % (PER / 2);
                q[k] = KIND == 1 ? v[k]
                                 : bytes(v[word + within / 2], v[word + within / 2 + PER / 4], within % 2 ? 0x7632 : 0x5410);
            }
            *(uint4*)(xs + token * X_PITCH + 16 * chunk) = *(uint4*)q;
        }
#if NORM
        square_sum = sum_of_warp(square_sum);
        if (lane == 0 && block == 0) squares[part * TOKENS + token] = square_sum;
#endif
    }
    __syncthreads();

    float total[BANDS][TILES][4];
    const auto multiply = [&](const u8* stage, int tile, int step) {
        const u8* const x_at = xs + g * X_PITCH + ((step - first) * SPAN + t * (UNIT / 4)) * 2;
#pragma unroll
        for (int mix = 0; mix < MIX; mix++) {
            u32 q[TILES][CHUNKS][4];
#pragma unroll
            for (int j = 0; j < TILES; j++)
#pragma unroll
                for (int c = 0; c < CHUNKS; c++)
                    *(uint4*)q[j][c] = *(const uint4*)(x_at + 8 * j * X_PITCH + mix * UNIT * 2 + 16 * c);
#pragma unroll
            for (int b = 0; b < BANDS; b++) {
                u32 w[2][2];
#pragma unroll
                for (int h = 0; h < 2; h++)
                    *(uint2*)w[h] = *(const uint2*)(stage + (2 * b + h) * 512 + mix * 256 + here);
#if GROUP
                float y[TILES][4] = {};
#else
                auto& y = total[b];
#endif
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 a[2][PER / 2];
#pragma unroll
                    for (int h = 0; h < 2; h++) {
#if KIND == 1
                        values_of(shared, w[h][i], a[h]);
#else
                        const u32 word = TWOS ? w[h][i] ^ HIGHEST_BITS : w[h][i];
#pragma unroll
                        for (int k = 0; k < PER / 2; k++)
                            a[h][k] = centred(word >> BITS * k, base_of(1 << (BITS - 1)));
#endif
                    }
#pragma unroll
                    for (int k = 0; k < PER / 2; k += 2)
#pragma unroll
                        for (int j = 0; j < TILES; j++) {
                            const int at = i * (PER / 2) + k;
                            const u32* const by = &q[j][at / 4][at % 4];
                            mma(y[j], a[0][k], a[1][k], a[0][k + 1], a[1][k + 1], by[0], by[1]);
                        }
                }
#if GROUP
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int row = 16 * b + 8 * h + g, group = GROUP_OF(step * SPAN);
                    const float f = scale_of(stage, row, 0, mix, group, matrices, tile, seconds);
#pragma unroll
                    for (int j = 0; j < TILES; j++)
#pragma unroll
                        for (int c = 2 * h; c < 2 * h + 2; c++) total[b][j][c] += y[j][c] * f;
                }
#endif
            }
        }
    };

    u8 *stage = ring, *const ring_end = ring + STAGES * STAGE;
    for (int tile = first_tile; tile < tiles; tile += next.apart) {
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int j = 0; j < TILES; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) total[b][j][c] = 0;
        for (int step = first; step < end; step++) {
            wait_for_oldest();
            __syncwarp();
            multiply(stage, tile, step);
            __syncwarp();
            next.copy_next(stage);
            if ((stage += STAGE) == ring_end) stage = ring;
        }
        float* const to = sums + (size_t)part * TOKENS * tiles * ROWS + tile * ROWS + g;
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int j = 0; j < TILES; j++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    to[(size_t)(8 * j + 2 * t + c % 2) * tiles * ROWS + 16 * b + 8 * (c / 2)] = total[b][j][c];
    }
}
