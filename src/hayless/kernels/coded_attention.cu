// Attention of one new token of each row over the keys and values that lie in codes. Compiled at run time with
// instructions.cu and these definitions, which coded_attention.py makes, before it:
//   BITS, BF16     2, 4 or 8; 1, other numbers are bf16
//   DIM            channels of a head, 64 or 128
//   HEADS          queries of a key head
//   GROUP          tokens that share a key's step, a multiple of 32
//   CHANNELS       that share a value's step
//   RESIDUAL       tokens whose values are no codes
//   SHARED         of what number of tokens the codes that are read here are a multiple
//   NORM           1: RMSNorm over a head before rope
//   WARPS, SPLITS, PARTS    warps of a block, blocks that share a row's head, parts of results that there are in all
//
// Codes are multiplied as they are, less what makes them mantissas, and the steps go into what they are multiplied by:
//
//     Σ q·k = Σ (q·step)·code + Σ q·least over the channels of a key, Σ p·v = Σ (p·step)·code + Σ p·least over tokens
//
// Codes are the first operand of mma.m16n8k16. A warp takes 32 tokens at a time. Of keys, rows are tokens, and the columns
// of the second operand are heads; of values, rows are channels, and columns are heads, once for each group of channels:
// a channel's result stands in the column of its own group, and the others are not looked at.

#define PER (32 / BITS)
#define GROUPS (DIM / CHANNELS)
#define COLUMNS (HEADS * GROUPS)
#define PASSES ((COLUMNS + 7) / 8)
#define KEY_WORDS (DIM / 4 / PER)    // a fourth of a token's channels: what a lane reads of a key
#define VALUE_WORDS (DIM / 8 / PER)  // and an eighth, of a value
#define ROW_BYTES (DIM * BITS / 8)
#define PITCH 40                     // numbers between two columns' weights, so that lanes read from different banks

#if BITS == 8
#define TAKEN_OFF 0x43004300  // what codes are too small by as numbers, 128
#else
#define TAKEN_OFF 0xC300C300  // what they are too large by
#endif
#define ONES 0x3F803F80
#define NOTHING __uint_as_float(0xFF800000)  // minus infinity

__device__ __forceinline__ u32 number(u32 w) {
#if BITS == 8
    return plus(mantissas(w), by_highest_bit(w));
#else
    return mantissas(w);
#endif
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) coded_attention(
    const u16* __restrict__ q, const u16* __restrict__ gain, const float* __restrict__ cosines,
    const float* __restrict__ sines, const int* __restrict__ lengths, const u8* __restrict__ k_codes,
    const u16* __restrict__ k_step, const u16* __restrict__ k_least, const u8* __restrict__ v_codes,
    const u16* __restrict__ v_step, const u16* __restrict__ v_least, float* __restrict__ parts,
    float* __restrict__ maxima, float* __restrict__ sums, int q_stride, int kv_heads, int slots, float scale,
    float epsilon) {
    __shared__ __align__(16) u16 queries[HEADS][DIM];
    __shared__ float probabilities[WARPS][HEADS][33];
    __shared__ float shrinking[WARPS][HEADS];
    __shared__ __align__(16) u16 weights[WARPS][8 * PASSES][PITCH];
    __shared__ float results[WARPS][HEADS][DIM], rests[WARPS][HEADS][GROUPS];
    __shared__ float tops[WARPS][HEADS], totals[WARPS][HEADS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int row = blockIdx.x, head = blockIdx.y, split = blockIdx.z;
    const long place = (long)row * kv_heads + head;
    const int length = lengths[row], coded = max(length - RESIDUAL, 0) / SHARED * SHARED;
    const int blocks = coded / 32, each = (blocks + SPLITS - 1) / SPLITS, last = min(blocks, (split + 1) * each);

    // Queries, turned to the new token's place; a lane has both of the channels that turn together.
    for (int h = warp; h < HEADS; h += WARPS) {
        const u16* from = q + (long)row * q_stride + (head * HEADS + h) * DIM;
        float v[DIM / 32], squares = 0;
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            v[i] = brain_to_float(from[lane + 32 * i]);
            squares += v[i] * v[i];
        }
#if NORM
        const float inverse = rsqrtf(sum_of_warp(squares) / DIM + epsilon);
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) v[i] *= inverse * brain_to_float(gain[lane + 32 * i]);
#endif
#pragma unroll
        for (int i = 0; i < DIM / 64; i++) {
            const int c = lane + 32 * i, at = length * (DIM / 2) + c;
            const float low = v[i], high = v[i + DIM / 64];
            queries[h][c] = narrow(low * cosines[at] - high * sines[at]);
            queries[h][c + DIM / 2] = narrow(high * cosines[at] + low * sines[at]);
        }
    }
    for (int i = lane; i < 8 * PASSES * PITCH; i += 32) weights[warp][i / PITCH][i % PITCH] = 0;
    __syncthreads();
    u32 query[DIM / 8];  // of head g, the channels of lane t, two by two
