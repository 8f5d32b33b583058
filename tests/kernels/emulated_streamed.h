// What streamed.cu, streamed_few.cu and streamed_rows.cu need beside emulated_cuda.h, and their launch. A copy arrives when
// it is waited for, and until then its place holds no number.
#include <vector>

struct Copy { u8* to; const void* from; int size; };
static thread_local std::vector<Copy> unmarked;
static thread_local std::vector<std::vector<Copy>> marked;
static bool may_be_read(const u8* at, int size);
//@ what stands for its instructions
template <int SIZE>
static void copy(u8* to, const void* from) {
    if ((uintptr_t)to % SIZE || (uintptr_t)from % SIZE) abort();
    if (!may_be_read((const u8*)from, SIZE)) {
        fprintf(stderr, "something is copied from where nothing is\n");
        abort();
    }
    memset(to, 0xFF, SIZE);
    unmarked.push_back({to, from, SIZE});
}

static void mark() {
    marked.push_back(unmarked);
    unmarked.clear();
}

static void wait_for_oldest() {
    for (; marked.size() > STAGES - 1; marked.erase(marked.begin()))
        for (const Copy& one : marked[0]) memcpy(one.to, one.from, one.size);
}

// m16n8k32: row r and column k of the first operand are in lane 4 (r % 8) + (k % 16) / 4, register r / 8 + 2 (k / 16), byte
// k % 4; those of the second, k and n, in lane 4 n + (k % 16) / 4, register k / 16.
static void mma_of_codes(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const int lane = threadIdx.x % 32, warp = warp_of_all();
    show_operands(a0, a1, a2, a3, b0, b1);
    for (int i = 0; i < 4; i++) {
        const int r = lane / 4 + 8 * (i / 2), n = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; k++) {
            const u32 one = first_operand[warp][4 * (r % 8) + k % 16 / 4][r / 8 + 2 * (k / 16)] >> 8 * (k % 4);
            const u32 other = second_operand[warp][4 * n + k % 16 / 4][k / 16] >> 8 * (k % 4);
            c[i] += (int)(one & 0xFF) * (signed char)other;
        }
    }
    pthread_barrier_wait(&warp_barriers[warp]);
}

static int rounded(float v) { return lrintf(v); }

//@ the launch
struct Launch {
    u16 *x, *gain;
    Matrices* matrices;
    float *sums, *squares, epsilon;
    int tiles, add, tokens, blocks;
};

static const Launch* launch;
static Index current_block;

// Codes and scales, these to the end of the word where they end.
static bool may_be_read(const u8* at, int size) {
    for (const Matrix& w : launch->matrices->at) {
        const u8* const scale = (const u8*)w.scale;
        const long scales = ((long)w.n * GROUPS * sizeof(scale_t) + 3) / 4 * 4;
        if (at >= w.codes && at + size <= w.codes + (long)w.n * WIDTH * BITS / 8) return true;
        if (at >= scale && at + size <= scale + scales) return true;
    }
    return false;
}

static void* thread_of_block(void* index) {
    const Launch& l = *launch;
    const int at = (long)index;
    rank = at / (32 * WARPS);
    threadIdx.x = at % (32 * WARPS);
    blockIdx.x = current_block.x + rank;
#if TILES == 2
    packed_stream_rows(l.x, l.gain, *l.matrices, l.tiles, l.tokens, l.sums, l.squares);
#elif TILES == 1
    packed_stream_few(l.x, l.gain, l.epsilon, *l.matrices, l.tiles, l.add, l.tokens);
#else
    packed_stream(l.x, l.gain, l.epsilon, *l.matrices, l.tiles, l.add);
#endif
    return 0;
}

extern "C" void run(const Launch* l) {
    launch = l;
    gridDim.x = l->blocks;
    for (current_block.x = 0; current_block.x < l->blocks; current_block.x += BLOCKS) block_of_threads(thread_of_block);
}
