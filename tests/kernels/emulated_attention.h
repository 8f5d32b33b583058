// The launch of coded_attention.cu, which has no instructions of its own.
//@ none
//@ the launch
struct Launch {
    void* pointers[14];
    int q_stride, kv_heads, slots;
    float scale, epsilon;
    int rows, splits;
};

static const Launch* launch;
static Index current_block;

static void* thread_of_block(void* index) {
    const Launch& l = *launch;
    threadIdx.x = (long)index;
    blockIdx = current_block;
    void* const* p = l.pointers;
    coded_attention((u16*)p[0], (u16*)p[1], (float*)p[2], (float*)p[3], (int*)p[4], (u8*)p[5], (u16*)p[6], (u16*)p[7],
                    (u8*)p[8], (u16*)p[9], (u16*)p[10], (float*)p[11], (float*)p[12], (float*)p[13], l.q_stride,
                    l.kv_heads, l.slots, l.scale, l.epsilon);
    return 0;
}

extern "C" void run(const Launch* l) {
    launch = l;
    for (current_block.x = 0; current_block.x < l->rows; current_block.x++)
        for (current_block.y = 0; current_block.y < l->kv_heads; current_block.y++)
            for (current_block.z = 0; current_block.z < l->splits; current_block.z++) block_of_threads(thread_of_block);
}
