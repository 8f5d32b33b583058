// y = Wx for 9 to 16 tokens and weights of 4 or 8 bits, in tensor cores, with W always on its way. Compiled at run time with
// ../instructions.cu, codes.cu, tiles.cu, ring.cu, several.cu and these definitions, which streamed_rows.py makes, before it:
//   NORM      1: x is normalized: x gain here, and the squares of each part of x, for streamed_sums.cu
//   OVERLAP   1: it may be started while the kernel before still runs, which makes x (programmatic dependent launch)
//
// As streamed_few.cu, but for who has what: of 16 tokens and 4096 columns x is 128 kB, which leaves no room for weights on
// their way. Here blocks have a part of the columns, and warps have rows of their own, so that they have nothing to tell
// each other once x is there. What parts give is added up by the kernel behind this one (streamed_sums.cu).

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
    Ring next{matrices, tiles, blocks * WARPS, first, end, 1, place_of_copy(), first, first_tile, first};
    next.fill(ring);

    // While those are on their way, the tables, and x.
#if KIND == 1
    fill((u32*)shared, matrices.at[0].table, 32);
#endif
#if SCALE == 3
    fill(seconds, matrices);
#endif
#if OVERLAP
    wait_for_previous();
#endif
    prepare_all(xs, x, gain, first, end, m, squares + part * TOKENS);
    __syncthreads();

    u8 *stage = ring, *const ring_end = ring + STAGES * STAGE;
    for (int tile = first_tile; tile < tiles; tile += next.apart) {
        float total[BANDS][TILES][4];
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int j = 0; j < TILES; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) total[b][j][c] = 0;
        for (int step = first; step < end; step++) {
            wait_for_oldest();
            __syncwarp();
            multiply(total, stage, xs + (step - first) * SPAN * 2, shared, step, matrices, tile, seconds);
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
