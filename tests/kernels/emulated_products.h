// What tensor_cores.cu needs beside emulated_cuda.h, and its launch.
//@ what stands for its instructions
static bool in_codes(const u8* at, int size);

static Words stream(const u8* at) {
    Words r;
    if (!in_codes(at, sizeof r) || (uintptr_t)at % sizeof r) {
        fprintf(stderr, "codes are read where there are none\n");
        abort();
    }
    memcpy(&r, at, sizeof r);
    return r;
}

static void copy(u8* to, const void* from) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) abort();
    memcpy(to, from, 16);
}

static void wait_for_copies() { __syncwarp(); }

//@ the launch
struct Launch {
    u16 *x, *gain;
    Matrices* matrices;
    float epsilon;
    int m, width, groups, add, blocks, splits;
};

static const Launch* launch;
static Index current_block;

static bool in_codes(const u8* at, int size) {
    for (const Matrix& w : launch->matrices->at)
        if (at >= w.codes && at + size <= w.codes + (long)w.n * launch->width * BITS / 8) return true;
    return false;
}

static void* thread_of_block(void* index) {
    const Launch& l = *launch;
    threadIdx.x = (long)index;
    blockIdx = current_block;
    packed_linear(l.x, l.gain, l.epsilon, *l.matrices, l.m, l.width, l.groups, l.add);
    return 0;
}

extern "C" void run(const Launch* l) {
    launch = l;
    for (current_block.y = 0; current_block.y < l->splits; current_block.y++)
        for (current_block.x = 0; current_block.x < l->blocks; current_block.x++) block_of_threads(thread_of_block);
}
