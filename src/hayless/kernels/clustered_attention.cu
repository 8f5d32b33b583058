// Attention of each row's new token: rope, the cache's new entries, and softmax over the row's own length. Compiled at run
// time with instructions.cu and these definitions, which clustered_attention.py makes, before it:
//   BF16      1: everything is bf16; 0: fp16
//   DIM       of a head: 64, 128 or 256
//   QUERIES   heads that share a key head
//   WARPS     of a block
//   SPLITS    blocks that share a row's key head, which are a cluster
//   CLUSTER   1: there are several
//   NORM      1: RMSNorm of queries and keys over a head, before rope
//   OVERLAP   1: it may be started while the kernel before still runs, which makes q, k and v (programmatic dependent launch)
//
// A row of keys is short: what such a kernel takes is waiting, once for the cache, once for the queries, and to join what
// blocks have found. So the first keys and values are in registers before q is there, as are the places' sines and cosines,
// and blocks join in the shared memory of their cluster. DIM / 8 lanes have a key, 8 channels each, and the value's same
// channels, and keep softmaxes of their own until the end.

#define LANES (DIM / 8)
#define KEYS (32 / LANES * WARPS)             // at once
#define TAKEN (QUERIES > 4 ? 2 : 4)           // times as many that are read together, as registers hold
#define SLOTS (SPLITS * WARPS)
#define JOINED ((QUERIES + SPLITS - 1) / SPLITS)  // queries that a block joins
#define NONE (-__uint_as_float(0x7F800000))      // as a maximum: below every number

#if CLUSTER
#define ONE_CLUSTER __cluster_dims__(SPLITS, 1, 1)
#else
#define ONE_CLUSTER
#endif

struct Channels { float at[8]; };

__device__ __forceinline__ Channels channels_of(uint4 read) {
    const u32 pairs[4] = {read.x, read.y, read.z, read.w};
    Channels r;
#pragma unroll
    for (int i = 0; i < 8; i++) r.at[i] = widened(i % 2 ? pairs[i / 2] >> 16 : pairs[i / 2] & 0xFFFF);
    return r;
}

__device__ __forceinline__ uint4 narrowed(const Channels& v) {
    u32 r[4];
#pragma unroll
    for (int i = 0; i < 4; i++) r[i] = narrow(v.at[2 * i]) | (u32)narrow(v.at[2 * i + 1]) << 16;
    return {r[0], r[1], r[2], r[3]};
}

// The sum of the lanes that have a key.
__device__ __forceinline__ float sum_of_key(float v) {
#pragma unroll
    for (int k = 1; k < LANES; k *= 2) v += of_lane(v, k);
    return v;
}

// A head's channels as they are multiplied: normalized, turned by their place, rounded. Halves of a head make pairs.
__device__ __forceinline__ Channels turned(
    Channels v, const u16* __restrict__ gain, float epsilon, const Channels& cosine, const Channels& sine) {
    const int l = threadIdx.x % LANES;
#if NORM
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += square(v.at[i]);
    const float inverse = rsqrtf(sum_of_key(squares) / DIM + epsilon);
    const Channels by = channels_of(*(const uint4*)(gain + 8 * l));
#pragma unroll
    for (int i = 0; i < 8; i++) v.at[i] *= inverse * by.at[i];
#endif
    Channels r;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float other = of_lane(v.at[i], LANES / 2);
        r.at[i] = v.at[i] * cosine.at[i] + (l < LANES / 2 ? -other : other) * sine.at[i];
    }
    return channels_of(narrowed(r));
}

// A running softmax of one query: its maximum, in powers of 2, the sum of weights, and that of weighted values.
struct Found { float top, total; Channels y; };

extern "C" __global__ void ONE_CLUSTER __launch_bounds__(WARPS * 32) clustered_attention(
    const u16* q, const u16* k, const u16* v, int q_stride, int k_stride, int v_stride, const u16* __restrict__ q_gain,
    const u16* __restrict__ k_gain, const float* __restrict__ cosines, const float* __restrict__ sines,
    const int* __restrict__ lengths, u16* k_cache, u16* v_cache, u16* out, int capacity, int offset, float scale,
    float epsilon) {
    extern __shared__ __align__(16) u8 shared[];
    float* const parts = (float*)shared;  // of each warp of the cluster: weighted values, then maximum and sum
    const int split = blockIdx.x % SPLITS, head = blockIdx.y, row = blockIdx.z, heads = gridDim.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, l = threadIdx.x % LANES, own = threadIdx.x / LANES;
#if OVERLAP
    let_next_start();
#endif
    const int length = max(lengths[row] + offset, 0), share = (length + SPLITS - 1) / SPLITS;
    const int start = split * share, end = min(start + share, length);
    const size_t base = (size_t)(row * heads + head) * capacity * DIM + 8 * l;

    // Neither lengths nor older entries of the cache are from the kernel before.
    uint4 keys[2][TAKEN], values[2][TAKEN];
    const auto read = [&](int into, int first) {
        if (first >= end) return;
#pragma unroll
        for (int i = 0; i < TAKEN; i++) {
            const size_t at = base + (size_t)min(first + i * KEYS + own, end - 1) * DIM;
            keys[into][i] = *(const uint4*)(k_cache + at);
            values[into][i] = *(const uint4*)(v_cache + at);
        }
    };
    read(0, start);
    read(1, start + TAKEN * KEYS);
    Channels cosine, sine;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const size_t at = (size_t)length * (DIM / 2) + 8 * l % (DIM / 2) + i;
        cosine.at[i] = cosines[at];
        sine.at[i] = sines[at];
    }
#if OVERLAP
    wait_for_previous();
