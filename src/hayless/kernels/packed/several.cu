// What kernels share that multiply several tokens with W on its way (streamed_few.cu, streamed_rows.cu): x in shared memory,
// and a step's product. Behind ring.cu, with these definitions before it:
//   TILES     8 tokens each
//   SPLITS    parts of the columns, each of a block
//   NORM      1: x is multiplied by a norm's gain

#define TOKENS (8 * TILES)
#define CHUNKS (UNIT / 32)                          // times 8 columns of a unit that a lane multiplies
#define MOST_STEPS ((STEPS + SPLITS - 1) / SPLITS)  // of a block
#define X_PITCH (MOST_STEPS * SPAN * 2 + 16)        // bytes of a token; so that those of 8 are in different banks
#define TABLE_BYTES (KIND == 1 ? 256 * 32 * 4 : 0)

// Of 512 bytes, 32 of a row that have one scale, 8 for each lane: rows of a unit lie one after the other. Where a lane puts
// what it copies, and from where it reads what it multiplies.
__device__ __forceinline__ int place_of_copy() {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    return t / 2 * 256 + g * 32 + t % 2 * 16;
}

__device__ __forceinline__ int place_of_codes() {
    const int lane = threadIdx.x % 32;
    return lane / 4 * 32 + lane % 4 * 8;
}

// One token's x, so many times 8 columns, by a warp, as codes are taken out of a word: every (PER / 2)th column makes a
// pair. Returns its squares' sum where there is a norm.
__device__ __forceinline__ float prepare(u8* to, const u16* x, const u16* __restrict__ gain, int chunks) {
    float square_sum = 0;
#pragma unroll 4
    for (int chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
        const uint4 read = *(const uint4*)(x + 8 * chunk);
        u32 v[4] = {read.x, read.y, read.z, read.w}, q[4];
#if NORM
        const uint4 gains = *(const uint4*)(gain + 8 * chunk);
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
        *(uint4*)(to + 16 * chunk) = *(uint4*)q;
    }
#if NORM
    square_sum = sum_of_warp(square_sum);
#endif
    return square_sum;
}

// The block's columns of all tokens, those beyond the last as that one; with a norm, their squares too. Blocks that have the
// same columns may write these to one place, since they are the same.
__device__ __forceinline__ void prepare_all(
    u8* xs, const u16* x, const u16* __restrict__ gain, int first, int end, int m, float* squares) {
    for (int token = threadIdx.x / 32; token < TOKENS; token += WARPS) {
        const u16* const row = x + (size_t)min(token, m - 1) * WIDTH + first * SPAN;
        const float square_sum = prepare(xs + token * X_PITCH, row, gain + first * SPAN, (end - first) * (SPAN / 8));
        if (NORM && threadIdx.x % 32 == 0) squares[token] = square_sum;
    }
}

// total += a step's codes times x, from `x` on in shared memory.
__device__ __forceinline__ void multiply(
    float (*total)[TILES][4], const u8* stage, const u8* x, const u8* table, int step, const Matrices& matrices, int tile,
    const float (*seconds)[256]) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u8* const x_at = x + g * X_PITCH + t * (UNIT / 4) * 2;
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
                *(uint2*)w[h] = *(const uint2*)(stage + (2 * b + h) * 512 + mix * 256 + place_of_codes());
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
                    values_of(table, w[h][i], a[h]);
#else
                    const u32 word = TWOS ? w[h][i] ^ HIGHEST_BITS : w[h][i];
#pragma unroll
                    for (int k = 0; k < PER / 2; k++) a[h][k] = centred(word >> BITS * k, base_of(1 << (BITS - 1)));
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
                const float f = scale_of(stage, 16 * b + 8 * h + g, 0, mix, GROUP_OF(step * SPAN), matrices, tile, seconds);
#pragma unroll
                for (int j = 0; j < TILES; j++)
#pragma unroll
                    for (int c = 2 * h; c < 2 * h + 2; c++) total[b][j][c] += y[j][c] * f;
            }
#endif
        }
    }
}