#pragma unroll
    for (int i = 0; i < DIM / 8; i++) query[i] = g < HEADS ? *(const u32*)&queries[g % HEADS][t * (DIM / 4) + 2 * i] : 0;

    float top[2] = {NOTHING, NOTHING}, total[2] = {};  // of heads 2t and 2t + 1; a lane's part of the totals
    float result[PASSES][VALUE_WORDS * PER / 2][4] = {}, off[PASSES][4] = {}, rest[HEADS][GROUPS] = {};
    const float in_twos = scale * 1.4426950408889634f;

    for (int block = split * each + warp; block < last; block += WARPS) {
        const long token = place * slots + block * 32, group = place * (slots / GROUP) + block * 32 / GROUP;
        u32 key[4][KEY_WORDS], value[8][VALUE_WORDS], step[(GROUPS + 1) / 2], least[(GROUPS + 1) / 2];
        u32 k_by[DIM / 8], k_low[DIM / 8];
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int i = 0; i < KEY_WORDS; i += 4)
                read(k_codes + (token + 8 * r + g) * ROW_BYTES + t * (ROW_BYTES / 4) + 4 * i,
                     KEY_WORDS < 4 ? 4 * KEY_WORDS : 16, key[r] + i);
#pragma unroll
        for (int r = 0; r < 8; r++)
#pragma unroll
            for (int i = 0; i < VALUE_WORDS; i += 4)
                read(v_codes + (token + 16 * (r / 4) + 8 * (r / 2 % 2) + 2 * t + r % 2) * ROW_BYTES + g * (ROW_BYTES / 8) + 4 * i,
                     VALUE_WORDS < 4 ? 4 * VALUE_WORDS : 16, value[r] + i);
#pragma unroll
        for (int i = 0; i < DIM / 8; i += 4) {
            read(k_step + group * DIM + t * (DIM / 4) + 2 * i, 16, k_by + i);
            read(k_least + group * DIM + t * (DIM / 4) + 2 * i, 16, k_low + i);
        }
        read(v_step + (token + lane) * GROUPS, 2 * GROUPS, step);
        read(v_least + (token + lane) * GROUPS, 2 * GROUPS, least);

        // Scores of 32 tokens: what is the same for all of them first.
        float score[2][4] = {};
#pragma unroll
        for (int i = 0; i < DIM / 8; i++) {
            k_by[i] = times(query[i], k_by[i]);
            k_low[i] = times(query[i], k_low[i]);
        }
#pragma unroll
        for (int i = 0; i < DIM / 8; i += 2) {
            mma(score[0], ONES, ONES, ONES, ONES, k_low[i], k_low[i + 1]);
            mma(score[0], TAKEN_OFF, TAKEN_OFF, TAKEN_OFF, TAKEN_OFF, k_by[i], k_by[i + 1]);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) score[1][c] = score[0][c];
