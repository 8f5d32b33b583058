// y = Wx for 2 to 8 tokens and weights of 4 or 8 bits, in tensor cores, with W always on its way. Compiled at run time with
// ../instructions.cu, codes.cu, tiles.cu, ring.cu, several.cu and these definitions, which streamed.py makes, before it:
//   DIVISOR   a whole number, of which scales are too many times too large
//   CLUSTER   1: as many blocks as parts of the columns are a cluster, since there are several
//   NORM      1: x is normalized first: x gain / rms(x)
//   OVERLAP   1: it may be started while the kernel before still runs, which makes x (programmatic dependent launch)
//
// As streamed.cu, but for x: of 8 tokens and 4096 columns it is 64 kB, which a block that multiplied a few rows would read
// for each of them, several times what W has. Here blocks have their columns of x in shared memory from the beginning on,
// and multiply these columns of tile after tile. What blocks of a cluster add up goes to one of them, each tile's to the
// next one, which writes it while the next tile is multiplied.

#define PITCH (ROWS + 4)                                          // of sums: what lanes of a row write is in different banks
#define OUTPUTS ((ROWS * TOKENS + WARPS * 32 - 1) / (WARPS * 32))  // of a thread

#if CLUSTER
#define ONE_CLUSTER __cluster_dims__(SPLITS, 1, 1)
#else
#define ONE_CLUSTER
#endif

// What a thread writes of a tile: where among the sums, and where to.
struct Output { bool there; int at, token, row; const Matrix& w; u16* out; };
// What goes with it, and with the second matrix.
struct Late { float scale, bias, second_scale, second_bias, before; };

extern "C" __global__ void ONE_CLUSTER __launch_bounds__(WARPS * 32) packed_stream_few(
    const u16* x, const u16* __restrict__ gain, float epsilon, const Matrices matrices, int tiles, int add, int m) {
    extern __shared__ __align__(16) u8 shared[];
    u8* const ring = shared + TABLE_BYTES + threadIdx.x / 32 * (STAGES * STAGE);
    u8* const xs = shared + TABLE_BYTES + WARPS * STAGES * STAGE;
    float* const sums = (float*)(xs + TOKENS * X_PITCH);
    float* const slots = sums + WARPS * TOKENS * PITCH;  // of two tiles, of each block of the cluster
    float* const squares = slots + 2 * SPLITS * TOKENS * ROWS;
    float* const inverse = squares + TOKENS;
    float(*const seconds)[256] = (float(*)[256])(inverse + TOKENS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int rank = blockIdx.x % SPLITS, first = STEPS * rank / SPLITS, end = STEPS * (rank + 1) / SPLITS;
#if OVERLAP
    let_next_start();
#endif
    const int first_tile = blockIdx.x / SPLITS, clusters = gridDim.x / SPLITS;
    Ring next{matrices, tiles, clusters, first, end, WARPS, place_of_copy(), first + warp, first_tile, first + warp};
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
    prepare_all(xs, x, gain, first, end, m, squares);
    __syncthreads();
#if NORM
#if CLUSTER
    wait_for_all();
#endif
    if (threadIdx.x < TOKENS) {
#if CLUSTER
        float all = 0;
#pragma unroll
        for (int s = 0; s < SPLITS; s++) all += of_block(squares + threadIdx.x, s);
#else
        const float all = squares[threadIdx.x];
#endif
        inverse[threadIdx.x] = rsqrtf(all / WIDTH + epsilon);
    }
#endif

    Late late[OUTPUTS];  // of the tile that is written next
    const auto scale_of_row = [&](const Matrix& w, int row) {
        return (GROUP ? 1.0f : as_float(w.scale[row])) / DIVISOR;
    };
    const auto output = [&](int k, int tile) -> Output {
        const int at = threadIdx.x + k * WARPS * 32, token = at / ROWS, r = at % ROWS;
        const Matrix& w = matrix_of(matrices, tile, r);
        const int row = row_of(w, tile, r);
        const bool there = at < ROWS * TOKENS && token < m && row < w.n && !(GATED && r / 8 % 2);
        return {there, at, token, row, w, (u16*)w.out + (size_t)token * w.stride + row};
    };
    const auto read_late = [&](int tile) {
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            const Output o = output(k, tile);
            if (!o.there) continue;
            late[k] = {scale_of_row(o.w, o.row), o.w.bias ? widened(o.w.bias[o.row]) : 0, 0, 0, add ? widened(*o.out) : 0};
#if GATED
            const Matrix& second = matrices.at[1];
            late[k].second_scale = scale_of_row(second, o.row);
            late[k].second_bias = second.bias ? widened(second.bias[o.row]) : 0;
#endif
        }
    };
    const auto write = [&](int tile, int turn) {
        const float* const all = slots + turn % 2 * (SPLITS * TOKENS * ROWS);
        const auto sum = [&](int at) {
            float y = 0;
#pragma unroll
            for (int s = 0; s < SPLITS; s++) y += all[s * (TOKENS * ROWS) + at];
            return y;
        };
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            const Output o = output(k, tile);
            if (!o.there) continue;
            const float by = NORM ? inverse[o.token] : 1;
            float y = sum(o.at) * late[k].scale * by + late[k].bias;
#if GATED
            y = y / (1 + expf(-y)) * (sum(o.at + 8) * late[k].second_scale * by + late[k].second_bias);
#endif
            *o.out = narrow(y + late[k].before);
        }
    };
    // The tile of the turn before is complete.
    const auto write_last = [&](int tile, int turn) {
#if CLUSTER
        wait_for_cluster();
#endif
        if (turn % SPLITS == rank) write(tile, turn);
    };

    u8 *stage = ring, *const ring_end = ring + STAGES * STAGE;
    int turn = 0;
    for (int tile = first_tile; tile < tiles; tile += next.apart, turn++) {
        float total[BANDS][TILES][4];
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int c = 0; c < 4; c++) total[b][0][c] = 0;
        for (int step = first + warp; step < first + next.each(); step += WARPS) {
            wait_for_oldest();
            __syncwarp();
            if (step < end)
                multiply(total, stage, xs + (step - first) * SPAN * 2, shared, step, matrices, tile, seconds);
            __syncwarp();
            next.copy_next(stage);
            if ((stage += STAGE) == ring_end) stage = ring;
        }
        // The warps' sums, in their order.
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                sums[(warp * TOKENS + 2 * t + c % 2) * PITCH + 16 * b + 8 * (c / 2) + g] = total[b][0][c];
        __syncthreads();
        float own[OUTPUTS] = {};
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            const int at = threadIdx.x + k * WARPS * 32;
            if (at < ROWS * TOKENS)
#pragma unroll
                for (int v = 0; v < WARPS; v++) own[k] += sums[(v * TOKENS + at / ROWS) * PITCH + at % ROWS];
        }
        __syncthreads();
        if (turn) write_last(tile - next.apart, turn - 1);
        float* const slot = slots + (turn % 2 * SPLITS + rank) * (TOKENS * ROWS);
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            const int at = threadIdx.x + k * WARPS * 32;
            if (at >= ROWS * TOKENS) continue;
#if CLUSTER
            to_block(slot + at, turn % SPLITS, own[k]);
#else
            slot[at] = own[k];
#endif
        }
#if CLUSTER
        arrive_in_cluster();
#endif
        if (turn % SPLITS == rank) read_late(tile);
    }
    __syncthreads();
    if (turn) write_last(first_tile + (turn - 1) * next.apart, turn - 1);
}
