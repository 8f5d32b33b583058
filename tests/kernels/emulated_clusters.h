// The launch of clustered_attention.cu, which has no instructions of its own.
//@ none
//@ the launch
struct Launch {
    void *q, *k, *v;
    int q_stride, k_stride, v_stride;
    void *q_gain, *k_gain, *cosines, *sines, *lengths, *k_cache, *v_cache, *out;
    int capacity, offset;
    float scale, epsilon;
    int kv_heads, rows;
};

static const Launch* launch;
static Index current_block;

static void* thread_of_block(void* index) {
    const Launch& l = *launch;
    rank = (long)index / (32 * WARPS);
    threadIdx.x = (long)index % (32 * WARPS);
    blockIdx = current_block;
    blockIdx.x = rank;
    clustered_attention((u16*)l.q, (u16*)l.k, (u16*)l.v, l.q_stride, l.k_stride, l.v_stride, (u16*)l.q_gain, (u16*)l.k_gain,
                        (float*)l.cosines, (float*)l.sines, (int*)l.lengths, (u16*)l.k_cache, (u16*)l.v_cache, (u16*)l.out,
                        l.capacity, l.offset, l.scale, l.epsilon);
    return 0;
}

extern "C" void run(const Launch* l) {
    launch = l;
    gridDim.y = l->kv_heads;
    for (current_block.z = 0; current_block.z < l->rows; current_block.z++)
        for (current_block.y = 0; current_block.y < l->kv_heads; current_block.y++) block_of_threads(thread_of_block);
}