#pragma unroll
        for (int i = 0; i < KEY_WORDS; i++) {
            u32 by[PER / 2];
#pragma unroll
            for (int k = 0; k < PER / 2; k++) {
                const u32* pairs = k_by + i * (PER / 2);
                by[k] = bytes(pairs[k / 2], pairs[k / 2 + PER / 4], k % 2 ? 0x7632 : 0x5410);
            }
#pragma unroll
            for (int s = 0; s < 2; s++)
#pragma unroll
                for (int k = 0; k < PER / 2; k += 2) {
                    const u32 a = key[2 * s][i], b = key[2 * s + 1][i];
                    mma(score[s], number(a >> BITS * k), number(b >> BITS * k), number(a >> BITS * (k + 1)),
                        number(b >> BITS * (k + 1)), by[k], by[k + 1]);
                }
        }

        // Their softmax so far.
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const float found[4] = {score[0][c] * in_twos, score[0][c + 2] * in_twos, score[1][c] * in_twos,
                                    score[1][c + 2] * in_twos};
            const float most = largest_of_rows(fmaxf(fmaxf(found[0], found[1]), fmaxf(found[2], found[3])));
            const float now = fmaxf(top[c], most), shrink = exp2f(top[c] - now);
            top[c] = now;
            total[c] *= shrink;
            const int h = 2 * t + c;
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float p = exp2f(found[r] - now);
                total[c] += p;
                if (h < HEADS) probabilities[warp][h][8 * r + g] = p;
            }
            if (h < HEADS && g == 0) shrinking[warp][h] = shrink;
        }
        __syncwarp();

        // Every lane weighs a token: its steps by its probabilities.
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float p = probabilities[warp][h][lane], shrink = shrinking[warp][h];
#pragma unroll
            for (int j = 0; j < GROUPS; j++) {
                rest[h][j] = rest[h][j] * shrink + p * brain_to_float((u16)(least[j / 2] >> 16 * (j % 2)));
                weights[warp][h * GROUPS + j][lane] = narrow(p * brain_to_float((u16)(step[j / 2] >> 16 * (j % 2))));
            }
        }
        __syncwarp();

#pragma unroll
        for (int pass = 0; pass < PASSES; pass++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int h = (8 * pass + 2 * t + c) / GROUPS;
                const float shrink = h < HEADS ? shrinking[warp][h % HEADS] : 0;
#pragma unroll
                for (int k = 0; k < VALUE_WORDS * PER / 2; k++) result[pass][k][c] *= shrink, result[pass][k][c + 2] *= shrink;
                off[pass][c] *= shrink, off[pass][c + 2] *= shrink;
            }
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 by[PASSES][2];
#pragma unroll
            for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
                for (int half = 0; half < 2; half++)
                    by[pass][half] = *(const u32*)&weights[warp][8 * pass + g][16 * s + 8 * half + 2 * t];
                mma(off[pass], TAKEN_OFF, TAKEN_OFF, TAKEN_OFF, TAKEN_OFF, by[pass][0], by[pass][1]);
            }
#pragma unroll
            for (int i = 0; i < VALUE_WORDS; i++) {
                // Of two tokens the same channels side by side: their first half, and their second.
                u32 two[2][2];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 a = value[4 * s + 2 * half][i], b = value[4 * s + 2 * half + 1][i];
                    two[half][0] = bytes(a, b, 0x5410), two[half][1] = bytes(a, b, 0x7632);
                }
#pragma unroll
                for (int k = 0; k < PER / 2; k++) {
                    const u32 a0 = number(two[0][0] >> BITS * k), a1 = number(two[0][1] >> BITS * k);
                    const u32 a2 = number(two[1][0] >> BITS * k), a3 = number(two[1][1] >> BITS * k);
#pragma unroll
                    for (int pass = 0; pass < PASSES; pass++)
                        mma(result[pass][i * PER / 2 + k], a0, a1, a2, a3, by[pass][0], by[pass][1]);
                }
            }
        }
    }

    // What the warps have found, joined.
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const float all = sum_of_rows(total[c]);
        if (2 * t + c < HEADS && g == 0) tops[warp][2 * t + c] = top[c], totals[warp][2 * t + c] = all;
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++)
#pragma unroll
        for (int k = 0; k < VALUE_WORDS * PER / 2; k++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int column = 8 * pass + 2 * t + c % 2, h = column / GROUPS;
                const int channel = g * (DIM / 8) + k / (PER / 2) * PER + c / 2 * (PER / 2) + k % (PER / 2);
                if (h < HEADS && channel / CHANNELS == column % GROUPS)
                    results[warp][h][channel] = result[pass][k][c] + off[pass][c];
            }
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            const float all = sum_of_warp(rest[h][j]);
            if (lane == 0) rests[warp][h][j] = all;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * DIM; i += WARPS * 32) {
        const int h = i / DIM, channel = i % DIM;
        float most = NOTHING, y = 0, all = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float share = tops[w][h] > NOTHING ? exp2f(tops[w][h] - most) : 0;
            y += share * (results[w][h][channel] + rests[w][h][channel / CHANNELS]);
            all += share * totals[w][h];
        }
        const long part = (place * HEADS + h) * PARTS + split;
        parts[part * DIM + channel] = y;
        if (channel == 0) maxima[part] = most / 1.4426950408889634f, sums[part] = all;
    }
}
