// What parts of the columns give (streamed_rows.cu), added up in their order and written. Compiled at run time with
// ../instructions.cu, codes.cu, tiles.cu and these definitions, which streamed_rows.py makes, before it:
//   DIVISOR   a whole number, of which scales are too many times too large
//   TILES     8 tokens each
//   SPLITS    parts of the columns
//   NORM      1: x is normalized by the squares of its parts
//   OVERLAP   1: it may be started while the kernel before still runs, which makes the parts

#define TOKENS (8 * TILES)

// A row's sum, less scales that come at the end.
__device__ __forceinline__ float scaled(float sum, const Matrix& w, int row, float inverse) {
#if GROUP
    const float scale = 1;
#else
    const float scale = as_float(w.scale[row]) / DIVISOR;
#endif
    return sum * scale * inverse + (w.bias ? widened(w.bias[row]) : 0);
}

// Four rows of a token by each thread.
extern "C" __global__ void __launch_bounds__(WARPS * 32) packed_sums(
    const float* sums, const float* squares, float epsilon, int width, const Matrices matrices, int tiles, int add, int m) {
    const int rows = tiles * ROWS, of_token = rows / (GATED ? 8 : 4);
    const int at = blockIdx.x * WARPS * 32 + threadIdx.x, token = at / of_token, four = at % of_token;
    // Of gates the first half of a band; the other half goes with it.
    const int first = GATED ? four / 2 * 16 + four % 2 * 4 : four * 4;
#if OVERLAP
    let_next_start();
    wait_for_previous();
#endif
    if (token >= m) return;
    float inverse = 1;
#if NORM
    float all = 0;
#pragma unroll
    for (int s = 0; s < SPLITS; s++) all += squares[s * TOKENS + token];
    inverse = rsqrtf(all / width + epsilon);
#endif
    float4 read[1 + GATED][SPLITS];
#pragma unroll
    for (int s = 0; s < SPLITS; s++)
#pragma unroll
        for (int h = 0; h < 1 + GATED; h++)
            read[h][s] = *(const float4*)(sums + ((size_t)s * TOKENS + token) * rows + first + 8 * h);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int tile = (first + k) / ROWS, r = (first + k) % ROWS;
        const Matrix& w = matrix_of(matrices, tile, r);
        const int row = row_of(w, tile, r);
        if (row >= w.n) return;
        float y[1 + GATED] = {};
#pragma unroll
        for (int s = 0; s < SPLITS; s++)
#pragma unroll
            for (int h = 0; h < 1 + GATED; h++) y[h] += ((const float*)&read[h][s])[k];
        y[0] = scaled(y[0], w, row, inverse);
#if GATED
        y[0] = y[0] / (1 + expf(-y[0])) * scaled(y[1], matrices.at[1], row, inverse);
#endif
        u16* const out = (u16*)w.out + (size_t)token * w.stride + row;
        *out = narrow(y[0] + (add ? widened(*out) : 0));
    }
}