#endif

    Channels queries[QUERIES];
#pragma unroll
    for (int j = 0; j < QUERIES; j++)
        queries[j] = channels_of(*(const uint4*)(q + (size_t)row * q_stride + (head * QUERIES + j) * DIM + 8 * l));
    const uint4 new_key = *(const uint4*)(k + (size_t)row * k_stride + head * DIM + 8 * l);
    const uint4 new_value = *(const uint4*)(v + (size_t)row * v_stride + head * DIM + 8 * l);
    scale *= 1.4426950408889634f;  // weights are powers of 2
#pragma unroll
    for (int j = 0; j < QUERIES; j++) queries[j] = turned(queries[j], q_gain, epsilon, cosine, sine);

    Found found[QUERIES];
#pragma unroll
    for (int j = 0; j < QUERIES; j++) found[j] = {NONE, 0, {}};
    const auto score = [&](int j, const Channels& key) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += queries[j].at[i] * key.at[i];
        return sum_of_key(sum) * scale;
    };
    // Takes `count` keys' scores and values into a softmax.
    const auto take = [&](Found& f, const float* scores, const uint4* of, int count) {
        float top = f.top;
        for (int i = 0; i < count; i++) top = fmaxf(top, scores[i]);
        if (top == NONE) return;
        const float shrink = exp2f(f.top - top);
        f.top = top;
        f.total *= shrink;
#pragma unroll
        for (int c = 0; c < 8; c++) f.y.at[c] *= shrink;
        for (int i = 0; i < count; i++) {
            const float weight = exp2f(scores[i] - top);
            const Channels value = channels_of(of[i]);
            f.total += weight;
#pragma unroll
            for (int c = 0; c < 8; c++) f.y.at[c] += weight * value.at[c];
        }
    };
    const auto attend = [&](int from, int first) {
#pragma unroll
        for (int j = 0; j < QUERIES; j++) {
            float scores[TAKEN];
#pragma unroll
            for (int i = 0; i < TAKEN; i++) {
                const float found_score = score(j, channels_of(keys[from][i]));
                scores[i] = first + i * KEYS + own < end ? found_score : NONE;
            }
            take(found[j], scores, values[from], TAKEN);
        }
    };
    for (int first = start; first < end; first += 2 * TAKEN * KEYS) {
        attend(0, first);
        read(0, first + 2 * TAKEN * KEYS);
        if (first + TAKEN * KEYS >= end) break;
        attend(1, first + TAKEN * KEYS);
        read(1, first + 3 * TAKEN * KEYS);
    }

    if (split == SPLITS - 1 && warp == 0) {
        // The new token: its key and value go into the cache, and are attended from here.
        const Channels key = turned(channels_of(new_key), k_gain, epsilon, cosine, sine);
        if (own == 0) {
            *(uint4*)(k_cache + base + (size_t)length * DIM) = narrowed(key);
            *(uint4*)(v_cache + base + (size_t)length * DIM) = new_value;
        }
#pragma unroll
        for (int j = 0; j < QUERIES; j++) {
            const float one = score(j, key);
            if (own == 0) take(found[j], &one, &new_value, 1);
        }
    }

    // The keys of a warp, then the warps of the cluster, in their order: each query in one of the blocks.
#pragma unroll
    for (int j = 0; j < QUERIES; j++) {
        Found& f = found[j];
#pragma unroll
        for (int apart = LANES; apart < 32; apart *= 2) {
            const float other_top = of_lane(f.top, apart), top = fmaxf(f.top, other_top);
            const float shrink = top == NONE ? 0 : exp2f(f.top - top);
            const float other_shrink = top == NONE ? 0 : exp2f(other_top - top);
            f.top = top;
            f.total = f.total * shrink + of_lane(f.total, apart) * other_shrink;
#pragma unroll
            for (int c = 0; c < 8; c++) f.y.at[c] = f.y.at[c] * shrink + of_lane(f.y.at[c], apart) * other_shrink;
        }
        float* const slot = parts + ((split * WARPS + warp) * JOINED + j / SPLITS) * (DIM + 2);
        const auto put = [&](float* at, float value) {
#if CLUSTER
            to_block(at, j % SPLITS, value);
#else
            *at = value;
#endif
        };
        if (lane < LANES) {
#pragma unroll
            for (int c = 0; c < 8; c++) put(slot + 8 * l + c, f.y.at[c]);
            if (lane == 0) put(slot + DIM, f.top), put(slot + DIM + 1, f.total);
        }
    }
    wait_for_all();
    for (int j = split; j < QUERIES; j += SPLITS) {
        const float* const first = parts + j / SPLITS * (DIM + 2);
        const int apart = JOINED * (DIM + 2);
        // Each lane has the weights of a slot.
        const float top = lane < SLOTS ? first[lane * apart + DIM] : NONE;
        float highest = top;
#pragma unroll
        for (int k = 1; k < 32; k *= 2) highest = fmaxf(highest, of_lane(highest, k));
        const float weight = top == NONE ? 0 : exp2f(top - highest);
        const float total = sum_of_warp(lane < SLOTS ? weight * first[lane * apart + DIM + 1] : 0);
        for (int d = threadIdx.x; d < (DIM + WARPS * 32 - 1) / (WARPS * 32) * (WARPS * 32); d += WARPS * 32) {
            float y = 0;
#pragma unroll
            for (int s = 0; s < SLOTS; s++) {
                const float by = at_lane(weight, s);
                if (d < DIM) y += by * first[s * apart + d];
            }
            if (d < DIM) out[((size_t)(row * heads + head) * QUERIES + j) * DIM + d] = narrow(y / total);
        }
    }
}
