// y = Wx for one token and weights of 4 or 8 bits, in tensor cores, with W always on its way. Compiled at run time with
// ../instructions.cu, codes.cu, tiles.cu, ring.cu and these definitions, which streamed.py makes, before it:
//   DIVISOR   a whole number, of which scales are too many times too large
//   NORM      1: x is normalized first: x gain / rms(x)
//   OVERLAP   1: it may be started while the kernel before still runs, which makes x (programmatic dependent launch)
//
// In a product that reads 10 MB, memory is at rest for longer than it works: until the first loads arrive, while what has
// come is multiplied, until the last sums are written and the next kernel has begun. So a processor has one block, which
// multiplies tile after tile, while each warp copies what it will multiply next into a ring of its own in shared memory,
// and which fills the ring before it waits for the kernel that makes x. Registers cannot hold as much, and blocks that are
// several to a processor are put unevenly when they begin early.
//
// Then arithmetic is what a product takes. Codes of integers are operands of integer tensor cores as they are, two
// instructions for eight of four bits. For that x becomes whole numbers of sixteen bits, `UNIT` columns by a scale of
// their own, and each number two digits, which are two of the eight columns of the second operand, at no instruction more.
// What that rounds off is at most 2^-16 of the largest of a unit, less than bf16 rounds x gain off.

#define CHUNKS (SPAN / 32)    // times 8 columns of a part that a lane multiplies
#define LARGEST 32512.0f      // of sixteen bits, as 127 times 256 and no more
#define TABLE_BYTES (KIND == 1 ? 256 * 256 : 0)
// Times 8 columns of x that a thread prepares.
#define PREPARED ((WIDTH / 8 + WARPS * 32 - 1) / (WARPS * 32))
// Bytes of x that lanes read of a part, and as many zeros for lanes whose column is another group's.
#define PART_OF_X (SPAN * 2)
#define ZEROS (RUN * PART_OF_X)

struct Words { u32 w[4]; };

// Of `UNIT` columns of x: what one of its whole numbers is, and their sum times the codes' zero point.
struct Unit { float scale; int too_much; };

#if KIND == 1
// The eight values of a word. Entries are 256 bytes apart, so one instruction makes an address of a byte and the lane.
__device__ __forceinline__ void far_values_of(const u8* table, u32 w, u32* to) {
    const u32 lane = 4 * (threadIdx.x % 32);
    to[0] = *(const u32*)(table + bytes(w, lane, 0x5504));
    to[1] = *(const u32*)(table + bytes(w, lane, 0x5514));
    to[2] = *(const u32*)(table + bytes(w, lane, 0x5524));
    to[3] = *(const u32*)(table + bytes(w, lane, 0x5534));
}
#endif

