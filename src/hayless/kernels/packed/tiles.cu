// The rows of matrices in tiles, which blocks or warps multiply at once. Behind codes.cu, with these definitions before it:
//   BANDS     16 rows each, of a tile
//   GATED     1: of two matrices silu(y of the first) · y of the second is written; half of a band is of each

#define ROWS (16 * BANDS)
#define WRITTEN (GATED ? ROWS / 2 : ROWS)

// Which matrix a row of a tile is of, and which row of that.
__device__ __forceinline__ const Matrix& matrix_of(const Matrices& matrices, int tile, int r) {
    int which = GATED ? r / 8 % 2 : 0;
#pragma unroll
    for (int i = 1; i < MATRICES; i++) which += !GATED && tile >= matrices.at[i].first;
    return matrices.at[which];
}

__device__ __forceinline__ int row_of(const Matrix& w, int tile, int r) {
    return (tile - (GATED ? 0 : w.first)) * WRITTEN + (GATED ? r / 16 * 8 + r % 8 : r);
}
