// The launch of streamed_sums.cu, which needs nothing beside emulated_cuda.h.
//@ what stands for its instructions
//@ the launch
struct Launch {
    float *sums, *squares, epsilon;
    Matrices* matrices;
    int width, tiles, add, tokens, blocks;
};

static const Launch* launch;
static Index current_block;

static void* thread_of_block(void* index) {
    const Launch& l = *launch;
    threadIdx.x = (long)index;
    blockIdx = current_block;
    packed_sums(l.sums, l.squares, l.epsilon, l.width, *l.matrices, l.tiles, l.add, l.tokens);
    return 0;
}

extern "C" void run(const Launch* l) {
    launch = l;
    for (current_block.x = 0; current_block.x < l->blocks; current_block.x++) block_of_threads(thread_of_block);
}