extern "C" __global__ void __launch_bounds__(WARPS * 32) packed_stream(
    const u16* x, const u16* __restrict__ gain, float epsilon, const Matrices matrices, int tiles, int add) {
    extern __shared__ __align__(16) u8 shared[];
    u8* const ring = shared + TABLE_BYTES + threadIdx.x / 32 * (STAGES * STAGE);
    u8* const zeros = shared + TABLE_BYTES + WARPS * STAGES * STAGE;
    u8* const xs = zeros + ZEROS;
    Unit* const units = (Unit*)(xs + 2 * WIDTH);
    float* const sums = (float*)(units + (KIND == 0 ? WIDTH / UNIT : 0));
    __shared__ float squares[WARPS];
#if SCALE == 3
    __shared__ float seconds[MATRICES][256];
#else
    const float(*seconds)[256] = 0;
#endif
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int mix = t / (4 / MIX);
    const bool mine = mix == g / (8 / MIX);
#if OVERLAP
    let_next_start();
#endif

    Ring next{matrices, tiles, (int)gridDim.x, 0, STEPS, WARPS, 16 * lane, warp, (int)blockIdx.x, warp};
    next.fill(ring);

    // While those are on their way, the tables, and x as lanes will read it.
#if KIND == 1
    fill((u32*)shared, matrices.at[0].table, 64);
#endif
#if SCALE == 3
    fill(seconds, matrices);
#endif
    if (threadIdx.x < ZEROS / 16) ((uint4*)zeros)[threadIdx.x] = {};
    uint4 read[PREPARED] = {};
#if NORM
    uint4 gains[PREPARED] = {};
#pragma unroll
    for (int i = 0; i < PREPARED; i++) {
        const int chunk = i * WARPS * 32 + threadIdx.x;
        if (chunk < WIDTH / 8) gains[i] = *(const uint4*)(gain + 8 * chunk);
    }
#endif
#if OVERLAP
    wait_for_previous();
#endif
#pragma unroll
    for (int i = 0; i < PREPARED; i++) {
        const int chunk = i * WARPS * 32 + threadIdx.x;
        if (chunk < WIDTH / 8) read[i] = *(const uint4*)(x + 8 * chunk);
    }
    float square_sum = 0;
#pragma unroll
    for (int i = 0; i < PREPARED; i++) {
        const int chunk = i * WARPS * 32 + threadIdx.x, part = chunk / (SPAN / 8), within = chunk % (SPAN / 8);
        const bool there = chunk < WIDTH / 8;
        const u32* const pairs = (const u32*)&read[i];
        float v[8];
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = widened(k % 2 ? pairs[k / 2] >> 16 : pairs[k / 2] & 0xFFFF);
#if NORM
        const u32* const by = (const u32*)&gains[i];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            square_sum += square(v[k]);
            v[k] *= widened(k % 2 ? by[k / 2] >> 16 : by[k / 2] & 0xFFFF);
        }
#endif
        // Lane t of a row has the chunks from t CHUNKS on.
        const int t = within / CHUNKS, c = within % CHUNKS;
#if KIND == 1
        u32 q[4];
#pragma unroll
        for (int k = 0; k < 4; k++) q[k] = narrow(v[2 * k]) | (u32)narrow(v[2 * k + 1]) << 16;
        if (there) ((uint4*)xs)[(part * CHUNKS + c) * 4 + t] = *(uint4*)q;
#else
        float largest = 0, unsound = 0;  // where a number is none, the unit's scale is none
#pragma unroll
        for (int k = 0; k < 8; k++) largest = fmaxf(largest, fabsf(v[k])), unsound += v[k] * 0;
#pragma unroll
        for (int k = 1; k < UNIT / 8; k *= 2) largest = fmaxf(largest, of_lane(largest, k)), unsound += of_lane(unsound, k);
        const float by_largest = largest > 1e-30f ? LARGEST / largest : 0;  // beyond, this is infinite
        int sum = 0;
        u32 digits[2][2] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int whole = rounded(v[k] * by_largest), high = whole + 128 >> 8, low = whole - 256 * high;
            // As bytes of a word: of four bits, those of even and of odd columns.
            const int word = BITS == 4 ? k % 2 : k / 4, byte = BITS == 4 ? k / 2 : k % 4;
            digits[0][word] |= (u32)(high & 0xFF) << 8 * byte;
            digits[1][word] |= (u32)(low & 0xFF) << 8 * byte;
            sum += whole;
        }
#pragma unroll
        for (int k = 1; k < UNIT / 8; k *= 2) sum += of_lane(sum, k);
        if (there) {
#pragma unroll
            for (int d = 0; d < 2; d++)
                ((uint2*)xs)[(((part * 2 + d) * (CHUNKS / 2) + c / 2) * 4 + t) * 2 + c % 2] = *(uint2*)digits[d];
            if (chunk % (UNIT / 8) == 0)
                units[chunk / (UNIT / 8)] = {largest / LARGEST + unsound, sum * (1 << (BITS - 1))};
        }
#endif
    }
#if NORM
    square_sum = sum_of_warp(square_sum);
    if (lane == 0) squares[warp] = square_sum;
#endif
    __syncthreads();

    float total[BANDS][2];
    const auto multiply = [&](const u8* stage, int tile, int step) {
        // Of digits, those of even columns of the second operand are the high ones.
        const int of_lane_x = KIND == 1 ? 16 * t : g % 2 * (PART_OF_X / 2) + 16 * t;
        const u8* const x_at = mine ? xs + step * (RUN * PART_OF_X) + of_lane_x : zeros;
#pragma unroll
        for (int u = 0; u < RUN; u++) {
            u32 q[KIND == 1 ? CHUNKS : CHUNKS / 2][4];
#pragma unroll
            for (int c = 0; c < sizeof(q) / 16; c++) *(uint4*)q[c] = *(const uint4*)(x_at + u * PART_OF_X + 64 * c);
#if KIND == 0
            const Unit unit = units[(step * RUN + u) * MIX + mix];
#endif
#pragma unroll
            for (int b = 0; b < BANDS; b++) {
                Words w[2];
#pragma unroll
                for (int h = 0; h < 2; h++)
                    w[h] = *(const Words*)(stage + u * PART_BYTES + (2 * b + h) * 512 + 16 * lane);
#if KIND == 1
                float y[2][4] = {};  // two, or each product waits for the one before
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    u32 a[2][4];
#pragma unroll
                    for (int h = 0; h < 2; h++) far_values_of(shared, w[h].w[i], a[h]);
#pragma unroll
                    for (int k = 0; k < 4; k += 2)
                        mma(y[k / 2], a[0][k], a[1][k], a[0][k + 1], a[1][k + 1], q[i][k], q[i][k + 1]);
                }
#else
                int y[4] = {};
#pragma unroll
                for (int i = 0; i < CHUNKS; i++) {
                    u32 a[2][2];
#pragma unroll
                    for (int h = 0; h < 2; h++)
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            const u32 word = w[h].w[BITS == 4 ? i : 2 * i + k];
                            const u32 codes = TWOS ? word ^ HIGHEST_BITS : word;
                            a[h][k] = BITS == 4 ? codes >> 4 * k & 0x0F0F0F0F : codes;
                        }
                    mma_of_codes(y, a[0][0], a[1][0], a[0][1], a[1][1], q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
                }
#endif
#pragma unroll
                for (int h = 0; h < 2; h++) {
#if KIND == 1
                    const float sum = y[0][2 * h] + y[1][2 * h];
#else
                    const float sum = (float)(y[2 * h] * 256 + y[2 * h + 1] - unit.too_much) * unit.scale;
#endif
                    const int row = 16 * b + 8 * h + g, group = GROUP_OF(step * (RUN * SPAN));
                    total[b][h] += sum * scale_of(stage, row, u, mix, group, matrices, tile, seconds);
                }
            }
        }
    };

    u8 *stage = ring, *const end = ring + STAGES * STAGE;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn++) {
        // Each turn other warps write the rows, 32 each, and read what goes with them meanwhile.
        const int first = (warp + turn) % WARPS * 32, r = (first + lane) % ROWS;
        const Matrix& w = matrix_of(matrices, tile, r);
        const int row = row_of(w, tile, r);
        const bool inside = first + lane < ROWS && row < w.n, first_half = !GATED || r / 8 % 2 == 0;
        u16* const out = (u16*)w.out + row;
        float scale = 1.0f / DIVISOR, bias = 0, before = 0;
        if (inside) {
#if !GROUP
            scale *= as_float(w.scale[row]);
#endif
            if (w.bias) bias = widened(w.bias[row]);
            if (add) before = widened(*out);
        }
#pragma unroll
        for (int b = 0; b < BANDS; b++) total[b][0] = total[b][1] = 0;
        for (int step = warp; step < next.each(); step += WARPS) {
            wait_for_oldest();
            __syncwarp();
            if (step < STEPS) multiply(stage, tile, step);
            __syncwarp();
            next.copy_next(stage);
            if ((stage += STAGE) == end) stage = ring;
        }
        // A row's groups, then the warps' sums, in their order.
        float* const all = sums + turn % 2 * (WARPS * ROWS);
#pragma unroll
        for (int b = 0; b < BANDS; b++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
#pragma unroll
                for (int k = 4 / MIX; k < 4; k *= 2) total[b][h] += of_lane(total[b][h], k);
                if (t == 0) all[warp * ROWS + 16 * b + 8 * h + g] = total[b][h];
            }
        __syncthreads();
        if (first >= ROWS) continue;
        float y = 0;
        for (int v = 0; v < WARPS; v++) y += all[v * ROWS + r];
#if NORM
        float all_squares = 0;
#pragma unroll
        for (int v = 0; v < WARPS; v++) all_squares += squares[v];
        y *= rsqrtf(all_squares / WIDTH + epsilon);
#endif
        y = y * scale + bias;
#if GATED
        y = y / (1 + expf(-y)) * of_lane(y, 8);
#endif
        if (inside && first_half) *out = narrow(y + before);
    }
}
